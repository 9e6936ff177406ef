"""What other clouds' tools take, of artefacts that were baked for real; those tools are stand-ins, which note calls."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from parbake import disk
from parbake.clouds.vhd import check_vhd
from parbake.errors import BadContent
from parbake.model import GIB, MIB
from tests.support.bakes import Corner, Done
from tests.support.baking import opened
from tests.support.disks import machine, node_tree, sh
from tests.support.images import Built, image, layer, push
from tests.support.registry import DockerRegistry
from tests.support.store import snapshot_folders
from tests.support.trees import differences, scan

pytestmark = pytest.mark.root

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

    def export(self, cloud: str, what: Path, *more: str) -> tuple[Path, Path]:
        done = self.parbake(cloud, what, "--force", *more)
        assert done.code == 0, done.said
        made, script = (self.corner.folder / each for each in done.document["written"])
        return made, script

    def parbake(self, cloud: str, what: Path, *more: str) -> Done:
        return self.corner.parbake("export", cloud, str(what), f"{cloud}-{what.suffix[1:]}", "--json", *more)

    def run(self, script: Path, **env: str) -> list[str]:
        """Run a script with stand-ins for the clouds' tools; return their calls."""
        tools, log = self.corner.folder / "tools", self.corner.folder / "calls"
        tools.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
        answers = (
            'case "$*" in *get-value*) echo my-project;; *grant-access*) echo https://link?sig=s;;'
            " *'disk show'*) echo /disks/1;; esac"
        )
        for name in ("gcloud", "az", "azcopy"):
            (tools / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n{answers}\n')
            (tools / name).chmod(0o755)
        path = {"PATH": f"{tools}:{os.environ['PATH']}"}
        subprocess.run([script], env={**path, **env}, check=True, stdout=subprocess.PIPE)
        return log.read_text().splitlines()


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
    sh("cmp", raw, unpacked(archive, tmp_path / "out", unzip="gzip -d"))
    with gzip.open(archive) as file:
        assert file.read(265)[257:] == b"ustar  \0", "the old GNU kind"
    name = archive.name.removesuffix(".tar.gz")
    assert name.startswith("p-1-node-"), "as Compute Engine names things"
    assert shop.run(script, BUCKET="mine") == [
        f"gcloud storage cp {archive.name} gs://mine/{archive.name}",
        f"gcloud compute images create {name} --source-uri=gs://mine/{archive.name} --architecture=X86_64 "
        "--guest-os-features=GVNIC,VIRTIO_SCSI_MULTIQUEUE --labels=made-by=parbake",
        f"gcloud storage rm gs://mine/{archive.name}",
    ]
    again, _ = shop.export("gcp", shop.machine)
    before = hashlib.sha256(archive.read_bytes()).digest()
    assert hashlib.sha256(again.read_bytes()).digest() == before, "the same bytes twice"


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
    made, granted, copied, revoked, _, imaged = shop.run(script, GROUP="nodes", LOCATION="westeurope")
    assert made == (
        f"az disk create --resource-group nodes --name {name} --location westeurope --sku StandardSSD_LRS "
        "--os-type Linux --hyper-v-generation V1 --architecture x64 --upload-type Upload "
        f"--upload-size-bytes {size + 512} --output none"
    )
    assert "--access-level Write" in granted
    assert copied == f"azcopy copy {vhd.name} https://link?sig=s --blob-type PageBlob"
    assert revoked.startswith("az disk revoke-access")
    assert imaged.startswith(f"az image create --resource-group nodes --name {name}")


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
    with pytest.raises(BadContent, match="no VHD for Azure"):
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
    calls = shop.run(script, BUCKET="mine")
    assert calls[1].startswith("gcloud compute images create shop-")
    assert "--family=secondary-disk-image" in calls[1]


def test_what_is_refused(shop: Shop) -> None:
    done = shop.parbake("gcp", shop.volume)
    assert (done.code, "parbake verify" in done.said) == (3, True)
    done = shop.parbake("gke", shop.machine, "--force")
    assert (done.code, "no ext4 volume" in done.said) == (2, True)
    done = shop.parbake("azure", Path("missing.raw"), "--force")
    assert (done.code, "no such record" in done.said) == (2, True)
    assert shop.corner.leaked() == []
