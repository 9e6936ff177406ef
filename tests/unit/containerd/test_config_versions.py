"""Whoever reads how a node's containerd is configured reads every version of the format alike.

Version 2 is that of containerd 1.x, 3 came with 2.0, and 4 with 2.3, where the server's settings are plugins' as well
(containerd, RELEASES.md and containerd-config.toml(5)).
"""

from __future__ import annotations

import re
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from textwrap import indent
from types import SimpleNamespace
from typing import Any

import pytest

from parbake.core.nodefiles import node_file
from parbake.machine.disk.roots import find_runtime
from parbake.rollouts import nodesettings
from parbake.verify import within
from parbake.verify.booted import Settings, settings_of

SANDBOX, STORE = "localhost/kubernetes/pause:latest", "/data/containerd"
_IMAGES, _RUNTIME = "plugins.'io.containerd.cri.v1.images'", "plugins.'io.containerd.cri.v1.runtime'"
_SINCE_3 = f"""
[{_IMAGES}]
snapshotter = "overlayfs"
[{_IMAGES}.pinned_images]
sandbox = "{SANDBOX}"
[{_RUNTIME}.containerd]
default_runtime_name = "runc"
[{_RUNTIME}.containerd.runtimes.runc.options]
SystemdCgroup = true
"""
VERSIONS = {
    2: f"""
version = 2
root = "{STORE}"
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{SANDBOX}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = true
""",
    3: f'version = 3\nroot = "{STORE}"\n[grpc]\naddress = "/run/containerd/containerd.sock"\n{_SINCE_3}',
    4: f"""
version = 4
root = "{STORE}"
[plugins.'io.containerd.server.v1.grpc']
address = "/run/containerd/containerd.sock"
{_SINCE_3}""",
}


def of_a_base(text: str, folder: Path) -> tuple[str, str]:
    for name, content in {"usr/bin/containerd": "binary", "etc/containerd/config.toml": text}.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content)
    found = find_runtime(folder)
    return f"/{found.root.relative_to(folder)}", found.sandbox_image


def of_a_booted_node(text: str, folder: Path) -> tuple[str, str]:
    del folder
    found = settings_of(text)
    assert found == Settings(SANDBOX, systemd_cgroups=True)
    return STORE, found.sandbox


def of_a_node_config(text: str, folder: Path) -> tuple[str, str]:
    del folder
    head = "apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec:\n  containerd:\n    config: |\n"
    found = nodesettings.read(head + indent(text.lstrip(), " " * 6))
    assert found.snapshotter == "overlayfs"
    return STORE, found.sandbox


def of_a_node_that_mounts(text: str, folder: Path) -> tuple[str, str]:
    program = node_file("mount.sh").read_text().partition("\nwait_for_disk()")[0]
    (folder / "config.toml").write_text(text)
    environment = {"PARBAKE_CONTAINERD_CONFIG": str(folder / "config.toml"), "PATH": "/usr/bin:/bin"}
    command = ["/bin/dash", "-c", f"{program}\nstore; wanted_sandbox"]
    store, sandbox = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return store, sandbox


def of_an_instance(text: str, folder: Path) -> tuple[str, str]:
    """The script of an instance reads the store's place, its program for proving the pause image."""
    (folder / "config.toml").write_text(text)
    (line,) = re.findall(r"^ *(STORE=\$\(containerd config dump .*)$", node_file("guest.sh").read_text(), re.MULTILINE)
    dump = f"containerd() {{ cat {folder}/config.toml; }}"
    store = subprocess.run(
        ["/bin/dash", "-c", f"{dump}\n{line}\necho $STORE"], capture_output=True, text=True, check=True
    )
    program = folder / "prove.py"
    program.write_text(within.program())
    module: Any = SimpleNamespace(**runpy.run_path(str(program)))
    runtime = module.Containerd.__new__(module.Containerd)
    runtime.config, runtime.found = text, lambda name: (name, True)
    assert runtime.sandbox("") == ("", "")
    return store.stdout.strip(), runtime.pause


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("read", [of_a_base, of_a_booted_node, of_a_node_config, of_a_node_that_mounts, of_an_instance])
def test_every_version_is_read_alike(
    read: Callable[[str, Path], tuple[str, str]], version: int, tmp_path: Path
) -> None:
    assert read(VERSIONS[version], tmp_path) == (STORE, SANDBOX)
