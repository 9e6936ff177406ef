#!/usr/bin/env python3
"""The last Packer of a free licence (1.6.6, which `make setup` fetches), and a node that it reaches by SSH.

Run as a program, it stands for ``packer`` on PATH: takes out of the template what is newer than 1.6.6 (``NEWER``), adds
where EC2's stand-in and the node's sshd are, and becomes the real one. 1.6.6 has its plugins built in and knows no
``init``.

The node is a folder with this machine's ``/usr``, read-only, and everything else its own, in namespaces of its own:
what is sealed there is not this machine. Its user has the number of root, since no ``sudo`` is at hand, and its ``ctr``
speaks to a containerd of the test's.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NEWER = (
    "ami_org_arns", "ami_ou_arns", "deprecate_at", "imds_support", "metadata_options",
    "temporary_security_group_source_public_ip",
)  # fmt: skip
"""What the template says of an instance and an AMI that 1.6.6 does not know; today's Packer's own work is unproven."""
REAL = Path(sys.prefix) / "newer/usr/bin/packer"
_PLACE, _REPLACED = "PACKER_TEST_PLACE", 'communicator                              = "ssh"'

_SSHD = """\
Port {port}
ListenAddress 127.0.0.1
HostKey /etc/ssh/ssh_host_ed25519_key
PidFile none
UsePAM no
PasswordAuthentication no
# EC2 makes RSA keys for Packer 1.6.6, whose library signs with them as OpenSSH no longer likes.
PubkeyAcceptedAlgorithms +ssh-rsa
"""
_PROGRAMS = {
    "sudo": 'exec "$@"',
    "systemctl": 'echo "systemctl $*" >> /calls',
    "shutdown": 'echo "shutdown $*" >> /calls',
    "fstrim": "exit 0",
    "ctr": 'exec /usr/bin/ctr -a /run/containerd.sock "$@"',
}
_ENTER = """\
set -eu
cd "$1"
mount --bind /usr usr
mount -o remount,ro,bind usr
mount --bind programs usr/local/bin
mount --bind "$2" run
for device in null zero urandom; do touch dev/$device; mount --bind /dev/$device dev/$device; done
mount -t proc proc proc
exec chroot . /usr/sbin/sshd -D -e
"""


def packer() -> str:
    """Return the real program's path."""
    if not REAL.exists() and not os.environ.get("CI"):
        pytest.skip("no Packer is in .venv/newer: `make setup` fetches it where apt has a mirror of Debian")
    assert REAL.exists(), "CI must have Packer: tools/fetch-newer says why it has not"
    return str(REAL)


def on_path(folder: Path, endpoint: str, port: int) -> dict[str, str]:
    """Put this program into a folder as ``packer``; return the environment in which parbake finds it."""
    packer()
    program = folder / "packer"
    folder.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} "$@"\n')
    program.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin", _PLACE: f"{endpoint} {port}"}


def fitted(text: str, *, also: str = "") -> str:
    """Return the text of node.pkr.hcl for 1.6.6, with more lines for the instance."""
    text = re.sub(r"(?ms)^packer \{.*?^\}\n", "", text)
    for name in NEWER:
        text, found = re.subn(rf"(?ms)^  {name} +(?:=[^\n]*|\{{.*?^  \}})\n", "", text)
        assert found == 1, name
    assert _REPLACED in text
    return text.replace(_REPLACED, f"{_REPLACED}\n{also}")


@contextmanager
def node(folder: Path, port: int, containerd: Path) -> Iterator[Path]:
    """Run a node's sshd; yield its root. ``containerd`` is the folder of the socket that its ctr uses."""
    from parbake.core.run import Deadline, Process, run

    root = folder / "node"
    for name in ("usr", "programs", "run", "dev", "proc", "tmp", "etc/ssh", "home/ec2-user/.ssh", "var/log", "root"):
        (root / name).mkdir(parents=True)
    (root / "home/ec2-user/.ssh").chmod(0o700)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    for name, text in _PROGRAMS.items():
        (root / "programs" / name).write_text(f"#!/bin/sh\n{text}\n")
        (root / "programs" / name).chmod(0o755)
    people = "ec2-user:x:0:0::/home/ec2-user:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
    (root / "etc/passwd").write_text(people)
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (root / "etc/ssh/sshd_config").write_text(_SSHD.format(port=port))
    (root / "var/log/messages").write_text("booted\n")
    (containerd / "sshd").mkdir(mode=0o755)
    key = root / "etc/ssh/ssh_host_ed25519_key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "node", str(root), str(containerd)]
    with Process(command, log=folder / "sshd.log", own_pids=True) as sshd:
        deadline = Deadline(60, "sshd listens")
        while "listening" not in (folder / "sshd.log").read_text():
            sshd.check_alive()
            deadline.sleep(0.02)
        yield root


def main() -> None:
    """Do as ``packer``."""
    verb, *rest = sys.argv[1:]
    if verb == "init":
        return
    endpoint, port = os.environ[_PLACE].split()
    template = Path(rest[-1]) / "node.pkr.hcl"
    if "custom_endpoint_ec2" not in (text := template.read_text()):
        template.write_text(fitted(text, also=f'  custom_endpoint_ec2 = "{endpoint}"\n  ssh_port = {port}\n'))
    os.execv(REAL, ["packer", verb, *rest])  # noqa: S606 (becomes it, so that signals reach it)


if __name__ == "__main__":
    main()
