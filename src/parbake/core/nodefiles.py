"""The programs that run on nodes and in guests: the folder ``node``, which is data for us."""

from __future__ import annotations

import base64
import gzip
from importlib import resources
from pathlib import Path


def node_file(name: str) -> Path:
    """Return where a file of the folder ``node`` lies."""
    return Path(str(resources.files("parbake").joinpath("node", name)))


def packed(data: bytes) -> str:
    """Return bytes as lines for a here-document of a script: ``base64 -d | gzip -d`` gives them back. Pure."""
    text = base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()
    return "\n".join(text[at : at + 120] for at in range(0, len(text), 120))
