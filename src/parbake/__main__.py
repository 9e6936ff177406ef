"""The ``parbake`` command, also as ``python -m parbake``."""

import gc
import os

from parbake.core import interrupts


def main() -> None:
    """Run as a program: listen for signals before anything else is loaded."""
    interrupts.install()
    gc.disable()  # while modules load it finds nothing, again and again; `opened_events` sets it to work
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # it would look through every package that is installed
    from parbake.cli import main as enter

    enter()


if __name__ == "__main__":
    main()
