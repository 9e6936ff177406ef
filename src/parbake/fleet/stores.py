"""What fleets keep in their stores, and whether an address means the same store on all machines.

What a rollout needs, so that pruning spares it. Keys in quarantine, which have failed too often, so that no run on any
machine tries them again: a corrected Bakefile has another key, and is free by itself. And which run and rollout of a
fleet was begun last, so that no old request does it again: the engine cannot say it, since whoever reaches it can
delete what it knows, and start anew whatever was asked for before.

Workers start without what reads and writes stores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from parbake.core.errors import InputError, Moved, WrongStore

if TYPE_CHECKING:
    from parbake.records.store import Store

_QUARANTINE = "quarantine/"


def need_identity(address: str, identity: str) -> None:
    """Raise WrongStore unless the store at an address here has that word of its own; empty: it is not known."""
    if not identity:
        return
    from parbake.records.store import identity_of, open_store

    found = identity_of(open_store(address))
    if found != identity:
        is_one = "is another store than" if found else "is not"
        raise WrongStore(
            f"{address} on this machine {is_one} the one where the run was begun",
            hint="mount the same folder on all machines, or name a bucket: `store: s3://BUCKET/PREFIX`",
        )


def need_rollout(address: str, fleet: str, target: str, keys: tuple[str, ...], held: tuple[str, ...]) -> None:
    """Let the store at an address know what a rollout hands out, and what a target held before (``store.Need``).

    Without a ``target`` it is what the whole rollout hands out. Raises what writing to the store raises.
    """
    from parbake.records.store import Need, note, open_store

    note(open_store(address), Need(fleet=fleet, target=target, keys=keys, held=held))


@dataclass(frozen=True, slots=True)
class Note:
    """Which cell failed, with which error of parbake."""

    cell: str
    error: str
    message: str


def quarantine(address: str, key: str, note: Note) -> None:
    """Note that a key has failed too often."""
    from parbake.records.store import open_store

    open_store(address).add(f"{_QUARANTINE}{key}", json.dumps(asdict(note)).encode())


def quarantined(store: Store, key: str) -> Note | None:
    """Return why a key is not tried again; None where it is, as where somebody has broken the note."""
    from parbake.records.store import state_of

    if held := state_of(store, f"{_QUARANTINE}{key}"):
        with suppress(ValueError, TypeError, AttributeError, RecursionError):
            document = json.loads(held.content)
            return Note(**{name: str(document[name]) for name in Note.__dataclass_fields__ if name in document})
    return None


def lift(store: Store, keys: Iterable[str]) -> None:
    """Let keys be tried again."""
    for key in keys:
        store.remove(f"{_QUARANTINE}{key}")


@dataclass(frozen=True, slots=True)
class Begun:
    """A run or rollout: when it was asked for and when what it rolls out was (ISO 8601, UTC), and the engine's run."""

    at: str
    made: str
    run: str


def begin(address: str, name: str, now: Begun, *, before: str = "", again: bool = False) -> None:
    """Note that this begins; ``before`` is the engine's run that it goes on from, if any.

    Raises InputError where it was asked for before the last one was, or (unless ``again``) hands out what is older than
    the last; Moved where another one begins in this moment.
    """
    from parbake.records.store import open_store, state_of

    store, path = open_store(address), _path(name)
    held = state_of(store, path)
    known = _read_begun(held.content) if held else None
    if known and known.run == now.run:  # a second try
        return
    if known and not (known.run == before and known.at == now.at):
        need_newer(name, known, now, again=again)
    content = json.dumps(asdict(now)).encode()
    if not (store.replace(path, content, held.version) if held else store.add(path, content)):
        raise Moved(f"another {name} begins in this moment")


def last_begun(address: str, name: str) -> Begun | None:
    """Return what was begun last; None where nothing was, or somebody has broken the note."""
    from parbake.records.store import open_store, state_of

    held = state_of(open_store(address), _path(name))
    return _read_begun(held.content) if held else None


def need_newer(name: str, last: Begun, now: Begun, *, again: bool) -> None:
    """Raise InputError for what is older than the last one, as ``begin`` does. Pure."""
    if now.at <= last.at:
        raise InputError(
            f"{name} was asked for at {now.at}, and what was begun last at {last.at}",
            hint="somebody repeats an old request; or compare the clocks of the machines, and ask again",
        )
    if now.made < last.made and not again:
        raise InputError(
            f"{name}: what is to be rolled out is of {now.made}, and what was rolled out last is newer, of {last.made}",
            hint="`parbake fleet run` makes a newer one; `parbake fleet rollout --again` rolls out the older one",
        )


def _path(name: str) -> str:
    return f"begun/{name}.json"


def _read_begun(content: bytes) -> Begun | None:
    """Return what a note says; None for one that somebody has broken."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        document = json.loads(content)
        return Begun(*(str(document[each]) for each in Begun.__slots__))
    return None
