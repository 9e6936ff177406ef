"""What other clouds' tools take, of artefacts that were baked for real; those tools are stand-ins."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from parbake import records
from parbake.core.errors import BadContent
from parbake.core.model import GIB, MIB, Verdict
from parbake.core.run import Deadline
from parbake.machine import disk
from parbake.workflows.export.formats import check_vhd
from standins import cloud_tools
from standins.clusters import refused
from standins.command import Corner, Done
from standins.disks import machine, node_tree, sh
from standins.images import Built, image, layer, push
from standins.registry import DockerRegistry
from standins.runs import opened
from standins.store import snapshot_folders
from standins.trees import differences, scan

pytestmark = [pytest.mark.root, pytest.mark.slow]

BOTTOM = layer({"lib/a": b"a" * 5000, "lib/b": b"b", "odd\\name": b"odd"})
APP = image(BOTTOM, layer({"lib/.wh.a": b"", "srv/.wh..wh..opq": b"", "srv/app": b"app"}))
OTHER = image(BOTTOM, layer({"etc/other": b"other"}))


IGZIP = f"{sys.executable} -m isal.igzip -d"


class Shop:
    """A volume and a machine image that were baked."""

    def __init__(self, folder: Path, host: str) -> None:
        self.corner, self.names = Corner(folder), {f"{host}/shop/app:1", f"{host}/shop/other:1"}
        images = f"images: ['{host}/shop/app:1', '{host}/shop/other:1']\n"
        self.corner.write("volume.yaml", f"version: 1\nname: shop\nbase: none\n{images}")
        self.volume = Path(self.corner.bake("-f", "volume.yaml")["artefact_path"])
        machine(folder / "node.raw", "gpt", "ext4", node_tree(folder / "tree"), size=200 * MIB)
        self.corner.write(
            "machine.yaml",
            f"version: 1\nname: 1.node\nbase: {{file: node.raw}}\nartefact: {{format: qcow2}}\nsandbox: none\n{images}",
        )
        self.machine = Path(self.corner.bake("-f", "machine.yaml")["artefact_path"])
        self.proven = self._proven()

    def _proven(self) -> Path:
        """Say of a copy of the volume that it is verified, which takes a machine; return it."""
        record = records.read(self.volume.with_name(f"{self.volume.name}.json"))
        folder = self.corner.folder / "proven"
        folder.mkdir()
        os.link(self.volume, folder / self.volume.name)
        verdict = Verdict(passed=True, accelerator="tcg", verified_at=record.finished_at)
        records.write(folder, record.model_copy(update={"verdict": verdict}))
        return folder / self.volume.name

    @cache  # noqa: B019 (one shop a module)
    def export(self, cloud: str, what: Path) -> tuple[Path, Path]:
        done = self.parbake(cloud, what, "--force")
        assert done.code == 0, done.said
        made, script = (self.corner.folder / each for each in done.document["written"])
        return made, script

    def parbake(self, cloud: str, what: Path, *more: str) -> Done:
        return self.corner.parbake(*self.command(cloud, what), *more)

    @staticmethod
    def command(cloud: str, what: Path) -> tuple[str, ...]:
        return ("export", cloud, str(what), f"{cloud}-{what.suffix[1:]}", "--json")

    def run(self, script: Path, **env: str) -> Cloud:
        """Run a script with stand-ins for the clouds' tools; return what there is then."""
        cloud = Cloud(self.corner.folder / f"cloud-{script.parent.name}")
        sh("sh", "-n", script)
        done = subprocess.run([script], env={**cloud.env, **env}, check=True, stdout=subprocess.PIPE, text=True)
        return replace(cloud, said=done.stdout)


@dataclass(frozen=True)
class Cloud:
    """The stand-ins' folder, and the tools on PATH."""

    folder: Path
    said: str = ""

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        for name in ("gcloud", "az", "azcopy"):
            tool = self.folder / name
            tool.write_text(f'#!/bin/sh\nexec {sys.executable} {cloud_tools.__file__} {self.folder} {name} "$@"\n')
            tool.chmod(0o755)

    @property
    def env(self) -> dict[str, str]:
        return {"PATH": f"{self.folder}:{os.environ['PATH']}"}

    @property
    def calls(self) -> list[str]:
        log = self.folder / "calls"
        return log.read_text().splitlines() if log.exists() else []

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return found

    @property
    def objects(self) -> list[Path]:
        return list(self.folder.glob("object-*"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as served:
        for name, built in (("app", APP), ("other", OTHER)):
            push(served.url, f"shop/{name}", built, "1")
        yield Shop(tmp_path_factory.mktemp("shop"), served.host)


def unpacked(archive: Path, folder: Path, unzip: str) -> Path:
    """Unpack an archive as tar(1) does; it holds one file."""
    folder.mkdir()
    sh("tar", "-C", folder, f"--use-compress-program={unzip}", "-xf", archive)
    (found,) = folder.iterdir()
    assert found.name == "disk.raw"
    return found


def test_compute_engine_takes_the_machine(shop: Shop, tmp_path: Path) -> None:
    archive, script = shop.export("gcp", shop.machine)
    raw = tmp_path / "raw"
    sh("qemu-img", "convert", "-O", "raw", shop.machine, raw)
    os.truncate(raw, GIB)
    again = unpacked(archive, tmp_path / "out", unzip="gzip -d")
    sh("qemu-img", "compare", "-f", "raw", "-F", "raw", raw, again)  # which passes over holes
    with gzip.open(archive) as file:
        assert file.read(265)[257:] == b"ustar  \0", "the old GNU kind"
    name = archive.name.removesuffix(".tar.gz")
    assert name.startswith("p-1-node-"), "as Compute Engine names things"
    before = hashlib.sha256(archive.read_bytes()).digest()
    assert shop.parbake("gcp", shop.machine, "--force").code == 0
    assert hashlib.sha256(archive.read_bytes()).digest() == before, "the same bytes twice"
    cloud = shop.run(script, BUCKET="mine")
    features = ["GVNIC", "VIRTIO_SCSI_MULTIQUEUE"]
    made = {"architecture": "X86_64", "family": None, "labels": "made-by=parbake", "features": features}
    assert cloud.state["images"] == {name: {**made, "status": "READY", "size": GIB}}
    assert cloud.objects == [], "the archive does not stay in the bucket"
    assert f"the image {name} exists already" in shop.run(script, BUCKET="mine").said


def test_azure_takes_the_machine(shop: Shop, tmp_path: Path) -> None:
    vhd, script = shop.export("azure", shop.machine)
    raw = tmp_path / "raw"
    sh("qemu-img", "convert", "-O", "raw", shop.machine, raw)
    size = -(-raw.stat().st_size // MIB) * MIB
    assert vhd.stat().st_size == size + 512
    check_vhd(vhd, size)
    assert f'"virtual-size": {size},' in sh("qemu-img", "info", "--output=json", "-f", "vpc", vhd)
    sh("qemu-img", "compare", "-f", "raw", "-F", "vpc", raw, vhd)
    name = vhd.name.removesuffix(".vhd")
    cloud = shop.run(script, GROUP="nodes", LOCATION="westeurope")
    [made] = cloud.state["disks"].values()
    assert (made["size"], made["written"], made["diskState"]) == (size + 512, size + 512, "Unattached")
    assert (made["osType"], made["hyperVGeneration"], made["architecture"]) == ("Linux", "V1", "x64")
    assert cloud.state["azure-images"] == {name: {"source": made["id"]}}
    assert all("sig=" not in call for call in cloud.calls if "azcopy" not in call)
    calls = len(cloud.calls)
    assert f"the disk {name} exists already" in shop.run(script, GROUP="nodes", LOCATION="westeurope").said
    assert not [call for call in cloud.calls[calls:] if "azcopy" in call or "grant-access" in call]


TOOLS = {"gcp": ("create", {"BUCKET": "mine"}), "azure": ("azcopy", {"GROUP": "nodes", "LOCATION": "westeurope"})}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", TOOLS)
def test_a_script_that_is_stopped_leaves_nothing_half_made(
    shop: Shop, tmp_path: Path, name: str, number: signal.Signals
) -> None:
    _, script = shop.export(name, shop.machine)
    word, env = TOOLS[name]
    cloud = Cloud(tmp_path / "cloud")
    (cloud.folder / f"hang-{word}").touch()
    with subprocess.Popen([script], env={**cloud.env, **env}, start_new_session=True) as running:
        deadline = Deadline(60, "the tool hangs")
        while not (cloud.folder / "hangs").exists():
            deadline.sleep(0.05)
        os.killpg(running.pid, number)  # as a terminal's Ctrl-C, and as what ends a job of CI
        assert running.wait(60) != 0
    assert (cloud.objects, cloud.state["images"], cloud.state["disks"]) == ([], {}, {})
    (cloud.folder / f"hang-{word}").unlink()
    subprocess.run([script], env={**cloud.env, **env}, check=True)
    assert cloud.state["images"] or cloud.state["azure-images"]


def test_a_disk_that_a_killed_script_left_is_made_anew(shop: Shop, tmp_path: Path) -> None:
    _, script = shop.export("azure", shop.machine)
    word, env = TOOLS["azure"]
    cloud = Cloud(tmp_path / "cloud")
    (cloud.folder / f"hang-{word}").touch()
    with subprocess.Popen([script], env={**cloud.env, **env}, start_new_session=True) as running:
        deadline = Deadline(60, "the tool hangs")
        while not (cloud.folder / "hangs").exists():
            deadline.sleep(0.05)
        os.killpg(running.pid, signal.SIGKILL)
    [half] = cloud.state["disks"].values()
    assert (half["written"], half["diskState"]) == (0, "ActiveUpload")
    (cloud.folder / f"hang-{word}").unlink()
    subprocess.run([script], env={**cloud.env, **env}, check=True)
    [made] = cloud.state["disks"].values()
    assert (made["written"], made["tags"]["parbake"]) == (made["size"], "complete")


KILLER = str(Path(__file__).parents[3] / "standins" / "kill_at_syscall.py")


@pytest.mark.parametrize(
    ("name", "event", "end"),
    [
        ("gcp", "open", ".tar.gz"),
        ("gke", "open", "snapshots.metadata"),
        ("azure", "os.rename", ".vhd"),
    ],
)
def test_an_export_that_is_killed_is_none_and_the_same_command_finishes_it(
    shop: Shop, name: str, event: str, end: str
) -> None:
    corner, command = Corner(shop.corner.folder / f"killed-{name}-{event}"), shop.command(name, shop.proven)
    folder = corner.folder / command[3]
    with corner.start(event, end, *command, script=KILLER) as run:
        assert run.finish().code == -signal.SIGKILL
    assert corner.leaked() == []
    assert {each.name for each in folder.iterdir() if each.suffix != ".sh"} == {".parbake"}
    done = corner.parbake(*command)
    assert done.code == 0, done.said
    made, script = (corner.folder / each for each in done.document["written"])
    assert set(folder.iterdir()) == {made, script}


def test_an_export_that_is_there_is_kept_unless_the_artefact_is_newer(shop: Shop) -> None:
    command = (*shop.command("gcp", shop.proven)[:3], "kept", "--json")
    first = shop.corner.parbake(*command)
    made = shop.corner.folder / first.document["written"][0]
    before = made.stat().st_mtime_ns
    again = shop.corner.parbake(*command)
    assert (again.code, again.document, made.stat().st_mtime_ns) == (0, first.document, before)
    assert "exists already" in again.said
    os.utime(made, ns=(0, 0))
    assert shop.corner.parbake(*command).code == 0
    assert made.stat().st_mtime_ns >= before


@pytest.mark.parametrize("wrong", ["footer", "size", "dynamic", "odd"])
def test_what_is_no_vhd_for_azure(tmp_path: Path, wrong: str) -> None:
    raw, vhd = tmp_path / "raw", tmp_path / "disk.vhd"
    raw.write_bytes(bytes(3 * MIB + (512 if wrong == "odd" else 0)))
    options = "subformat=dynamic" if wrong == "dynamic" else "subformat=fixed,force_size=on"
    sh("qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", options, raw, vhd)
    if wrong == "footer":
        with vhd.open("r+b") as file:
            file.seek(-10, os.SEEK_END)
            file.write(b"x")
    with pytest.raises(BadContent, match="not a VHD for Azure"):
        check_vhd(vhd, 4 * MIB if wrong == "size" else raw.stat().st_size)


def chains(built: Built) -> list[str]:
    """Return the chain IDs of an image (OCI image specification, config.md), from what its layers inflate to."""
    found: list[str] = []
    for digest in built.diff_ids:
        found.append("sha256:" + hashlib.sha256(f"{found[-1]} {digest}".encode()).hexdigest() if found else digest)
    return found


# What GKE's own builder checks a disk with (script/verify.sh), a line at a time.
VERIFY = "find {root}/{place} -type f -exec md5sum {{}} + | cut -d' ' -f1 | LC_ALL=C sort | md5sum | cut -d' ' -f1"


def test_gke_takes_the_volume(shop: Shop, tmp_path: Path) -> None:
    before = shop.volume.stat().st_mtime_ns
    archive, script = shop.export("gke", shop.volume)
    raw = unpacked(archive, tmp_path / "out", unzip=IGZIP)
    assert raw.stat().st_size % GIB == 0
    with disk.private_mounts(), disk.mount(raw, tmp_path / "mnt", filesystem="ext4", read_only=True) as mounted:
        root = mounted.path
        assert {each.name for each in root.iterdir()} - {"lost+found"} == {
            "snapshots",
            "snapshots.metadata",
            "images.metadata",
        }
        lines = [line.split(" ") for line in (root / "snapshots.metadata").read_text().splitlines()]
        assert {chain for chain, _, _ in lines} >= {*chains(APP), *chains(OTHER)}
        assert len({place for _, place, _ in lines}) == len(lines) == len(list((root / "snapshots").iterdir()))
        for _, place, checksum in lines:
            assert sh("sh", "-c", VERIFY.format(root=root, place=place)).strip() == checksum
        listed = (root / "images.metadata").read_text().splitlines()
        assert listed[0].split() == ["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"]
        assert {line.split()[0] for line in listed[1:]} >= shop.names
        places = {chain: place for chain, place, _ in lines}
        top = scan(root / places[chains(APP)[1]])
        assert b"etc/other" in scan(root / places[chains(OTHER)[1]])
        with opened(shop.volume, tmp_path / "store", "ext4") as (_, daemon), daemon.client() as client:
            folder = snapshot_folders(client, tuple(chains(APP)))[-1]
            assert differences(scan(folder), top) == [], "whiteouts and opaque folders as containerd has them"
    assert shop.volume.stat().st_mtime_ns == before
    cloud = shop.run(script, BUCKET="mine")
    [(name, made)] = cloud.state["images"].items()
    assert (name.startswith("shop-"), made["family"], made["size"]) == (
        True,
        "secondary-disk-image",
        raw.stat().st_size,
    )
    pool = "--secondary-boot-disk=disk-image=projects/my-project/global/images/"
    assert f"{pool}{name},mode=CONTAINER_IMAGE_CACHE" in cloud.said


def test_what_is_refused(shop: Shop) -> None:
    done = shop.parbake("gcp", shop.volume)
    refused((done.code, done.said), 3, "parbake verify")
    done = shop.parbake("gke", shop.machine, "--force")
    refused((done.code, done.said), 2, "not an ext4 volume")
    done = shop.parbake("azure", Path("missing.raw"), "--force")
    refused((done.code, done.said), 2, "no such record")
    assert shop.corner.leaked() == []
