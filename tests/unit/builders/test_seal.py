"""Sealing: what belongs to one machine goes, what belongs to the image stays, and nothing outside is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from parbake.builders.seal import seal

GONE = {
    "etc/hostname": "ip-10-0-0-7\n",
    "etc/resolv.conf": "nameserver 10.0.0.2\n",
    "etc/ssh/ssh_host_ed25519_key": "secret",
    "etc/ssh/ssh_host_ed25519_key.pub": "public",
    "home/ec2-user/.bash_history": "ls",
    "home/ec2-user/.docker/config.json": "{}",
    "root/.bash_history": "ls",
    "root/.zsh_history": "ls",
    "root/.config/containers/auth.json": "{}",
    "root/.docker/config.json": '{"auths": {}}',
    "var/lib/cloud/data/instance-id": "i-1",
    "var/lib/cloud/instances/i-1/user-data.txt": "x",
    "var/lib/cloud/sem/config_scripts.once": "",
    "var/lib/dhclient/dhclient--eth0.lease": "lease",
    "var/lib/dhcp/dhclient.leases": "lease",
    "var/lib/dhcpcd/eth0.lease": "lease",
    "var/lib/kubelet/cpu_manager_state": "{}",
    "var/lib/kubelet/image_manager/pulling/x": "{}",
    "var/lib/kubelet/pods/1/x": "",
    "var/lib/kubelet/pki/kubelet.crt": "",
    "var/log/cloud-init.log": "booted",
    "var/log/journal/0123/system.journal": "binary",
    "var/log/nginx/access.log.1.gz": "binary",
}
KEPT = {
    "etc/containerd/config.toml": "version = 2",
    "etc/netplan/50.yaml": "network: {}",
    "etc/os-release": "ID=sample",
    "etc/ssh/sshd_config": "Port 22",
    "home/ec2-user/.ssh/authorized_keys": "ssh-ed25519 the owner's own",
    "root/.bashrc": "alias ll='ls -l'",
    "root/.docker/cli-plugins/docker-x": "binary",
    "var/lib/cloud/seed/nocloud/meta-data": "the image's own seed",
    "var/lib/cloud/scripts/per-boot/hello.sh": "#!/bin/sh",
    "var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db": "images",
    "var/lib/kubelet/kubeconfig": "a template, on Amazon Linux 2",
}


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def files_of(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() or path.is_symlink()}


def test_what_belongs_to_one_machine_goes_and_nothing_else(tmp_path: Path) -> None:
    plant(tmp_path, {**GONE, **KEPT, "etc/machine-id": "0123456789abcdef0123456789abcdef\n"})
    (tmp_path / "var/lib/cloud/instance").symlink_to("/var/lib/cloud/instances/i-1")
    folders = {path for path in (tmp_path / "var/log").rglob("*") if path.is_dir()}
    said = seal(tmp_path)
    assert files_of(tmp_path) == set(KEPT) | {"etc/machine-id"}
    assert (tmp_path / "etc/machine-id").read_bytes() == b""
    assert set((tmp_path / "var/log").rglob("*")) == folders
    assert "etc/machine-id" in said
    assert "root/.docker/config.json" in said
    assert list(said) == sorted(said)


def test_sealing_again_changes_nothing(tmp_path: Path) -> None:
    plant(tmp_path, {**GONE, **KEPT, "etc/machine-id": "x"})
    assert seal(tmp_path)
    before = files_of(tmp_path)
    assert seal(tmp_path) == ()
    assert files_of(tmp_path) == before


def test_what_the_image_came_with_stays(tmp_path: Path) -> None:
    plant(tmp_path, {"etc/hostname": "localhost\n", "run/systemd/resolve/stub-resolv.conf": "nameserver 127.0.0.53"})
    (tmp_path / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (tmp_path / "var/log").mkdir(parents=True)
    (tmp_path / "var/log/pods").symlink_to("/data/pods")
    (tmp_path / "var/log/README").symlink_to("../../usr/share/doc/README.logs")
    before = files_of(tmp_path)
    assert seal(tmp_path) == ()
    assert files_of(tmp_path) == before


def test_what_nodeadm_writes_goes_where_nodeadm_is(tmp_path: Path) -> None:
    written = {
        "etc/containerd/config.toml": "version = 2",
        "etc/eks/kubelet/environment": "NODE=1",
        "etc/kubernetes/kubelet/config.json": "{}",
        "etc/kubernetes/kubelet/config.json.d/40-nodeadm.conf": "{}",
        "var/lib/kubelet/kubeconfig": "of this node",
    }
    plant(tmp_path, {**written, "usr/bin/nodeadm": "binary", "etc/eks/pause.tar": "the image's own"})
    assert set(seal(tmp_path)) == set(written)
    assert files_of(tmp_path) == {"usr/bin/nodeadm", "etc/eks/pause.tar"}


@pytest.mark.parametrize("escape", ["/", "../../../.."])
def test_links_lead_nowhere_outside(tmp_path: Path, escape: str) -> None:
    """A hostile image links its folders to ours: the link is resolved inside the image, where there is nothing."""
    outside, root = tmp_path / "outside", tmp_path / "root"
    plant(outside, GONE | {"etc/machine-id": "ours"})
    before = {name: (outside / name).read_text() for name in files_of(outside)}
    root.mkdir()
    prefix = str(outside) if escape == "/" else escape + str(outside)
    for name in ("etc", "root", "home", "var"):
        (root / name).symlink_to(f"{prefix}/{name}")
    seal(root)
    assert {name: (outside / name).read_text() for name in files_of(outside)} == before


def test_links_at_the_end_of_a_path_are_not_followed(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    plant(outside, {"file": "ours", "folder/file": "ours"})
    plant(root, {"etc/passwd": "x", "var/log/x": "x"})
    (root / "etc/machine-id").symlink_to(outside / "file")
    (root / "etc/hostname").symlink_to(outside / "file")
    (root / "var/log/linked").symlink_to(outside / "folder")
    (root / "var/lib/cloud").mkdir(parents=True)
    (root / "var/lib/cloud/data").symlink_to(outside / "folder")
    (root / "root/.docker").mkdir(parents=True)
    (root / "root/.docker/config.json").symlink_to(outside / "file")
    seal(root)
    assert (outside / "file").read_text() == "ours"
    assert (outside / "folder/file").read_text() == "ours"
    assert not (root / "var/lib/cloud/data").is_symlink()
    assert not (root / "root/.docker/config.json").is_symlink()


def test_a_root_without_any_of_it(tmp_path: Path) -> None:
    assert seal(tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


def test_a_hostname_of_any_length_goes(tmp_path: Path) -> None:
    plant(tmp_path, {"etc/hostname": "x"})
    with (tmp_path / "etc/hostname").open("wb") as file:
        file.truncate(1 << 40)
    assert "etc/hostname" in list(seal(tmp_path))
