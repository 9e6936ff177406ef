"""Stores of strangers, in a base, a volume that is exported and one that is rehearsed: links in them lead nowhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parbake.coldstart.rehearsal import NotStarted, cold_start
from parbake.containerd import skeleton
from parbake.core.errors import ParbakeError
from parbake.core.events import Events
from parbake.machine import disk
from parbake.workflows.export.gke import secondary_boot_disk
from standins.containerd_support import victim
from standins.disks import filesystem, machine, node_tree
from standins.images import image, layer, push
from standins.registry import DockerRegistry
from standins.runs import bakefile, parbake, place, private_places
from standins.trees import scan

pytestmark = [pytest.mark.root, pytest.mark.slow]
__all__ = ["place", "private_places"]

CONTENT = "io.containerd.content.v1.content"
PLANTED = {
    "snapshots": {"io.containerd.snapshotter.v1.overlayfs/snapshots": "."},
    "content": {f"{CONTENT}/blobs/sha256": "cron.d", f"{CONTENT}/ingest": "ingest"},
}
"""What garbage collection emptied, and how a layer became a file in a folder of the attacker's choice."""


def planted(store: Path, outside: Path, kind: str) -> None:
    (outside / "cron.d").mkdir(exist_ok=True)
    for name, target in PLANTED[kind].items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).symlink_to(outside / target)


def bake(place: Path, kind: str, outside: Path) -> str:
    tree = node_tree(place / "tree")
    planted(tree / "var/lib/containerd", outside, kind)
    base = machine(place / "base.raw", "", "ext4", tree)
    with DockerRegistry(place / "registry") as registry:
        push(registry.url, "team/app", image(layer({"cron": b"* * * * * root echo\n"})), "1")
        path = bakefile(place, [f"{registry.host}/team/app:1"], base={"file": base}, size="160MiB", keep_layers=True)
        done = parbake("bake", "-f", path, "--no-verify", "--json")
    assert done.code != 0
    return str(done.document["message"])


def volume(place: Path, kind: str, outside: Path) -> Path:
    planted(place / "tree", outside, kind)
    return filesystem(place / "volume.raw", "ext4", place / "tree")


def export(place: Path, kind: str, outside: Path) -> str:
    with pytest.raises(ParbakeError) as caught:
        secondary_boot_disk(volume(place, kind, outside), place / "gke.raw", place, Events())
    return caught.value.message


def rehearse(place: Path, kind: str, outside: Path) -> str:
    plan: Any = SimpleNamespace(sandbox=None)
    app: Any = SimpleNamespace(reference="registry.test/app:1", names=["registry.test/app:1"], startup=None)
    with (
        pytest.raises((ParbakeError, NotStarted)) as caught,
        disk.private_mounts(),
        disk.loop_device(volume(place, kind, outside)) as device,
        ExitStack() as stack,
    ):
        cold_start(device, "ext4", plan, app, place, stack)
    return str(caught.value)


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("use", [bake, export, rehearse])
@pytest.mark.parametrize("looked", [True, False], ids=["refused", "by_the_kernel"])
def test_a_store_that_leads_out_of_its_file_system_changes_nothing_here(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    use: Callable[[Path, str, Path], str],
    kind: str,
    *,
    looked: bool,
) -> None:
    if not looked:
        monkeypatch.setattr(skeleton, "check", lambda _root: None)
    outside = victim(place / "outside")
    (outside / "cron.d").mkdir()
    before = scan(outside)
    said = use(place, kind, outside)
    assert scan(outside) == before
    if looked:
        assert "is a link, not a folder of its own" in said
