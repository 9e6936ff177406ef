"""MeasuredStarts figures in the place of the model's: which count, what is refused, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.aws.costs import MB, SPEEDS, MeasuredStarts, Situation, advise, known_pulls, load_prices, read_measured
from parbake.aws.costs.measured import ENOUGH, Figure, decide, figures_of
from parbake.core.errors import InputError
from parbake.core.model import GIB, MIB

POTATO = Situation(
    volume=20 * GIB, data=11 * GIB, hot=GIB, read=490 * MIB, reads=14_452, transfer=4500 * MIB, launches=200
)
EBS = {
    "latency_ms": {"median": 8.0, "p90": 20.0, "count": 200},
    "loaded_ms": {"median": 0.4, "p90": 1.0, "count": 1000},
    "cold_mib_s": {"1": 40.0, "32": 210.0},
    "read_ahead_kib": 128,
}
STATE = {"version": 1, "phase": "done", "state": "done", "wanted": 600 * MIB, "bytes": 4096, "errors": 0, "seconds": 3}
PULL = {"pull_seconds": 10.0, "pulled_bytes": 1500 * MB}
NODE = {"launched": "2026-12-01T10:00:00+00:00", "registered": "2026-12-01T10:00:33+00:00"}
OBSERVED = {"pods": [{"containers": [PULL] * 5}], "nodes": [NODE] * 5, "not_in_the_bake": [{"pull_seconds": None}]}


def written(folder: Path, *documents: Any) -> list[Path]:
    paths = [folder / f"{number}.json" for number in range(len(documents))]
    for path, document in zip(paths, documents, strict=True):
        path.write_text(json.dumps(document))
    return paths


def test_what_is_measured_takes_the_place_of_what_is_assumed(tmp_path: Path) -> None:
    found = read_measured(written(tmp_path, EBS, OBSERVED))
    at, speeds, pulls = found.applied(POTATO, SPEEDS["mild"], known_pulls())
    assert (speeds.latency, speeds.loaded, speeds.cold_rate) == (0.008, 0.0004, 210.0)
    assert (at.boot, [each.fastest for each in pulls]) == (33.0, [150.0])
    assert "first touch: 8 ms, measured (200)" in found.basis
    assert found.basis.endswith("all else is the model's")


def test_a_measured_figure_can_change_the_choice(tmp_path: Path) -> None:
    """Nodes that pull 30 times as fast as containerd does: then nothing is to be baked."""
    fast = {**OBSERVED, "pods": [{"containers": [{"pull_seconds": 1.0, "pulled_bytes": 3000 * MB}] * 5}]}
    choices = []
    for found in (read_measured([]), read_measured(written(tmp_path, fast))):
        at, speeds, pulls = found.applied(POTATO.model_copy(update={"launches": 1}), SPEEDS["mild"], known_pulls())
        choices.append(advise(at, speeds, load_prices(), pulls).remedies)
    before, after = ({each.name: each.total for each in found} for found in choices)
    assert after["pull"] < before["pull"] / 10
    assert "model alone" in read_measured([]).basis


def test_too_few_figures_do_not_count_and_are_said(tmp_path: Path) -> None:
    other = [{**STATE, "seconds": 3 + number / 10} for number in range(3)]
    few = read_measured(written(tmp_path, *other[:2]))
    assert few.figures == {}
    assert "cold blocks: 2 of the 3 that are enough, so the model counts" in few.basis
    assert read_measured(written(tmp_path, *other)).figures["cold blocks"] == pytest.approx(600 / 3.1)
    assert read_measured(written(tmp_path, STATE, STATE, STATE)).figures == {}, "the same node three times is one node"


def test_figures_that_contradict_each_other_do_not_count_and_are_said(tmp_path: Path) -> None:
    slow = {**EBS, "latency_ms": {**EBS["latency_ms"], "median": 40.0}}  # type: ignore[dict-item]
    found = read_measured(written(tmp_path, EBS, slow))
    assert "first touch" not in found.figures
    assert found.figures["loaded read"] == 0.0004
    assert "8 ms" in found.basis
    assert "contradict each other, so the model counts" in found.basis


@pytest.mark.parametrize("state", [{"phase": "loading"}, {"state": "short-disk"}, {"errors": 3}, {"seconds": 0}])
def test_a_node_that_has_not_loaded_all_says_nothing(state: dict[str, Any]) -> None:
    assert figures_of(json.dumps({**STATE, **state}).encode(), "x") == []


@pytest.mark.parametrize(
    "content",
    [
        b"", b"7", b"[]", b"{}", b"\xff\xfe", b"null", b"[" * 100_000, b'{"a":' * 5_000, b'{"watch": []}',
        b'{"latency_ms": 7}', b'{"pods": 7}', b'{"pods": [{"containers": [{"pull_seconds": NaN}]}]}',
        b'{"phase": "done", "version": 2}', b'{"phase": "done", "version": 1, "seconds": "3"}',
        json.dumps({**EBS, "cold_mib_s": {}}).encode(), json.dumps({**EBS, "cold_mib_s": {"1": -4.0}}).encode(),
        json.dumps({**EBS, "cold_mib_s": {"1": 1e999}}).encode(),
    ],
)  # fmt: skip
def test_what_nobody_measured_is_refused_with_the_next_step(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_measured([path])
    assert str(path) in caught.value.message
    assert "bench/ebs-check" in (caught.value.hint or "")


def test_a_device_in_the_place_of_a_file_is_refused() -> None:
    with pytest.raises(InputError, match="no file"):
        read_measured([Path("/dev/zero")])


figures = st.builds(
    Figure,
    kind=st.sampled_from(sorted(ENOUGH)),
    value=st.floats(1e-6, 1e6),
    count=st.integers(1, 100),
    source=st.sampled_from(["a", "b"]),
)


@given(st.lists(figures, max_size=8))
def test_what_counts_lies_among_what_was_measured_and_every_kind_is_spoken_of(found: list[Figure]) -> None:
    decided = decide(found)
    kinds = {each.kind for each in found}
    assert len(decided.words) == len(kinds)
    for kind, value in decided.figures.items():
        values = [each.value for each in found if each.kind == kind]
        assert min(values) <= value <= max(values) <= 3 * min(values)
        assert sum(each.count for each in found if each.kind == kind) >= ENOUGH[kind]
    assert decide(reversed(found)).figures == decided.figures
    assert MeasuredStarts.model_validate_json(decided.model_dump_json()) == decided
