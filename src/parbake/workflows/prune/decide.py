"""What stays and what goes. Pure: from the artefacts that there are, what refers to them, and rules.

A published artefact goes in two steps. First it is retired: a machine image is deprecated, so that nothing new chooses
it, and the time is written into its tags. When the grace is over and still nothing refers to it, it is removed. One on
this machine goes at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from parbake.records import Record
from parbake.records.store.needs import KEY_DIGITS


@dataclass(frozen=True, slots=True)
class Item:
    """One artefact in one place: a file here (``region`` empty), a machine image with its snapshots, or a snapshot.

    ``family`` is what is counted together: the name, in EC2 with architecture and kind. ``created`` and ``retired`` are
    UTC, ``size`` is in bytes. ``spared`` says why it stays though it is old; ``guarded`` why nobody can remove it now.
    ``key`` is its content key, where it says one.
    """

    id: str
    region: str
    name: str
    family: str
    created: datetime
    snapshots: tuple[str, ...] = ()
    size: int = 0
    retired: datetime | None = None
    spared: str = ""
    guarded: str = ""
    key: str = ""

    @property
    def ids(self) -> frozenset[str]:
        """All ids by which something may refer to it."""
        return frozenset({self.id, *self.snapshots})


@dataclass(frozen=True, slots=True)
class RetentionRules:
    """``keep`` of each family and region stay, and what is younger than ``younger``; ``grace`` is between the steps."""

    keep: int = 3
    younger: timedelta = timedelta()
    grace: timedelta = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of an item: it stays, is retired now, waits for its grace to end, is removed, or comes back."""

    item: Item
    action: Literal["keep", "retire", "wait", "remove", "restore"]
    reason: str


def decide(
    items: Iterable[Item], rules: RetentionRules, now: datetime, used: Mapping[str, Iterable[str]] | None = None
) -> tuple[Decision, ...]:
    """Decide about every item; ``used`` says for an id what refers to it (None: files here, which nothing refers to).

    What is referred to is never removed.
    """
    families: dict[tuple[str, str], list[Item]] = {}
    for item in sorted(items, key=lambda each: (each.created, each.id), reverse=True):
        families.setdefault((item.family, item.region), []).append(item)
    return tuple(
        _decision(item, place, rules, now, used)
        for _, members in sorted(families.items())
        for place, item in enumerate(members)
    )


def _decision(
    item: Item, place: int, rules: RetentionRules, now: datetime, used: Mapping[str, Iterable[str]] | None
) -> Decision:
    newest = f"the newest {rules.keep} of {item.family}"
    why = ""
    if users := sorted({user for each in item.ids for user in (used or {}).get(each, ())}):
        why = f"used by {users[0]}" + (f" and {len(users) - 1} more" if len(users) > 1 else "")
    elif place < rules.keep:
        why = f"among {newest}"
    elif now - item.created < rules.younger:
        why = f"younger than {_spoken(rules.younger)}"
    if why or item.spared:
        return Decision(item, "restore" if item.retired else "keep", why or item.spared)
    if used is None:
        return Decision(item, "remove", f"older than {newest}")
    if item.retired is None and rules.grace:
        return Decision(item, "retire", f"unused; to be removed in {_spoken(rules.grace)}")
    left = (item.retired or now) + rules.grace - now
    if left > timedelta():
        return Decision(item, "wait", f"retired; to be removed in {_spoken(left)}")
    if item.guarded:
        how = f"aws ec2 disable-image-deregistration-protection --region {item.region} --image-id {item.id}"
        return Decision(item, "wait", f"unused, but {item.guarded}: `{how}` removes the protection")
    return Decision(item, "remove", "nothing uses it")


def sparing(items: Iterable[Item], busy: Mapping[str, str], needed: Mapping[str, str]) -> tuple[Item, ...]:
    """Return items with what machines work on, and what rollouts need, spared.

    ``busy`` says by content key who works on it; ``needed`` who needs it, see ``records.store.needed``.
    """
    return tuple(replace(each, spared=_wanted(each, busy, needed) or each.spared) for each in items)


def _wanted(item: Item, busy: Mapping[str, str], needed: Mapping[str, str]) -> str:
    if item.key in busy:
        return busy[item.key]
    return next((needed[name] for name in (*sorted(item.ids), item.key[:KEY_DIGITS]) if name in needed), "")


def items_here(records: Iterable[Record]) -> tuple[Item, ...]:
    """Return the artefacts of records. The newest verified one of each name is spared, and what is published.

    Rollouts need the record of what is published.
    """
    found = sorted(records, key=lambda each: (each.finished_at, each.artefact))
    proven = {each.plan.name: each.artefact for each in found if each.verified}
    return tuple(_item(each, newest=proven.get(each.plan.name) == each.artefact) for each in found)


def _item(record: Record, *, newest: bool) -> Item:
    name, spared = record.plan.name, ""
    if record.published:
        spared = f"published in {', '.join(sorted(record.published))}"
    if newest:
        spared = f"the newest verified one of {name}"
    return Item(
        record.artefact, "", name, name, _finished(record), size=record.allocated, spared=spared, key=record.key
    )


def _finished(record: Record) -> datetime:
    with suppress(ValueError):
        return datetime.fromisoformat(record.finished_at)
    return datetime.fromtimestamp(0, UTC)


def freed(decisions: Iterable[Decision]) -> int:
    """Return the bytes of what is removed."""
    return sum(each.item.size for each in decisions if each.action == "remove")


def _spoken(time: timedelta) -> str:
    if time >= timedelta(days=1):
        return f"{time.total_seconds() / 86400:.0f} d"
    return f"{time.total_seconds() / 3600:.0f} h"
