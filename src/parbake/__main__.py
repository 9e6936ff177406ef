"""The ``parbake`` command, also as ``python -m parbake``."""

from parbake.core import interrupts


def main() -> None:
    """Run as a program: listen for signals before anything else is loaded."""
    interrupts.install()
    from parbake.cli import main as enter

    enter()


if __name__ == "__main__":
    main()
