"""The containerd of a newer Debian, which is nearer to what nodes run today: `make setup` fetches it into .venv/newer.

    PROGRAMS = [pytest.param(MACHINES, id="1.7"), pytest.param(NEWER, id="2")]
    with Daemon(root, folder, containerd=program_of(which)) as daemon: ...

Where it could not be had, tests with it are skipped and say so; in CI they fail.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from parbake.core import run

MACHINES, NEWER = "installed", "newer"

FOLDER = Path(sys.prefix) / "newer"
_PROGRAM = FOLDER / "usr/bin/containerd"


def program_of(which: str) -> str:
    """Return the path of a containerd: the machine's own, or the newer one."""
    if which == MACHINES:
        return run.need("containerd")
    if not _PROGRAM.exists() and not os.environ.get("CI"):
        pytest.skip("no containerd 2 is in .venv/newer: `make setup` fetches it where apt has a mirror of Debian")
    assert _PROGRAM.exists(), "CI must have containerd 2: tools/fetch-newer says why it has not"
    return str(_PROGRAM)
