"""The hydrate service has labels in a root that enforces SELinux."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parbake.coldstart import hydrate
from parbake.core.errors import BadBase
from parbake.core.run import run
from parbake.machine.disk import label
from standins.selinux import CONTEXTS, enforce, wrong

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


def test_labels_come_from_the_text_of_a_policy_and_not_from_what_somebody_compiled(tmp_path: Path) -> None:
    """Compiled lists are memory of PCRE's, and links among the lists would show files of this machine."""
    root = enforce(tmp_path)
    lists = root / CONTEXTS
    other = tmp_path / "other"
    other.write_text("/.* system_u:object_r:shadow_t:s0\n")
    run(["sefcontext_compile", "-o", f"{lists}.bin", str(other)])
    Path(f"{lists}.local").symlink_to(other)
    (tmp_path / "file").write_text("")
    label(root, [tmp_path / "file"])
    assert b"shadow_t" not in os.getxattr(tmp_path / "file", "security.selinux")
    with lists.open("ab") as file:
        file.truncate(17 << 20)
    with pytest.raises(BadBase, match="larger than 16 MiB"):
        label(root, [tmp_path / "file"])
