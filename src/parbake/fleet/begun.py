"""Which run and which rollout of a fleet was begun last: a note in its store, so that no old request does it again.

The engine cannot say it: whoever reaches it can delete what it knows, and start anew whatever was asked for before.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass

from parbake.core.errors import InputError, Moved


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
    from parbake.records.store import open_store, state_of  # workers start without it

    store, path = open_store(address), _path(name)
    held = state_of(store, path)
    known = _read(held.content) if held else None
    if known and known.run == now.run:  # a second try
        return
    if known and not (known.run == before and known.at == now.at):
        need_newer(name, known, now, again=again)
    content = json.dumps(asdict(now)).encode()
    if not (store.replace(path, content, held.version) if held else store.add(path, content)):
        raise Moved(f"another {name} begins in this moment")


def last(address: str, name: str) -> Begun | None:
    """Return what was begun last; None where nothing was, or somebody has broken the note."""
    from parbake.records.store import open_store, state_of

    held = state_of(open_store(address), _path(name))
    return _read(held.content) if held else None


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


def _read(content: bytes) -> Begun | None:
    """Return what a note says; None for one that somebody has broken."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        document = json.loads(content)
        return Begun(*(str(document[each]) for each in Begun.__slots__))
    return None
