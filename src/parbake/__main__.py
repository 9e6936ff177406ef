"""``python -m parbake``: the same as the ``parbake`` command."""

from parbake.cli import main

main()
