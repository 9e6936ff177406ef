"""How the benchmark of fleets counts, and whom it kills."""

from __future__ import annotations

from collections import Counter

from bench.fleet import WORKERS, doubled, kills


def test_doubled_work_is_counted_by_key() -> None:
    ledger = Counter({"start a": 1, "start b": 3, "start c": 2, "end a": 1, "end b": 2, "second b": 1})
    assert doubled(ledger, "start") == 2
    assert doubled(ledger, "end") == 1
    assert doubled(Counter(), "end") == 0


def test_the_server_and_each_worker_die_once_and_in_the_middle() -> None:
    found = list(kills(1000))
    assert sorted(victim for _, victim in found) == [-1, *range(WORKERS)]
    places = [place for place, _ in found]
    assert places == sorted(set(places))
    assert min(places) >= 100
    assert max(places) < 900
