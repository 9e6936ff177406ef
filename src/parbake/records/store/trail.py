"""The trail of what was done to targets: objects that are written once and kept for longer than artefacts.

``events/DATE/TIME-NAME-DIGEST.json``: what happened, by a name that follows from it, so that who writes it twice writes
it once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta

from parbake.records.store.port import Store

FOLDER = "events/"
KEPT = timedelta(days=400)
"""Thirteen months: who has to show a year of it, such as PCI DSS asks for, has it also a month later."""
_NAME = re.compile(
    rf"{FOLDER}(?P<day>[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})/[0-9]{{6}}\.[0-9]{{6}}-(?P<of>.+)-[0-9a-f]{{12}}\.json"
)


def write(store: Store, at: datetime, of: str, content: bytes) -> None:
    """Make sure that the store has what happened ``at`` a time to something, the same once."""
    now = at.astimezone(UTC)
    digest = hashlib.sha256(content).hexdigest()[:12]
    store.add(f"{FOLDER}{now:%Y-%m-%d}/{now:%H%M%S.%f}-{of}-{digest}.json", content)


def names(store: Store, of: str) -> list[str]:
    """Return the names of what has happened to something, the newest first."""
    return sorted((name for name, found in _listed(store) if found["of"] == of), reverse=True)


def sweep(store: Store, now: datetime) -> None:
    """Remove what is older than ``KEPT``."""
    for name, found in list(_listed(store)):
        if now.date() - date.fromisoformat(found["day"]) > KEPT:
            store.remove(name)


def _listed(store: Store) -> Iterator[tuple[str, re.Match[str]]]:
    for each in store.list(FOLDER):
        if (found := _NAME.fullmatch(each.name)) and _is_day(found["day"]):
            yield each.name, found


def _is_day(text: str) -> bool:
    with suppress(ValueError):
        return bool(date.fromisoformat(text))
    return False
