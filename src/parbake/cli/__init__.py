"""The door: one module for each group of commands, all on one ``app``."""

from parbake.cli import baking, coldstarts, door, exporting, linting, policies, rolling, snapshots
from parbake.cli.door import app, main, run

__all__ = [
    "app",
    "baking",
    "coldstarts",
    "door",
    "exporting",
    "linting",
    "main",
    "policies",
    "rolling",
    "run",
    "snapshots",
]
