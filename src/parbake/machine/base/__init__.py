"""The default base: a small Debian machine image, made on this machine, once for each architecture.

For amd64 it boots by BIOS and by UEFI, for arm64 by UEFI.

``describe`` names the content without building it; ``ensure`` builds what is not in the cache yet.
"""

from parbake.machine.base.build import ensure
from parbake.machine.base.recipe import SIZE, Recipe, describe

__all__ = ["SIZE", "Recipe", "describe", "ensure"]
