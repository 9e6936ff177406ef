"""Retries end, and slowness counts as failure."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from parbake.core.errors import RegistryError, Unreachable
from parbake.images.registry.retry import Backoff, Meter, Patience, Transient

QUICK = Patience(tries=4, first=0.001, longest=0.002)
FAILURE = Transient(RegistryError("no"))


def count(backoff: Backoff, failure: Transient) -> int:
    for tries in range(1, 100):
        try:
            backoff.wait(failure)
        except RegistryError:
            return tries
    return 100


def test_tries_are_counted() -> None:
    assert count(Backoff(QUICK, threading.Event()), FAILURE) == 4
    assert count(Backoff(QUICK, threading.Event()), Transient(RegistryError("no"), hopeless=True)) == 3


def test_progress_begins_the_count_again() -> None:
    backoff = Backoff(QUICK, threading.Event())
    for _ in range(20):
        backoff.wait(FAILURE)
        backoff.progress(1 << 20)
    backoff.wait(FAILURE)
    backoff.progress(10)  # a drop is no progress
    assert count(backoff, FAILURE) == 3


def test_a_wait_that_would_exceed_the_total_is_not_begun() -> None:
    patience = Patience(tries=100, total=5)
    assert count(Backoff(patience, threading.Event()), Transient(RegistryError("no"), after=30)) == 1


def test_what_the_server_asks_for_is_bounded() -> None:
    patience = Patience(tries=2, first=0.001, longest_asked=0.01)
    assert count(Backoff(patience, threading.Event()), Transient(RegistryError("no"), after=3600)) == 2


def test_closing_ends_the_wait() -> None:
    closing = threading.Event()
    closing.set()
    with pytest.raises(Unreachable, match="closed"):
        Backoff(Patience(), closing).wait(Transient(RegistryError("no"), after=50))


def test_slow_is_broken() -> None:
    meter = Meter(Patience(stall=10, rate=100), "blob")
    for _ in range(9):
        meter.add(1, 1.0)
    with pytest.raises(Transient, match="1 bytes/s"):
        meter.add(1, 1.0)


def test_fast_enough_is_fine() -> None:
    meter = Meter(Patience(stall=10, rate=100), "blob")
    for _ in range(100):
        meter.add(200, 1.0)


def drip(meter: Meter, rate: int, seconds: Iterator[int], *, connection: int) -> None:
    """Receive ``rate`` bytes a second for a day, over connections of so many seconds."""
    for second in itertools.islice(seconds, 24 * 3600):
        if second % connection == 0:
            meter.restart(1.0)
        meter.add(rate, 1.0)


def test_four_kib_a_second_come_to_an_end() -> None:
    """A server that drips just fast enough could hold a bake for as long as it likes."""
    seconds = itertools.count(1)
    with pytest.raises(Unreachable, match="too slow to continue"):
        drip(Meter(Patience(), "blob"), 4100, seconds, connection=10**6)
    assert 300 < next(seconds) < 400


def test_a_line_of_one_megabit_for_four_layers_is_fast_enough() -> None:
    meter = Meter(Patience(), "blob")
    for _ in range(24 * 3600):
        meter.add(33_000, 1.0)
    meter.restart(100.0)


def test_new_connections_do_not_make_a_slow_blob_young_again() -> None:
    with pytest.raises(Unreachable, match="too slow to continue"):
        drip(Meter(Patience(), "blob"), 8000, itertools.count(1), connection=25)


def test_bytes_that_were_there_before_do_not_count() -> None:
    """A server that ignores ranges sends the start of a blob again, as often as it likes."""

    def again(meter: Meter) -> None:
        for _ in range(3600):
            meter.add(100_000, 1.0)
            meter.skipped(99_000)

    with pytest.raises(Unreachable, match="too slow to continue"):
        again(Meter(Patience(), "blob"))
