"""Machines that tests boot: each is emulated as a rule, and takes a processor (see ``tests/scheduling.py``)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from parbake.machine.vm import Machine


@pytest.fixture(scope="module", autouse=True)
def _one_processor() -> Iterator[None]:
    """Machines that tests' own processes start have one: two that are emulated take a tenth more work for the same."""
    defaults = Machine.__init__.__kwdefaults__
    assert defaults
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(defaults, "cpus", 1)
        yield
