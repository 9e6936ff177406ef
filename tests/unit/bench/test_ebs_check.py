"""What ebs-check asks of a raised volume, against a stand-in for EC2: states, and speeds before and after."""

from __future__ import annotations

import importlib.util
import os
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.node.test_boost import MINE, RAISED, Node

PROGRAM = Path(__file__).parents[3] / "bench/ebs-check"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_loader("ebs_check", SourceFileLoader("ebs_check", str(PROGRAM)))
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    spec.loader.exec_module(module)
    return module


def asked(check: Any, node: Node, folder: Path, seconds: float = 600) -> dict[str, Any]:
    """Ask of a file of 12 blocks, on the node's clock, which a second moves with each look."""
    (folder / "disk").write_bytes(bytes(12 << 19))
    check.time = SimpleNamespace(monotonic=lambda: node.clock, sleep=node.sleep)
    check.spread = lambda _disk, offsets, *_: len(offsets) / 10
    disk = os.open(folder / "disk", os.O_RDONLY)
    try:
        found: dict[str, Any] = check.change(disk, list(range(12)), 2, node.program, MINE, seconds)
    finally:
        os.close(disk)
    return found


def test_what_becomes_of_a_raised_volume_is_told_with_its_times(check: Any, tmp_path: Path) -> None:
    node = Node(tmp_path)
    with node.instance:
        found = asked(check, node, tmp_path)
        assert found["asked"] == "accepted"
        assert set(found) == {"raised", "modifying", "changed", "asked", "states_after_s"}
        times = found["states_after_s"]
        assert times["modifying"] < 1
        assert 19 < times["optimizing"] < 23, "the stand-in's twenty seconds"
        assert "completed" not in times
        assert found["changed"]["cold_mib_s"] > 0


def test_a_refusal_while_it_initializes_is_the_answer(check: Any, tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.volumes.initializes_until = node.clock + 300
    with node.instance:
        found = asked(check, node, tmp_path)
    assert found["asked"].startswith("IncorrectState: ")
    assert node.volumes.has[MINE] == RAISED
