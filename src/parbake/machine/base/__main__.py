"""Make the default base, as a program: ``python -I -m parbake.machine.base``.

For whoever goes on meanwhile and needs the base later: it takes only what processor time nobody else wants.
"""

from __future__ import annotations

import os
from contextlib import suppress

from parbake.core import interrupts
from parbake.core.events import Events
from parbake.core.workspace import cache_folder
from parbake.machine.base.build import ensure

_NICE = 10


def main() -> None:
    """Make the base in the user's cache unless it is there; a signal ends it, with what it has begun."""
    interrupts.install()
    interrupts.begin()
    os.nice(_NICE)
    with suppress(interrupts.Stop):
        ensure(cache_folder(), Events())


main()
