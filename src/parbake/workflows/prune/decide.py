"""What stays and what goes. Pure: from the artefacts that there are, what refers to them, and rules.

An artefact goes in two steps. First it is retired: a machine image is deprecated, so that nothing new chooses it, and
the time is written into its tags. When the grace is over and still nothing refers to it, it is removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal


@dataclass(frozen=True, slots=True)
class Item:
    """One artefact in one region: a machine image with its snapshots, or a volume's snapshot. ``size`` in bytes.

    ``family`` is what is counted together: name, architecture and kind. ``created`` and ``retired`` are UTC.
    """

    id: str
    region: str
    name: str
    family: str
    created: datetime
    snapshots: tuple[str, ...] = ()
    size: int = 0
    retired: datetime | None = None

    @property
    def ids(self) -> frozenset[str]:
        """All ids by which something may refer to it."""
        return frozenset({self.id, *self.snapshots})


@dataclass(frozen=True, slots=True)
class Rules:
    """``keep`` of each family and region stay, and what is younger than ``younger``; ``grace`` is between the steps."""

    keep: int = 3
    younger: timedelta = timedelta()
    grace: timedelta = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of an item: it stays, is retired now, waits for its grace to end, is removed, or comes back."""

    item: Item
    action: Literal["keep", "retire", "wait", "remove", "restore"]
    reason: str


def decide(
    items: Iterable[Item], used: Mapping[str, Iterable[str]], rules: Rules, now: datetime
) -> tuple[Verdict, ...]:
    """Decide about every item; ``used`` says for an id what refers to it. What is referred to is never removed."""
    families: dict[tuple[str, str], list[Item]] = {}
    for item in sorted(items, key=lambda each: (each.created, each.id), reverse=True):
        families.setdefault((item.family, item.region), []).append(item)
    return tuple(
        _verdict(item, place, used, rules, now)
        for _, members in sorted(families.items())
        for place, item in enumerate(members)
    )


def _verdict(item: Item, place: int, used: Mapping[str, Iterable[str]], rules: Rules, now: datetime) -> Verdict:
    users = sorted({user for each in item.ids for user in used.get(each, ())})
    if users:
        more = f" and {len(users) - 1} more" if len(users) > 1 else ""
        return Verdict(item, "restore" if item.retired else "keep", f"used by {users[0]}{more}")
    if place < rules.keep:
        return Verdict(item, "restore" if item.retired else "keep", f"among the newest {rules.keep} of {item.family}")
    if now - item.created < rules.younger:
        return Verdict(item, "restore" if item.retired else "keep", f"younger than {_spoken(rules.younger)}")
    if item.retired is None and rules.grace:
        return Verdict(item, "retire", f"nothing uses it; it goes in {_spoken(rules.grace)}")
    left = (item.retired or now) + rules.grace - now
    if left > timedelta():
        return Verdict(item, "wait", f"retired; it goes in {_spoken(left)}")
    return Verdict(item, "remove", "nothing uses it")


def _spoken(time: timedelta) -> str:
    if time >= timedelta(days=1):
        return f"{time.total_seconds() / 86400:.0f} d"
    return f"{time.total_seconds() / 3600:.0f} h"
