"""As whom a Bakefile's work is done in AWS: in its role, where it names one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from parbake.bakefile import Bakefile, load


@contextmanager
def acting(bakefile: Bakefile) -> Iterator[None]:
    """Act in the role of a Bakefile's ``aws`` section; clients that are made inside keep it."""
    if not bakefile.aws.role:
        yield
        return
    from parbake.aws import acting_as  # loads only where AWS is asked

    with acting_as(bakefile.aws.role, bakefile.aws.external_id):
        yield


@contextmanager
def opened(bakefile_path: Path, overrides: Mapping[str, str] | None = None) -> Iterator[Bakefile]:
    """Load a Bakefile, and act in its role meanwhile; ``overrides`` replace keys of it. Raises BakefileError."""
    bakefile = load(bakefile_path, overrides)
    with acting(bakefile):
        yield bakefile
