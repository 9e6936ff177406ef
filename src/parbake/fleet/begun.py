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

    store, path = open_store(address), f"begun/{name}.json"
    held = state_of(store, path)
    last = _read(held.content) if held else None
    if last and last.run == now.run:  # a second try
        return
    if last and not (last.run == before and last.at == now.at):
        need_newer(name, last, now, again=again)
    content = json.dumps(asdict(now)).encode()
    if not (store.replace(path, content, held.version) if held else store.add(path, content)):
        raise Moved(f"another {name} begins in this moment")


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


def _read(content: bytes) -> Begun | None:
    """Return what a note says; None for one that somebody has broken."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        document = json.loads(content)
        return Begun(*(str(document[each]) for each in Begun.__slots__))
    return None
