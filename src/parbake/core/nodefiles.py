"""The programs that run on nodes and in guests: the folder ``node``, which is data for us."""

from __future__ import annotations

import ast
import base64
import gzip
from importlib import resources
from pathlib import Path


def node_file(name: str) -> Path:
    """Return where a file of the folder ``node`` lies."""
    return Path(str(resources.files("parbake").joinpath("node", name)))


def short(name: str) -> str:
    """Return a program of the folder without what only people read: user data has 16 KiB. Pure.

    Comments on lines of their own, empty lines, and the docstrings of Python go; what is left is byte for byte.
    """
    text = node_file(name).read_text()
    lines = text.splitlines()
    gone: set[int] = set()
    if name.endswith(".py"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                first = node.body[0]
                if len(node.body) > 1:
                    gone |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    kept = (line for number, line in enumerate(lines, 1) if number not in gone)
    return "\n".join(line for line in kept if line.strip() and not line.lstrip().startswith("#")) + "\n"


def packed(data: bytes) -> str:
    """Return bytes as lines for a here-document of a script: ``base64 -d | gzip -d`` gives them back. Pure."""
    text = base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()
    return "\n".join(text[at : at + 120] for at in range(0, len(text), 120))
