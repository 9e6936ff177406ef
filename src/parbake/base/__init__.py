"""The default base: a small Debian machine image that boots by BIOS and by UEFI, made on this machine, once.

``recipe`` names the content without building it; ``ensure`` builds what is not in the cache yet.
"""

from parbake.base.build import ensure
from parbake.base.recipe import SIZE, Recipe, recipe

__all__ = ["SIZE", "Recipe", "ensure", "recipe"]
