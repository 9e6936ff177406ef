"""When a rollout may begin with a target: windows of the week, each in a time zone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from parbake.core.errors import InputError

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
PATTERN = r"[A-Z][a-z]{2}([,-][A-Z][a-z]{2})* [0-9]{2}:[0-9]{2}-[0-9]{2}:[0-9]{2}( [A-Za-z0-9_+/-]+)?"
_A_WEEK = 8  # days: the same day of the next week too


@dataclass(frozen=True, slots=True)
class Window:
    """Some days of the week, from ``begin`` to ``end``, in minutes since midnight, on the clocks of ``zone``."""

    days: frozenset[int]
    begin: int
    end: int
    zone: str = "UTC"


def parse(text: str) -> Window:
    """Read ``Mon-Thu 08:00-16:00 Europe/Berlin``; without a zone it is UTC. Raises InputError."""
    if not re.fullmatch(PATTERN, text):
        raise InputError(
            f"{text!r} is not a window of the week", hint="write days, hours and a zone: Mon-Thu 08:00-16:00 UTC"
        )
    days, hours, *zone = text.split(" ")
    begin, end = (_minutes(each) for each in hours.split("-"))
    if begin >= end:
        raise InputError(f"the window {text!r} ends before it begins", hint="write one for each side of midnight")
    name = zone[0] if zone else "UTC"
    _zone(name)
    return Window(frozenset(_days(days)), begin, end, name)


def _minutes(text: str) -> int:
    hours, minutes = map(int, text.split(":"))
    if minutes > 59 or hours * 60 + minutes > 24 * 60:
        raise InputError(f"{text!r} is not a time of the day", hint="from 00:00 to 24:00")
    return hours * 60 + minutes


def _days(text: str) -> Iterable[int]:
    for part in text.split(","):
        names = part.split("-")
        if len(names) > 2 or any(name not in DAYS for name in names):
            raise InputError(f"{part!r} is not a day of the week", hint=f"write {', '.join(DAYS)}, or Mon-Fri")
        first, last = DAYS.index(names[0]), DAYS.index(names[-1])
        yield from (day % 7 for day in range(first, last + 1 + (7 if last < first else 0)))


@cache
def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC  # which needs no files
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        if not available_timezones():
            raise InputError("this machine has no time zone data", hint="apt-get install tzdata") from None
        raise InputError(f"there is no time zone {name!r}", hint="write one such as Europe/Berlin, or UTC") from None


def until_open(windows: Iterable[str], now: datetime) -> float:
    """Return the seconds until one of the windows is open: 0 while one is, or where there is none.

    ``now`` is aware of its zone. A window that a change of the clocks cuts short is as long as the clocks say.
    """
    found = [parse(each) for each in windows]
    if not found:
        return 0.0
    return max(0.0, min(_next(window, now) for window in found))


def _next(window: Window, now: datetime) -> float:
    """Return the seconds until a window's next opening; not more than 0 while it is open."""
    zone = _zone(window.zone)
    today = now.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    for ahead in range(_A_WEEK):
        day = today + timedelta(days=ahead)  # the same clock time of another day, whatever the clocks did between
        if day.weekday() not in window.days:
            continue
        begin, end = (_at(day, minutes) for minutes in (window.begin, window.end))
        if now < end:
            return (begin - now).total_seconds()
    raise AssertionError("a week has each of its days")


def _at(day: datetime, minutes: int) -> datetime:
    return (day + timedelta(minutes=minutes)).astimezone(UTC)
