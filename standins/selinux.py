"""Roots that enforce a SELinux policy: Debian's own, as the package selinux-policy-default puts it onto a machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from parbake.core.events import Events
from parbake.core.run import run
from parbake.machine import disk
from parbake.machine.vm import agent_credentials

POLICY = Path("/etc/selinux/default")
CONTEXTS = "etc/selinux/default/contexts/files/file_contexts"
LABEL = "security.selinux"

_AGENT = "usr/local/lib/parbake-agent.py"
# Debian's boolean, which Fedora's policy has on: `mount` puts a volume into a folder with another program's label.
_MOUNTS = "echo 1 >{0}/booleans/allow_mount_anyfile && echo 1 >{0}/commit_pending_bools".format("/sys/fs/selinux")

_SELINUX = """
[plugins."io.containerd.cri.v1.runtime"]
enable_selinux = true
"""


def enforce(root: Path, *, mode: str = "enforcing") -> Path:
    """Put the policy's lists into a root and let it enforce them; return the root, all of whose files have labels."""
    lists = root / CONTEXTS
    lists.parent.mkdir(parents=True, exist_ok=True)
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


def enforcing_node(newer: Path, image: Path) -> Path:
    """Make the image of a node with containerd 2 (``base.newer_node``) whose kernel enforces the policy.

    Its containers have labels.
    Its systemd starts the guest agent from a file: Debian's policy lets nothing write in ``/run`` that is made of
    credentials or, since it has no rules for it, cloud-init.
    """
    disk.copy_sparse(newer, image, Events())
    with disk.private_mounts():
        at = disk.find_root(image)
        where = image.with_suffix(".mnt")
        with disk.mount(image, where, offset=at.start, size=at.size, filesystem=at.filesystem) as mounted:
            root = mounted.path
            shutil.copytree(POLICY, root / "etc/selinux/default")
            # The kernel knows an older version of the format: systemd translates it by this library.
            [library] = Path("/usr/lib").glob("*/libsepol.so.2")
            shutil.copy(library, root / library.relative_to("/"))
            _replace(root / "boot/grub/grub.cfg", " ro quiet", " ro quiet security=selinux selinux=1")
            with (root / "etc/containerd/config.toml").open("a") as file:
                file.write(_SELINUX)
            _start_agent(root)
            enforce(root)
    return image


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _start_agent(root: Path) -> None:
    """Write down what credentials make of themselves (systemd-debug-generator(8))."""
    units = root / "etc/systemd/system"
    for name, content in agent_credentials().items():
        if unit := name.partition("systemd.extra-unit.")[2]:
            text = content.decode().replace("/run/credentials/@system/parbake.agent", f"/{_AGENT}")
            assert _AGENT in text
            (units / unit).write_text(text.replace("[Service]\n", f"[Service]\nExecStartPre=/bin/sh -c '{_MOUNTS}'\n"))
        elif unit := name.partition("systemd.unit-dropin.")[2]:
            (units / f"{unit}.d").mkdir(exist_ok=True)
            (units / f"{unit}.d/parbake.conf").write_bytes(content)
        else:
            (root / _AGENT).parent.mkdir(parents=True, exist_ok=True)
            (root / _AGENT).write_bytes(content)
