"""As whom a Bakefile's work is done in AWS: in its role, where it names one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from parbake.bakefile import Bakefile, load
from parbake.core.roles import Role


def role_of(bakefile: Bakefile) -> Role | None:
    """Return the role of a Bakefile's ``aws`` section; None where it names none."""
    return Role(bakefile.aws.role, bakefile.aws.external_id or "") if bakefile.aws.role else None


@contextmanager
def acting(bakefile: Bakefile) -> Iterator[None]:
    """Act in the roles of a Bakefile's ``aws`` section; clients that are made inside keep them."""
    if not bakefile.aws.role and not bakefile.aws.copy_roles:
        yield
        return
    from parbake.aws import acting_as  # loads only where AWS is asked

    with acting_as(bakefile.aws.role, bakefile.aws.external_id, places=bakefile.aws.copy_roles):
        yield


@contextmanager
def opened(bakefile_path: Path, overrides: Mapping[str, str] | None = None) -> Iterator[Bakefile]:
    """Load a Bakefile, and act in its role meanwhile; ``overrides`` replace keys of it. Raises BakefileError."""
    bakefile = load(bakefile_path, overrides)
    with acting(bakefile):
        yield bakefile
