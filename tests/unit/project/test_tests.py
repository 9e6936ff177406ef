"""How tests say what they expect, so that a failure shows what there was instead."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from standins.documents import ROOT


def compared(path: Path) -> Iterator[tuple[ast.Compare, list[ast.expr], list[ast.expr]]]:
    """Yield the comparisons of two tuples, with what is in these."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Compare(left=ast.Tuple(elts=found), ops=[ast.Eq()], comparators=[ast.Tuple(elts=wanted)]):
                yield node, found, wanted


def test_a_failure_shows_what_a_command_said() -> None:
    """Of `(code, "x" in message) == (1, True)` it shows that it was False: `refused` shows the message."""
    hidden = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node, found, wanted in compared(path)
        if ast.unparse(found[0]).rpartition(".")[2] == "code"
        and any(isinstance(each, ast.Compare) and isinstance(each.ops[0], ast.In) for each in found)
        and any(isinstance(each, ast.Constant) and each.value is True for each in wanted)
    ]
    assert hidden == []


def test_nothing_is_patched_in_tests_that_do_not_ask_for_it() -> None:
    automatic = [
        node.name
        for node in ast.walk(ast.parse((ROOT / "tests/conftest.py").read_text()))
        if isinstance(node, ast.FunctionDef) and any("autouse" in ast.unparse(each) for each in node.decorator_list)
    ]
    assert automatic == []
