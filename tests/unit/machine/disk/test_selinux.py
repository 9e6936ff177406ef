"""Which SELinux policy a root enforces."""

from __future__ import annotations

from pathlib import Path

import pytest

from parbake.core.errors import BadBase
from parbake.machine.disk import file_contexts, label
from parbake.machine.disk.selinux import policy_of


@pytest.mark.parametrize(
    ("config", "policy"),
    [
        ("SELINUX=enforcing\nSELINUXTYPE=targeted\n", "targeted"),
        ("# SELINUX=disabled\n  SELINUX = Enforcing \nSELINUXTYPE=mls\n", "mls"),
        ("SELINUX=enforcing\n", "targeted"),
        ("SELINUX=permissive\nSELINUXTYPE=targeted\n", ""),
        ("SELINUX=disabled\n", ""),
        ("#SELINUX=enforcing\n", ""),
        ("", ""),
    ],
)
def test_the_policy_that_is_enforced(config: str, policy: str) -> None:
    assert policy_of(config) == policy


@pytest.mark.parametrize("kind", ["targeted", "..", "missing"])
def test_the_list_of_its_labels(tmp_path: Path, kind: str) -> None:
    assert file_contexts(tmp_path) is None
    label(tmp_path, [tmp_path])  # nothing to do
    lists = tmp_path / "etc/selinux/targeted/contexts/files/file_contexts"
    lists.parent.mkdir(parents=True)
    lists.write_text("")
    (tmp_path / "etc/selinux/config").write_text(f"SELINUX=enforcing\nSELINUXTYPE={kind}\n")
    if kind == "targeted":
        assert file_contexts(tmp_path) == lists
    else:
        with pytest.raises(BadBase, match=f"policy {kind}"):
            file_contexts(tmp_path)
