"""The default base, built once for all tests (and for the demo) in the user's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from parbake import base
from parbake.events import Events
from parbake.workspace import cache_folder


@pytest.fixture(scope="session")
def default_base() -> Path:
    """The raw disk of the default base. Never write to it."""
    return base.ensure(cache_folder(), Events())
