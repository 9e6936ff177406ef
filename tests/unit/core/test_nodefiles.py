"""Programs for user data lose what people read, and nothing else."""

from __future__ import annotations

import ast
import base64
import gzip

import pytest

from parbake.core.nodefiles import node_file, packed, short


def meaning(text: str) -> str:
    """Return what a program says to Python: its tree without docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:] or node.body
    return ast.dump(tree)


@pytest.mark.parametrize("name", ["hydrate.py", "pagecache.py", "cri.py", "prove.py"])
def test_a_short_program_is_the_same_program(name: str) -> None:
    text = node_file(name).read_text()
    assert meaning(short(name)) == meaning(text)
    assert len(short(name)) < 0.8 * len(text)
    assert "#" not in short(name).replace("#!", "")


def test_packed_bytes_come_back() -> None:
    data = bytes(range(256)) * 9
    assert gzip.decompress(base64.b64decode(packed(data))) == data
    assert max(map(len, packed(data).splitlines())) <= 120
