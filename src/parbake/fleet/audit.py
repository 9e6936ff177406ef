"""The audit trail of a fleet's rollouts, in its store: who approved what, when and from where, and what was written.

The engine forgets: its histories are gone after a month, or with its database. This stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parbake.records.store import Store

_THREADS = 8
_A_READ = 64


@dataclass(frozen=True)
class Event:
    """Something that has happened in a rollout. ``at`` is in ISO 8601, in UTC; ``text`` says it for people.

    ``what``: begun, held, written, failed, soaks, gate-passed, waits, approved, paused, resumed, problem, wave-done,
    rollback, returned, left, superseded, cancelled, done, rolled-back. ``subject`` is the wave or target; ``before``
    and ``after`` are what a target held and holds, or generations. ``by``, ``host`` and ``note`` say who, from where,
    why.
    """

    at: str
    what: str
    text: str
    generation: str = ""
    subject: str = ""
    by: str = ""
    host: str = ""
    note: str = ""
    before: str = ""
    after: str = ""


def write(address: str, fleet: str, events: Iterable[Event]) -> None:
    """Make sure that a store has what happened, the same once. Raises what asking the store raises."""
    from parbake.records.store import open_store, trail  # workers start without it

    store = open_store(address)
    for event in events:
        content = (json.dumps({"version": 1, "fleet": fleet, **asdict(event)}, indent=2) + "\n").encode()
        trail.write(store, datetime.fromisoformat(event.at), fleet, content)


def last_rollout(store: Store, fleet: str) -> list[Event]:
    """Return what has happened in the last rollout of a fleet, in order; nothing where the store knows of none."""
    found: list[Event] = []
    for event in _newest_first(store, fleet):
        found.append(event)
        if event.what == "begun":
            break
    return found[::-1]


def _newest_first(store: Store, fleet: str) -> Iterator[Event]:
    from parbake.records.store import state_of, trail

    names = trail.names(store, fleet)
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(names), _A_READ):  # no more than the last rollout takes
            for held in pool.map(partial(state_of, store), names[start : start + _A_READ]):
                if held and (event := _read(held.content)):
                    yield event


def _read(content: bytes) -> Event | None:
    """Return an event; None for what somebody has broken, or a later version says otherwise."""
    try:
        document = json.loads(content)
        return Event(**{name: str(document.get(name, "")) for name in Event.__dataclass_fields__})
    except (ValueError, AttributeError, RecursionError):
        return None
