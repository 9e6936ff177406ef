"""Windows of the week: when is one open next, on clocks that are set forward and back?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from parbake.core.errors import InputError
from parbake.fleet.windows import Window, parse, until_open


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("window", "now", "opens"),
    [
        ("Mon-Fri 08:00-16:00", "2026-11-25T08:00", "2026-11-25T08:00"),  # a Wednesday
        ("Mon-Fri 08:00-16:00", "2026-11-25T15:59:59", "2026-11-25T15:59:59"),
        ("Mon-Fri 08:00-16:00", "2026-11-25T16:00", "2026-11-26T08:00"),
        ("Mon-Fri 08:00-16:00", "2026-11-27T16:00", "2026-11-30T08:00"),
        ("Wed 08:00-16:00", "2026-11-25T16:00", "2026-12-02T08:00"),
        ("Sat-Mon 00:00-24:00", "2026-11-30T23:59", "2026-11-30T23:59"),
        ("Tue,Thu 09:30-10:00", "2026-11-25T12:00", "2026-11-26T09:30"),
        ("Mon-Fri 08:00-16:00 Europe/Berlin", "2026-11-25T06:00", "2026-11-25T07:00"),
        ("Mon-Fri 08:00-16:00 Europe/Berlin", "2026-07-01T05:00", "2026-07-01T06:00"),
        ("Sun 01:00-04:00 Europe/Berlin", "2026-03-28T23:00", "2026-03-29T00:00"),  # one hour is left out
        ("Sun 03:00-04:00 Europe/Berlin", "2026-03-29T00:30", "2026-03-29T01:00"),
        ("Mon 00:00-01:00 America/New_York", "2026-11-30T04:00", "2026-11-30T05:00"),  # Sunday there
    ],
)
def test_a_window_opens_on_its_own_clocks(window: str, now: str, opens: str) -> None:
    assert timedelta(seconds=until_open([window], at(now))) == at(opens) - at(now)


def test_the_first_of_several_windows_counts_and_none_is_always() -> None:
    now = at("2026-11-25T12:00")
    assert until_open([], now) == 0
    assert until_open(["Fri 08:00-09:00", "Thu 08:00-09:00"], now) == timedelta(hours=20).total_seconds()
    assert until_open(["Fri 08:00-09:00", "Wed 08:00-13:00"], now) == 0


def test_what_a_window_says() -> None:
    assert parse("Fri-Mon 08:00-16:30 UTC") == Window(frozenset({4, 5, 6, 0}), 480, 990)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("always", "is not a window of the week"),
        ("Mon 8:00-16:00", "is not a window of the week"),
        ("Mon-Foo 08:00-16:00", "'Mon-Foo' is not a day of the week"),
        ("Mon 08:60-16:00", "'08:60' is not a time of the day"),
        ("Mon 08:00-25:00", "'25:00' is not a time of the day"),
        ("Mon 16:00-08:00", "ends before it begins"),
        ("Mon 08:00-16:00 Europe/Nowhere", "there is no time zone 'Europe/Nowhere'"),
        ("Mon 08:00-16:00 ../etc/passwd", "is not a window of the week"),
    ],
)
def test_what_is_no_window_is_told_with_what_to_write(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse(text)
    assert caught.value.hint
