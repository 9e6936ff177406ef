"""What a store holds of an artefact: one entry, which names files by their digests.

``artefacts/NAME.json`` is the entry and the only object that is ever written twice; ``objects/SHA256`` are the files
that it names: the record, the list of blocks, the trace, signatures, and packs of the artefact's own bytes. An object
is there before an entry names it, so that whoever reads an entry finds one state of all of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from parbake.core.errors import BadContent
from parbake.core.model import FILE_NAME, FileName, Frozen
from parbake.records.store.port import Store, state_of

_HEX = r"^[0-9a-f]{64}$"
_MOST_FILES, MOST_BYTES = 16, 256 << 20  # beside an artefact; the list of blocks of a terabyte has 150 MB
_SUFFIX = r"^(\.[a-z]{1,10}){1,3}$"  # beside the artefact and nowhere else
ENTRIES, OBJECTS = "artefacts/", "objects/"
ENTRY_NAME, OBJECT_NAME = re.compile(rf"{ENTRIES}{FILE_NAME}\.json"), re.compile(rf"{OBJECTS}[0-9a-f]{{64}}")
_HINT = "somebody has changed it by hand: `parbake bake --force` writes a correct one"


class StoredFile(Frozen):
    """A file beside an artefact, or what names its bytes."""

    sha256: str = Field(pattern=_HEX)
    size: int = Field(ge=0, le=MOST_BYTES)


class StoreEntry(Frozen):
    """An artefact in a store. ``files`` are those beside it by their suffix (``.json`` is the record).

    ``disk`` is the index of its packs (``packs.PackIndex``), None for what lies in a cloud alone.
    """

    version: Literal[1] = 1
    artefact: FileName
    key: str = Field(pattern=_HEX)
    files: dict[Annotated[str, Field(pattern=_SUFFIX)], StoredFile] = Field(max_length=_MOST_FILES)
    disk: StoredFile | None = None

    @property
    def name(self) -> str:
        """The name of the entry's object."""
        return entry_name(self.artefact)

    def text(self) -> bytes:
        """Return the content of the entry's object."""
        return (json.dumps(self.model_dump(mode="json"), indent=2) + "\n").encode()


def entry_name(artefact: str) -> str:
    """Return the name of the object that is an artefact's entry."""
    return f"{ENTRIES}{artefact}.json"


def parse_entry(content: bytes, name: str, store: Store) -> StoreEntry:
    """Read an entry; raises BadContent where it is none, or another artefact's."""
    try:
        entry = StoreEntry.model_validate_json(content)
    except ValidationError as error:
        reason = str(error).splitlines()[0]
        raise BadContent(f"{name} in {store.url} is not a store entry: {reason}", hint=_HINT) from error
    if entry.name != name:
        raise BadContent(f"{name} in {store.url} is the entry of {entry.artefact}", hint=_HINT)
    return entry


def put_object(store: Store, content: bytes) -> StoredFile:
    """Make sure that a content is in the store; return what names it. What others have put in its place is replaced."""
    digest = hashlib.sha256(content).hexdigest()
    name = f"{OBJECTS}{digest}"
    if not store.add(name, content):
        there = state_of(store, name, len(content))
        if there is None or there.content != content:
            store.replace(name, content, there.version) if there else store.add(name, content)
    return StoredFile(sha256=digest, size=len(content))


def get_object(store: Store, file: StoredFile, what: str) -> bytes:
    """Return what an entry names; raises BadContent where it is missing, larger than it says, or other bytes."""
    held = store.get(f"{OBJECTS}{file.sha256}", file.size)
    if held is None:
        raise BadContent(f"{what}: the store {store.url} has lost {OBJECTS}{file.sha256}", hint=_HINT)
    if hashlib.sha256(held.content).hexdigest() != file.sha256:
        raise BadContent(f"{what}: {OBJECTS}{file.sha256} in {store.url} has other bytes", hint=_HINT)
    return held.content
