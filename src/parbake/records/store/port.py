"""What parbake needs of an object store: objects that are put if absent, replaced if unchanged, listed and removed.

Names are those of S3 keys below a prefix: parts of letters, digits and ``._-``, with ``/`` between them. Whoever
implements this keeps one promise above all: of two writers that ``add`` one name, exactly one is told True.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's content, and what names this state of it for ``replace``."""

    content: bytes
    version: str


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a list: its name, its bytes, and when it was written (UTC)."""

    name: str
    size: int
    modified: datetime


class Store(Protocol):
    """A folder or a bucket. Every call raises ParbakeError where the store cannot be asked."""

    @property
    def url(self) -> str:
        """What the user calls it."""

    def get(self, name: str) -> StoredObject | None:
        """Return an object, None where there is none."""

    def add(self, name: str, content: bytes) -> bool:
        """Write an object that does not exist yet; False where it does, whose content stays."""

    def replace(self, name: str, content: bytes, version: str) -> bool:
        """Write an object whose state is still ``version``; False where it is another one, or gone."""

    def list(self, prefix: str) -> Iterator[Listed]:
        """Yield the objects whose names begin so, in any order."""

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is fine."""
