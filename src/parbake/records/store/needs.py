"""What rollouts of fleets need: the artefacts that they hand out, and those that targets would go back to.

Pruning asks here, and not the engine of fleets, which may be lost. There is one object for each fleet and one for each
of its targets, which the next rollout writes anew: a rollout that has ended can be taken back until then. What nobody
has written for 90 days, the longest soak there is, counts no more.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import ValidationError

from parbake.core.model import Frozen
from parbake.records.store.port import Store, listed, state_of

FOLDER = "rollouts/"
_NAME = re.compile(rf"{FOLDER}.+\.[0-9a-f]{{16}}")
KEY_DIGITS = 32
"""So much of a content key names it here."""
_EXPIRY = timedelta(days=90)


class Need(Frozen):
    """What the last rollout of a fleet needs, or of one ``target`` (empty: the whole of what it hands out).

    ``keys`` are content keys, or their beginnings, of what is handed out. ``held`` are ids of images and snapshots, and
    names of artefacts, that the target held before.
    """

    version: Literal[1] = 1
    fleet: str
    target: str = ""
    keys: tuple[str, ...] = ()
    held: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its object."""
        return f"{FOLDER}{self.fleet}.{hashlib.sha256(self.target.encode()).hexdigest()[:16]}"

    def text(self) -> bytes:
        """Return the content of its object."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def note(store: Store, need: Need) -> None:
    """Let a store have what a rollout needs, instead of what the one before needed. Raises what asking raises."""
    while True:
        there = state_of(store, need.name)
        written = store.replace(need.name, need.text(), there.version) if there else store.add(need.name, need.text())
        if written:
            return


def needed(store: Store) -> dict[str, str]:
    """Return who needs what, in words, by the beginning of a content key, an id, or an artefact's name."""
    found: dict[str, str] = {}
    for each in listed(store, FOLDER, _NAME):
        if datetime.now(UTC) - each.modified > _EXPIRY or not (there := state_of(store, each.name)):
            continue
        with suppress(ValidationError):  # it is of a later version, or somebody else's
            need = Need.model_validate_json(there.content)
            for key in need.keys:
                found.setdefault(key[:KEY_DIGITS], f"the last rollout of the fleet {need.fleet} hands it out")
            for name in need.held:
                found[name] = f"{need.target} in the fleet {need.fleet} would go back to it"
    return found


def sweep(store: Store) -> None:
    """Remove what counts no more."""
    for each in list(listed(store, FOLDER, _NAME)):
        if datetime.now(UTC) - each.modified > _EXPIRY:
            store.remove(each.name)
