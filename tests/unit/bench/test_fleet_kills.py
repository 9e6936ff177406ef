"""How the benchmark of killed workers chooses its moments, and what it says."""

from __future__ import annotations

from bench.fleet_kills import Found, moments
from parbake.core.model import MIB
from standins.leaks import Snapshot

NOTHING = Snapshot(frozenset(), frozenset(), frozenset(), frozenset())


def test_each_part_of_a_bake_has_its_kill() -> None:
    found = moments(10, 20.0)
    assert [int(each / 2) for each in sorted(found)] == list(range(10))


def test_what_is_left_is_counted_by_kind() -> None:
    found = Found(bakes=2, by_another=1, takeovers=[5.0, 6.0], moments=[1.0, 2.25], seconds=9.0)
    left = Snapshot(frozenset({"a mount"}), frozenset({"a loop", "another"}), frozenset({"a process"}), frozenset())
    found.count(left, Snapshot(frozenset(), frozenset({"another"}), frozenset(), frozenset()))
    found.count(NOTHING, NOTHING, folders=3)
    assert found.summary(5.0, 1152 * MIB) == {
        "bakes": 2,
        "kills": 2,
        "finished_by_another": 1,
        "lost": 0,
        "left_behind": {"loops": 1, "mounts": 1, "processes": 1, "folders": 3},
        "takeover_s": {"median": 5.5, "max": 6.0},
        "heartbeat_s": 5.0,
        "begun_s": [1.0, 2.2],
        "bake_s": 9.0,
        "image_mib": 1152,
    }
    assert Found().summary(5.0, 0)["takeover_s"] == {"median": None, "max": None}
