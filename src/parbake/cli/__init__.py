"""The door: one module for each group of commands, which ``commands`` lists and loads."""

from parbake.cli.app import main, run

__all__ = ["main", "run"]
