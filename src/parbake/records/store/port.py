"""What parbake needs of an object store: objects that are put if absent, replaced if unchanged, listed and removed.

Names are those of S3 keys below a prefix: parts of letters, digits and ``._-``, with ``/`` between them. Whoever
implements this keeps one promise above all: of two writers that ``add`` one name, exactly one is told True.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from parbake.core.errors import BadContent

MOST: Final = 16 << 20
"""Bytes of the largest object that is read where nothing says how large it may be: those that parbake writes have less
than a hundredth of that. Whoever can write to a store could have us read whatever lies there."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's content, and what names this state of it for ``replace``."""

    content: bytes
    version: str


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object in a list: its name, its bytes, and when it was written (UTC)."""

    name: str
    size: int
    modified: datetime


class Store(Protocol):
    """A folder or a bucket. Every call raises ParbakeError where the store cannot be asked."""

    @property
    def url(self) -> str:
        """What the user calls it."""

    def get(self, name: str, most: int = MOST) -> StoredObject | None:
        """Return an object, None where there is none. Raises TooLarge where it has more than ``most`` bytes."""

    def add(self, name: str, content: bytes) -> bool:
        """Write an object that does not exist yet; False where it does, whose content stays."""

    def replace(self, name: str, content: bytes, version: str) -> bool:
        """Write an object whose state is still ``version``; False where it is another one, or gone."""

    def list(self, prefix: str) -> Iterator[ListedObject]:
        """Yield the objects whose names begin so, in any order."""

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is fine."""


def listed(store: Store, prefix: str, pattern: re.Pattern[str]) -> Iterator[ListedObject]:
    """Yield the objects whose names begin so and are as parbake makes them: what others put there is left alone."""
    return (each for each in store.list(prefix) if pattern.fullmatch(each.name))


class TooLarge(BadContent):
    """An object has more bytes than whoever asks for it wants. ``version`` names its state, for ``replace``."""

    json_name = BadContent.json_name

    def __init__(self, name: str, url: str, most: int, version: str) -> None:
        super().__init__(
            f"{name} in {url} has more than {most} bytes", hint="somebody has changed the store: remove the object"
        )
        self.version = version


def state_of(store: Store, name: str, most: int = MOST) -> StoredObject | None:
    """Return an object that may be damaged, as ``get`` does: one that is too large without its content."""
    try:
        return store.get(name, most)
    except TooLarge as error:
        return StoredObject(b"", error.version)


_IDENTITY = "identity"
_WORD = re.compile(rb"[0-9a-f]{16}\n")


def identity_of(store: Store, *, make: bool = False) -> str:
    """Return the word that names a store; empty where it has none yet, unless one is to be made.

    Folders of one path on two machines are two stores, and must not be taken for one.

    Raises BadContent, and what asking raises.
    """
    held = store.get(_IDENTITY)
    if held is None and make:
        store.add(_IDENTITY, f"{os.urandom(8).hex()}\n".encode())
        held = store.get(_IDENTITY)
    if held is None:
        return ""
    if not _WORD.fullmatch(held.content):
        raise BadContent(f"{_IDENTITY} in {store.url} is not a valid store identity", hint="remove it")
    return held.content.decode().strip()
