"""Finding containerd and its settings in a root file system that is not ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parbake.core.errors import BadBase
from parbake.machine.disk import find_runtime, inside


def install(root: Path, config: str | None, program: str = "usr/bin/containerd") -> Path:
    path = root / program
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("binary")
    if config is not None:
        (root / "etc/containerd").mkdir(parents=True, exist_ok=True)
        (root / "etc/containerd/config.toml").write_text(config)
    return root


V2 = """
version = 2
root = "/data/containerd"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:2"
"""
V3 = """
version = 3
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "localhost/pause:3"
"""


@pytest.mark.parametrize(
    ("config", "store", "sandbox"),
    [
        (None, "var/lib/containerd", ""),
        (V2, "data/containerd", "localhost/pause:2"),
        (V3, "var/lib/containerd", "localhost/pause:3"),
    ],
)
@pytest.mark.parametrize("program", ["usr/bin/containerd", "usr/local/bin/containerd"])
def test_settings(tmp_path: Path, config: str | None, store: str, sandbox: str, program: str) -> None:
    found = find_runtime(install(tmp_path, config, program))
    assert (found.root, found.sandbox_image) == (tmp_path / store, sandbox)
    assert found.root.is_dir()


def test_imports_win(tmp_path: Path) -> None:
    install(tmp_path, 'imports = ["/etc/containerd/conf.d/*.toml"]\n' + V2)
    (tmp_path / "etc/containerd/conf.d").mkdir()
    (tmp_path / "etc/containerd/conf.d/a.toml").write_text(
        'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "localhost/pause:imported"\n'
    )
    found = find_runtime(tmp_path)
    assert (found.root, found.sandbox_image) == (tmp_path / "data/containerd", "localhost/pause:imported")


def test_bases_that_cannot_be_filled(tmp_path: Path) -> None:
    with pytest.raises(BadBase, match="no containerd"):
        find_runtime(tmp_path)
    (tmp_path / "usr/local/bin").mkdir(parents=True)
    (tmp_path / "usr/local/bin/rke2").touch()
    with pytest.raises(BadBase, match="the base runs rke2") as raised:
        find_runtime(tmp_path)
    assert "root: /var/lib/rancher/rke2/agent/containerd" in raised.value.hint
    with pytest.raises(BadBase, match="cannot be read"):
        find_runtime(install(tmp_path, "version = "))
    with pytest.raises(BadBase, match="stargz"):
        find_runtime(install(tmp_path, V3.replace("overlayfs", "stargz")))


def test_a_store_behind_a_link_is_found_inside(tmp_path: Path) -> None:
    """AL2-like images keep the store on another folder; a hostile one points out of the root."""
    install(tmp_path, None)
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "var/lib/containerd").symlink_to("/../../mnt/data")
    assert find_runtime(tmp_path).root == tmp_path / "mnt/data"


def test_paths_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/b")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/up").symlink_to("../../../etc")
    (tmp_path / "round").symlink_to("round")
    assert inside(tmp_path, "/a/x") == tmp_path / "b/x"
    assert inside(tmp_path, "a/up/passwd") == tmp_path / "etc/passwd"
    assert inside(tmp_path, "../../etc") == tmp_path / "etc"
    with pytest.raises(BadBase, match="links"):
        inside(tmp_path, "round/x")


def test_a_pipe_in_place_of_the_configuration_does_not_hang(tmp_path: Path) -> None:
    install(tmp_path, None)
    (tmp_path / "etc/containerd").mkdir(parents=True)
    os.mkfifo(tmp_path / "etc/containerd/config.toml")
    assert find_runtime(tmp_path).sandbox_image == ""


@pytest.mark.parametrize(
    "config",
    [
        'plugins = "none"\n', "root = 7\n", "imports = [1]\n", 'root = "/etc/canary/store"\n', 'root = "/etc/canary"\n',
        'imports = [""]\n', f"x = {'[' * 5000}", f"x = {'9' * 5000}", f'root = "{"x" * 300}"\n',
        "[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 3\n",
    ],
)  # fmt: skip
def test_a_configuration_of_other_shapes_is_refused_in_words(tmp_path: Path, config: str) -> None:
    root = install(tmp_path, f"version = 2\n{config}")
    (root / "etc/canary").write_text("a file")
    with pytest.raises(BadBase, match="the base"):
        find_runtime(root)
