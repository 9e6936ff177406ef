"""What a bake writes into a base that enforces SELinux has the labels of the base's own policy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from parbake.machine import disk
from standins.disks import machine, node_tree
from standins.images import image, layer, push
from standins.registry import DockerRegistry
from standins.runs import bake, bakefile, parbake, private_places
from standins.selinux import LABEL, enforce, relabel, wrong

__all__ = ["private_places"]
pytestmark = pytest.mark.root

APP = image(layer({"srv/app": b"#!/bin/sh\n", "srv/deep/er/data": b"1" * 9000}), layer({"etc/more": b"more\n"}))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as served:
        push(served.url, "team/app", APP, "1")
        yield served


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_every_file_has_the_label_of_the_bases_policy(
    private_places: Path, registry: DockerRegistry, kind: str
) -> None:
    base = machine(private_places / "base.raw", "gpt", kind, enforce(node_tree(private_places / "tree")))
    root = disk.find_root(base)
    with (
        disk.private_mounts(),
        disk.mount(base, private_places / "mnt", offset=root.start, size=root.size, filesystem=kind) as mounted,
    ):
        relabel(mounted.path)  # what mke2fs made by itself
    size = {"ext4": "200MiB", "xfs": "400MiB"}[kind]
    path = bakefile(private_places, [f"{registry.host}/team/app:1"], base={"file": base}, size=size, artefact="raw")
    record = bake(path)
    assert "label" in record["timings"]
    artefact = Path(record["artefact_path"])
    root = disk.find_root(artefact)
    with (
        disk.private_mounts(),
        disk.mount(artefact, private_places / "mnt", offset=root.start, size=root.size, filesystem=kind) as mounted,
    ):
        assert wrong(mounted.path) == ""
        [app] = mounted.path.glob("var/lib/containerd/*/snapshots/*/fs/srv/app")
        label = os.getxattr(app, LABEL).decode().rstrip("\0")
        assert label.split(":")[2] != "unlabeled_t"
        assert "container" in label
        os.setxattr(app, LABEL, b"system_u:object_r:etc_t:s0\0")
        assert "srv/app" in wrong(mounted.path)  # the check can fail


def test_a_base_that_only_reports_gets_none(private_places: Path, registry: DockerRegistry) -> None:
    base = machine(
        private_places / "base.raw", "gpt", "ext4", enforce(node_tree(private_places / "tree"), mode="permissive")
    )
    path = bakefile(private_places, [f"{registry.host}/team/app:1"], base={"file": base}, size="200MiB", artefact="raw")
    assert "label" not in bake(path)["timings"]


def test_what_cannot_be_labelled_is_refused(
    private_places: Path, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = enforce(node_tree(private_places / "tree"))
    base = machine(private_places / "base.raw", "gpt", "ext4", tree)
    path = bakefile(private_places, [f"{registry.host}/team/app:1"], base={"file": base}, size="200MiB", artefact="raw")
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **keys: None if name == "setfiles" else which(name, **keys))
    done = parbake("bake", "-f", path, "--no-verify", "--json")
    done.refused(1, "EnvironmentProblem", "setfiles is not installed", hint="apt-get install policycoreutils")
    (tree / "etc/selinux/config").write_text("SELINUX=enforcing\n")  # targeted: not installed
    machine(base, "gpt", "ext4", tree)
    done = parbake("bake", "-f", path, "--no-verify", "--json")
    done.refused(2, "BadBase", "policy targeted", "/etc/selinux/targeted/contexts/files/file_contexts")
