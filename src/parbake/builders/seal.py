"""Seal a machine image: take out what belongs to one machine, so that every node begins as itself.

The list follows what image builders of this field clean (cloud-init's own ``clean``, systemd's "golden image" rules,
the EKS AMI's clean-up) and nothing more: configuration that the base came with stays. Symbolic links are never
followed out of the root.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from parbake.core.workspace import remove
from parbake.machine.disk import inside

# Removed: identity and state of a machine that ran, secrets of a bake, leases, histories. Patterns below the root.
REMOVED = (
    "etc/ssh/ssh_host_*_key",
    "etc/ssh/ssh_host_*_key.pub",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "var/lib/cloud/data",
    "var/lib/cloud/instance",
    "var/lib/cloud/instances",
    "var/lib/cloud/sem",
    "run/cloud-init",
    "var/lib/dhcp/*.lease*",
    "var/lib/dhcpcd/*.lease*",
    "var/lib/dhclient/*.lease*",
    "var/lib/NetworkManager/*.lease",
    "var/lib/NetworkManager/secret_key",
    "var/lib/systemd/network/*",
    "root/.*_history",
    "home/*/.*_history",
    "root/.docker/config.json",
    "home/*/.docker/config.json",
    "root/.config/containers/auth.json",
    "var/lib/kubelet/config.json",
    "var/lib/kubelet/pki",
    "var/lib/kubelet/pods",
    "var/lib/kubelet/plugins",
    "var/lib/kubelet/plugins_registry",
    "var/lib/kubelet/image_manager",
    "var/lib/kubelet/cpu_manager_state",
    "var/lib/kubelet/memory_manager_state",
    "tmp/*",
    "var/tmp/*",
)
# What EKS's `nodeadm init` writes at each boot (awslabs/amazon-eks-ami, nodeadm/internal). Only where nodeadm is:
# Amazon Linux 2 comes with the kubeconfig as a template, and elsewhere containerd's configuration is the image's own.
_NODEADM = "usr/bin/nodeadm"
REMOVED_WITH_NODEADM = (
    "etc/containerd/base-runtime-spec.json",
    "etc/containerd/config.toml",
    "etc/eks/image-credential-provider/config.json",
    "etc/eks/kubelet/environment",
    "etc/kubernetes/kubelet/config.json",
    "etc/kubernetes/kubelet/config.json.d/*",
    "etc/kubernetes/pki/ca.crt",
    "run/eks/nodeadm",
    "var/lib/kubelet/bootstrap-kubeconfig",
    "var/lib/kubelet/kubeconfig",
)
# Emptied: the file itself must stay. systemd takes an empty machine-id as "make one at the first boot"
# (machine-id(5)); an absent one makes /etc read-only images fail.
EMPTIED = ("etc/machine-id",)
# Logs: folders and their owners stay, since services expect them; what they hold goes.
LOGS = ("var/log",)
# A machine's own name and resolver, written by DHCP or cloud-init. A link (to systemd-resolved) is configuration.
UNLESS_LINK = ("etc/resolv.conf",)
_HOSTNAME = "etc/hostname"
# What images call "no name yet"; everything else is the name of the machine that the image was taken from.
_NAMELESS = {"localhost", "localhost.localdomain", ""}


def seal(root: Path) -> tuple[str, ...]:
    """Clean a mounted root file system and return the paths (below it) that were removed or emptied, sorted.

    Sealing again changes nothing. Raises OSError when a file cannot be removed.
    """
    changed = [*_remove(root), *_empty(root), *_clear_logs(root), *_forget_names(root)]
    return tuple(sorted({str(path.relative_to(root)) for path in changed}))


def _remove(root: Path) -> Iterator[Path]:
    nodeadm = inside(root, _NODEADM).is_file()
    for pattern in (*REMOVED, *(REMOVED_WITH_NODEADM if nodeadm else ())):
        folder, _, name = pattern.rpartition("/")
        for place in _folders(root, folder):
            for path in sorted(place.glob(name)):
                remove(path)
                yield path


def _folders(root: Path, pattern: str) -> Iterator[Path]:
    """Yield the folders that a pattern names, links followed inside the root only."""
    head, star, tail = f"{pattern}/".partition("/*/")
    if not star:
        place = inside(root, pattern)
        if place.is_dir():
            yield place
        return
    for entry in sorted(inside(root, head).glob("*")):
        place = inside(root, f"{entry.relative_to(root)}/{tail}")
        if place.is_dir():
            yield place


def _empty(root: Path) -> Iterator[Path]:
    for name in EMPTIED:
        path = inside(root, name)
        if path.is_file() and path.stat().st_size:
            path.write_bytes(b"")
            yield path


def _clear_logs(root: Path) -> Iterator[Path]:
    for name in LOGS:
        top = inside(root, name)
        for folder, _, files in top.walk(follow_symlinks=False):
            for file in files:
                path = folder / file
                if path.is_symlink():  # a link to where logs go is configuration
                    continue
                path.unlink()
                yield path


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(1024).decode(errors="replace")


def _forget_names(root: Path) -> Iterator[Path]:
    for name in UNLESS_LINK:
        path = root / name
        if inside(root, "etc") == root / "etc" and path.is_file() and not path.is_symlink():
            path.unlink()
            yield path
    hostname = inside(root, _HOSTNAME)
    if hostname.is_file() and _beginning(hostname).strip() not in _NAMELESS:
        hostname.unlink()
        yield hostname
