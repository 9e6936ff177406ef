"""The programs that run on nodes and in guests: the folder ``node``, which is data for us."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def node_file(name: str) -> Path:
    """Return where a file of the folder ``node`` lies."""
    return Path(str(resources.files("parbake").joinpath("node", name)))
