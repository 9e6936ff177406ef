"""So many files of tests boot machines at a time, in whatever process they run: an emulated one takes a processor."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from parbake.core.run import sleep
from parbake.machine.vm import Machine

SLOTS = max(1, int(os.environ.get("VM_JOBS", "3")))


@pytest.fixture(scope="module", autouse=True)
def _one_processor() -> Iterator[None]:
    """Machines that tests' own processes start have one: two that are emulated take a tenth more work for the same."""
    defaults = Machine.__init__.__kwdefaults__
    assert defaults
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(defaults, "cpus", 1)
        yield


@pytest.fixture(scope="module", autouse=True)
def _slot() -> Iterator[None]:
    """Wait until one of the places for machines is free; it is again when its process ends, however that ends."""
    with ExitStack() as stack:
        folder = Path(tempfile.gettempdir())
        names = [folder / f"parbake-tests-vm.{number}" for number in range(SLOTS)]
        handles = [stack.enter_context(name.open("w")) for name in names]
        while not any(_locked(handle.fileno()) for handle in handles):
            sleep(0.2)
        yield


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
