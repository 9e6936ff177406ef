"""The default base, built once for all tests (and for the demo) in the user's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from parbake.core.events import Events
from parbake.core.workspace import cache_folder
from parbake.machine import base


@pytest.fixture(scope="session")
def default_base() -> Path:
    """The raw disk of the default base. Never write to it."""
    return base.ensure(cache_folder(), Events())
