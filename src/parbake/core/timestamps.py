"""Times as RFC 3339 in UTC, to the second: as records, traces and tags hold them."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

_FORM: Final = "%Y-%m-%dT%H:%M:%SZ"


def timestamp(at: datetime | None = None) -> str:
    """Return a time in UTC as text, now if none is given: ``2026-11-28T16:30:00Z``."""
    return (at or datetime.now(UTC)).strftime(_FORM)


def read_timestamp(text: str) -> datetime | None:
    """Return the time that ``timestamp`` wrote; None for any other text."""
    with suppress(ValueError):
        return datetime.strptime(text, _FORM).replace(tzinfo=UTC)
    return None
