"""The hydrate service has labels in a root that enforces SELinux."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parbake.coldstart import hydrate
from tests.fakes.selinux import enforce, wrong

pytestmark = pytest.mark.root


def test_the_hydrate_service_is_labelled(tmp_path: Path) -> None:
    root = tmp_path / "root"
    systemd = root / "usr/lib/systemd/systemd"
    systemd.parent.mkdir(parents=True)
    systemd.write_text("")
    (root / "etc/systemd/system").mkdir(parents=True)
    enforce(root)
    assert hydrate.install(root, "list\n", "files\n")
    assert wrong(root) == ""
    assert os.getxattr(root / hydrate.LIST, "security.selinux").startswith(b"system_u:object_r:")
