"""The programs that run on nodes and in guests: the folder ``node``, which is data for us."""

from __future__ import annotations

import ast
import base64
import gzip
import io
import tokenize
from functools import cache
from importlib import resources
from pathlib import Path


def node_file(name: str) -> Path:
    """Return where a file of the folder ``node`` lies."""
    return Path(str(resources.files("parbake").joinpath("node", name)))


@cache
def short(name: str) -> str:
    """Return a program of the folder without what only people read: user data has 16 KiB. Pure.

    Empty lines, comments and the docstrings of Python go, and its indentation shrinks to one column a level; strings
    stay byte for byte.
    """
    text = node_file(name).read_text()
    lines = text.splitlines()
    if name.endswith(".py"):
        lines = _short_python(text, lines)
    return "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#")) + "\n"


def _short_python(text: str, lines: list[str]) -> list[str]:
    gone: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            first = node.body[0]
            if len(node.body) > 1:
                gone |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    inside: set[int] = set()  # lines that begin within a string
    ends: dict[int, int] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            ends[token.start[0]] = token.start[1]
        inside |= set(range(token.start[0] + 1, token.end[0] + 1)) if token.type == tokenize.STRING else set()
    kept = []
    for number, line in enumerate(lines, 1):
        if number in gone:
            continue
        code = line[: ends[number]].rstrip() if number in ends else line
        margin = 0 if number in inside else len(code) - len(code.lstrip(" "))
        kept.append(" " * (margin // 4) + code[margin:])
    return kept


def packed(data: bytes) -> str:
    """Return bytes as lines for a here-document of a script: ``base64 -d | gzip -d`` gives them back. Pure."""
    text = base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()
    return "\n".join(text[at : at + 120] for at in range(0, len(text), 120))
