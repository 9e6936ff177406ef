"""Roots that enforce a SELinux policy: Debian's own, as the package selinux-policy-default puts it onto a machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from parbake.core.run import run

POLICY = Path("/etc/selinux/default")
CONTEXTS = "etc/selinux/default/contexts/files/file_contexts"


def enforce(root: Path, *, mode: str = "enforcing") -> Path:
    """Put the policy's lists into a root and let it enforce them; return the root, all of whose files have labels."""
    lists = root / CONTEXTS
    lists.parent.mkdir(parents=True)
    for each in (POLICY / "contexts/files").iterdir():
        shutil.copy(each, lists.parent)
    (root / "etc/selinux/config").write_text(f"# made by a test\nSELINUX={mode}\nSELINUXTYPE=default\n")
    relabel(root)
    return root


def relabel(root: Path) -> None:
    """Give all files of a root the labels of its policy, as a machine does at its first boot."""
    run(["setfiles", "-m", "-r", str(root), str(root / CONTEXTS), str(root)])


def wrong(root: Path) -> str:
    """Return what setfiles would change in a root: a line for each file, nothing where all labels are right."""
    return run(["setfiles", "-n", "-v", "-m", "-r", str(root), str(root / CONTEXTS), str(root)]).text
