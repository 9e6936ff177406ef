"""Machine images from bases of other people's making, and volumes for other machines: whole bakes of small disks.

What ``parbake verify`` says of an artefact for another architecture is decided here: nothing was proven, so the exit
code is 3 ("verification said no"), with a problem that says that nothing was booted. Its record keeps the verdict that
it has, since what was proven on a machine of its kind stays proven.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parbake.containerd import Client, labels
from parbake.core.events import Events
from parbake.core.run import run
from parbake.images import pause
from parbake.machine import disk
from standins import containerd_support as support
from standins.command import digests_of
from standins.disks import MIB, Label, filesystem, machine, node_tree, sh
from standins.images import image, index, layer, push
from standins.registry import DockerRegistry
from standins.runs import artefacts, as_program, bake, bakefile, opened, parbake, private_places, traces
from standins.store import ctr, snapshot_folders
from standins.trees import scan

pytestmark = [pytest.mark.root, pytest.mark.slow]
__all__ = ["private_places"]

SMALL = "160MiB"
STORE = "/var/lib/containerd"
SANDBOX = 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "{}"\n'
APP = image(layer({"etc/": None, "etc/app": b"the application\n" * 1000}), layer({"app": b"#!/bin/sh\n"}))
OTHER = image(layer({"etc/": None, "etc/app": b"the application\n" * 1000}), layer({"other": b"#!/bin/sh\n"}))
PAUSE = image(layer({"pause": b"a pause program\n"}), config={"Entrypoint": ["/pause"]})
ARM = image(layer({"arm": b"for arm64\n"}), platform="linux/arm64")
RISCV = image(layer({"riscv": b"for riscv64\n"}), platform="linux/riscv64")
INFO_FORMATS = {"raw": "raw", "qcow2": "qcow2", "vmdk": "vmdk", "vhd": "vpc"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as served:
        push(served.url, "team/app", APP, "1")
        push(served.url, "team/other", OTHER, "1")
        push(served.url, "team/pause", PAUSE, "9")
        push(served.url, "team/many", index(APP, ARM), "1")
        push(served.url, "team/riscv", RISCV, "1")
        yield served


@pytest.fixture
def place(private_places: Path) -> Iterator[Path]:
    """A folder in which nothing may be left at work."""
    yield private_places
    assert traces(private_places) == []


def base_of(
    place: Path, label: Label = "gpt", kind: str = "ext4", *, config: str = "", containerd: bool = True, **more: Any
) -> Path:
    tree = node_tree(place / "tree", config=config, containerd=containerd)
    return machine(place / "base.raw", label, kind, tree, **more)


def bake_onto(place: Path, base: Path, *images: str, **keys: Any) -> Any:
    """Bake onto a base; a small fixed size, since a disk of 1 GiB takes seconds to hash."""
    return bake(bakefile(place, images, base={"file": base}, **{"size": SMALL, **keys}))


def targets(client: Client) -> dict[str, str]:
    return {image.name: image.target.digest for image in client.images.list() if "@" not in image.name}


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_image_file(artefact: Path, format_: str, raw: Path) -> None:
    """Let QEMU's own tools judge a file, and read it back."""
    shown = json.loads(run(["qemu-img", "info", "--output=json", "-f", INFO_FORMATS[format_], str(artefact)]).text)
    assert shown["format"] == INFO_FORMATS[format_]
    assert "backing-filename" not in shown
    if format_ in {"qcow2", "vmdk"}:
        sh("qemu-img", "check", "-f", format_, artefact)
    sh("qemu-img", "convert", "-f", INFO_FORMATS[format_], "-O", "raw", artefact, raw)
    again = raw.with_suffix(".again")
    disk.to_raw(artefact, again, Events())
    sh("qemu-img", "compare", "-f", "raw", "-F", "raw", raw, again)  # which passes over holes
    again.unlink()


@pytest.mark.parametrize(
    ("label", "kind", "format_", "source", "size"),
    [
        ("gpt", "ext4", "raw", "raw", "auto"),
        ("dos", "xfs", "qcow2", "raw", "400MiB"),
        ("", "ext4", "vmdk", "qcow2", SMALL),
        ("gpt", "xfs", "vhd", "qcow2", "400MiB"),
        ("dos", "ext4", "raw", "vmdk", SMALL),
    ],
)
def test_every_kind_of_base_and_format(
    place: Path, registry: DockerRegistry, label: Label, kind: str, format_: str, source: str, size: str
) -> None:
    base = base_of(place, label, kind)
    before = base.stat().st_size
    if source != "raw":
        packed = base.with_suffix(f".{source}")
        sh("qemu-img", "convert", "-f", "raw", "-O", source, base, packed)
        base.unlink()
        base = packed
    base_bytes = sha256_of(base)
    record = bake_onto(place, base, f"{registry.host}/team/app:1", artefact=format_, size=size)

    artefact = Path(record["artefact_path"])
    assert artefact.suffix == f".{format_}"
    digests = digests_of(artefact)
    if format_ == "raw":  # the digest of the whole file comes with verification
        assert (record["sha256"], record["blocks"]["digest"]) == ("", digests["parbakeBlocks1"])
    else:
        assert (record["sha256"], record["blocks"]) == (digests["sha256"], None)
    assert record["size"] == artefact.stat().st_size
    assert record["base_digest"] == f"sha256:{base_bytes}"
    assert sha256_of(base) == base_bytes  # the base is only read

    raw = place / "back.raw"
    check_image_file(artefact, format_, raw)
    assert raw.stat().st_size == record["plan"]["size"] > before
    assert raw.stat().st_size == (1 << 30 if size == "auto" else int(size.removesuffix("MiB")) * MIB)
    with disk.private_mounts():
        root = disk.find_root(raw)
    assert (root.number, root.filesystem) == (2 if label else 0, kind)
    assert root.end > raw.stat().st_size - 2 * MIB
    if label:
        assert "No errors detected" in sh("sfdisk", "--verify", raw)
        first = disk.partitions(raw)[0]
        assert (first.number, first.start, first.size) == (1, 2048 * 512, 8192 * 512)
    disk.check_filesystem(raw, kind, offset=root.start, size=root.size)
    with (
        opened(raw, place / "look", kind, offset=root.start, size=root.size, store=STORE) as (at, daemon),
        daemon.client() as client,
    ):
        total, _ = disk.usage(at)
        assert total > raw.stat().st_size * 0.75
        assert targets(client) == {f"{registry.host}/team/app:1": APP.digest}
        assert {info.name for info in client.snapshots.list()} == set(labels.chain_ids(APP.diff_ids))
        check_sealed(at, record["sealed"])


def check_sealed(root: Path, sealed: list[str]) -> None:
    assert (root / "etc/machine-id").read_bytes() == b""
    for gone in (
        "etc/ssh/ssh_host_ed25519_key",
        "etc/ssh/ssh_host_ed25519_key.pub",
        "etc/hostname",
        "etc/resolv.conf",
        "var/lib/cloud/instances",
        "var/lib/dhcp/dhclient.leases",
        "var/log/syslog",
        "root/.bash_history",
        "root/.docker/config.json",
    ):
        assert not (root / gone).exists()
        assert gone in sealed
    assert (root / "etc/ssh/sshd_config").read_text() == "PermitRootLogin no\n"
    assert (root / "etc/canary").read_text() == "still here"
    assert not [path for path in root.rglob("*parbake*") if "containerd" not in path.parts]


def test_nothing_of_what_the_base_holds_is_lost(place: Path, registry: DockerRegistry) -> None:
    """A base with images of its own: baked before, pulled by `ctr` with their layers, in another namespace as well."""
    name = {what: f"{registry.host}/team/{what}" for what in ("app:1", "other:1", "pause:9")}
    first = bake_onto(place / "first", base_of(place), name["app:1"])
    root = find_root(Path(first["artefact_path"]))
    with opened(
        Path(first["artefact_path"]), place / "between", "ext4", offset=root.start, size=root.size, store=STORE,
        keep=True,
    ) as (_, daemon), daemon.client() as client:  # fmt: skip
        ctr(daemon, "images", "pull", "--local", "--plain-http", name["pause:9"])
        ctr(daemon, "--namespace", "default", "images", "pull", "--local", "--plain-http", name["other:1"])
        ctr(daemon, "images", "tag", name["app:1"], "localhost/kept:1")
        before = held(client), held(support.in_namespace(client, "default"))

    second = bake_onto(place / "second", place / "between/copy.raw", name["other:1"], size="192MiB")
    root = find_root(Path(second["artefact_path"]))
    with opened(
        Path(second["artefact_path"]), place / "after", "ext4", offset=root.start, size=root.size, store=STORE
    ) as (_, daemon), daemon.client() as client:  # fmt: skip
        after = held(client), held(support.in_namespace(client, "default"))
        assert targets(client) == {
            **{name[what]: built.digest for what, built in (("app:1", APP), ("other:1", OTHER), ("pause:9", PAUSE))},
            "localhost/kept:1": APP.digest,
        }
    for old, new in zip(before, after, strict=True):
        for kind, things in old.items():
            assert things.items() <= new[kind].items(), kind
    assert before[1] == after[1]


def find_root(image: Path) -> disk.Partition:
    with disk.private_mounts():
        return disk.find_root(image)


def held(client: Client) -> dict[str, dict[str, Any]]:
    """Return all that a namespace holds."""
    return {
        "images": {image.name: (image.target, dict(image.labels)) for image in client.images.list()},
        "content": {info.digest: (info.size, dict(info.labels)) for info in client.content.list()},
        "snapshots": {info.name: (info.parent, info.kind, dict(info.labels)) for info in client.snapshots.list()},
        "trees": {info.name: scan(snapshot_folders(client, (info.name,))[-1]) for info in client.snapshots.list()},
    }


def test_the_sandbox_image_of_the_base(place: Path, registry: DockerRegistry) -> None:
    """Without the pause image that the base's containerd asks for no pod starts: whoever bakes has to bring it."""
    app, wanted = f"{registry.host}/team/app:1", f"{registry.host}/team/pause:9"
    base = base_of(place, config=SANDBOX.format(wanted))
    path = bakefile(place, [app], base={"file": base}, size=SMALL)
    refused = parbake("bake", "-f", path, "--no-verify", "--json").refused(2, "BadBase", wanted, "sandbox image")
    assert refused["hint"] == f"write `sandbox: {wanted}` in the Bakefile"
    assert artefacts(place / "artefacts") == []

    record = bake(bakefile(place, [app], base={"file": base}, size=SMALL, sandbox=wanted))
    assert record["plan"]["sandbox"]["reference"] == wanted
    # An artefact that carries it is a base that needs no `sandbox`.
    bake_onto(place / "again", Path(record["artefact_path"]), app, size="192MiB")


def test_a_sandbox_image_that_no_registry_has(place: Path, registry: DockerRegistry) -> None:
    """The name on EKS's nodes: parbake's own pause image serves under it."""
    wanted = "localhost/kubernetes/pause:latest"
    base = base_of(place, config=SANDBOX.format(wanted))
    record = bake_onto(place, base, f"{registry.host}/team/app:1", sandbox=wanted)
    root = find_root(Path(record["artefact_path"]))
    with opened(
        Path(record["artefact_path"]), place / "look", "ext4", offset=root.start, size=root.size, store=STORE
    ) as (_, daemon), daemon.client() as client:  # fmt: skip
        assert wanted in targets(client)
        assert pause.REFERENCE not in targets(client)


def test_a_base_that_names_no_sandbox_image(place: Path, registry: DockerRegistry) -> None:
    path = bakefile(place, [f"{registry.host}/team/app:1"], base={"file": base_of(place)}, size=SMALL)
    done = parbake("bake", "-f", path, "--no-verify", "--json")
    assert done.good()["plan"]["sandbox"] is None
    assert "names no sandbox (pause) image" in done.err


@pytest.mark.parametrize(("label", "size"), [("gpt", 0), ("dos", 0), ("gpt", 64)])
def test_a_root_with_a_partition_behind_it(place: Path, registry: DockerRegistry, label: Label, size: int) -> None:
    """It cannot grow; with room in it and a fixed size it need not."""
    base = base_of(place, label, behind=True, size=size * MIB)
    keys = {"size": f"{base.stat().st_size // MIB}MiB"} if size else {}
    path = bakefile(place, [f"{registry.host}/team/app:1"], base={"file": base}, **keys)
    done = parbake("bake", "-f", path, "--no-verify", "--json")
    if not size:
        done.refused(2, "BadBase", "partition 3 follows it", hint="fixed `size`")
        return
    record = done.good()
    assert "has to fit into what is free in the base" in done.err
    assert disk.partitions(Path(record["artefact_path"])) == disk.partitions(base)


def test_a_base_that_is_too_full(place: Path, registry: DockerRegistry) -> None:
    """What a fixed size leaves is found out by trying: the error says so, and nothing stays."""
    (place / "tree/srv").mkdir(parents=True)
    (place / "tree/srv/filler").write_bytes(b"x" * (40 * MIB))
    base = base_of(place, size=64 * MIB)
    size = f"{base.stat().st_size // MIB}MiB"
    path = bakefile(place, [f"{registry.host}/team/big:1"], base={"file": base}, size=size)
    blob = image(layer({"big": bytes(range(256)) * (24 * MIB // 256)}))
    push(registry.url, "team/big", blob, "1")
    done = parbake("bake", "-f", path, "--no-verify", "--json")
    done.refused(1, "ArtefactFull", "do not fit into the artefact", hint="raise `size`")
    assert artefacts(place / "artefacts") == []


def lvm_label() -> bytes:
    """Return an LVM2 physical volume's label, in the second sector, with its check sum (lib/label/label.h)."""
    rest = struct.pack("<I8s", 32, b"LVM2 001") + b"pv" * 16
    rest = rest.ljust(512 - 20, b"\0")
    crc = zlib.crc32(rest, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    return bytes(512) + struct.pack("<8sQI", b"LABELONE", 1, crc) + rest


def btrfs_superblock() -> bytes:
    """Return what lies before, and the first, superblock of btrfs (64 KiB in), with its check sum: CRC-32C."""
    block = (bytes(64) + b"_BHRfS_M").ljust(0x90, b"\0") + struct.pack("<I", 4096)
    block = block.ljust(4096, b"\0")
    crc = 0xFFFFFFFF
    for byte in block[32:]:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return bytes(64 << 10) + struct.pack("<I", crc ^ 0xFFFFFFFF) + block[4:]


SIGNATURES = {
    "btrfs": btrfs_superblock(),
    "an LVM volume": lvm_label(),
    "an encrypted partition (LUKS)": b"LUKS\xba\xbe\x00\x01" + b"aes".ljust(32, b"\0"),
}


@pytest.mark.parametrize("what", SIGNATURES)
def test_a_root_that_is_locked_away(place: Path, registry: DockerRegistry, what: str) -> None:
    base = base_of(place)
    with base.open("r+b") as file:
        file.seek(10240 * 512)
        file.write(SIGNATURES[what].ljust(128 << 10, b"\0"))
    path = bakefile(place, [f"{registry.host}/team/app:1"], base={"file": base})
    done = parbake("bake", "-f", path, "--no-verify", "--json")
    done.refused(2, "BadBase", "no root file system", what, hint="ext4 and xfs")


def backed(place: Path) -> Path:
    sh("qemu-img", "create", "-q", "-f", "qcow2", "-b", base_of(place), "-F", "raw", place / "b.qcow2")
    return place / "b.qcow2"


def with_data_file(place: Path) -> Path:
    option = f"data_file={place / 'data'},data_file_raw=on"
    sh("qemu-img", "create", "-q", "-f", "qcow2", "-o", option, place / "d.qcow2", "4M")
    return place / "d.qcow2"


def descriptor(place: Path) -> Path:
    """A VMDK that is a text, and whose extent is another file of this machine."""
    (place / "secret").write_bytes(bytes(MIB))
    (place / "d.vmdk").write_text(
        '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
        f'RW 2048 FLAT "{place / "secret"}" 0\nddb.adapterType = "ide"\n'
    )
    return place / "d.vmdk"


def truncated(place: Path) -> Path:
    whole = place / "t.qcow2"
    sh("qemu-img", "convert", "-O", "qcow2", base_of(place), whole)
    with whole.open("r+b") as file:
        file.truncate(whole.stat().st_size // 2)
    return whole


def truncated_gpt(place: Path) -> Path:
    return cut(base_of(place))


def truncated_mbr(place: Path) -> Path:
    return cut(base_of(place, "dos"))


def cut(base: Path) -> Path:
    with base.open("r+b") as file:
        file.truncate(base.stat().st_size * 3 // 4)
    return base


def text(place: Path) -> Path:
    (place / "notes.txt").write_text("no disk\n" * 1000)
    return place / "notes.txt"


def empty(place: Path) -> Path:
    (place / "empty.raw").write_bytes(b"")
    return place / "empty.raw"


def packed(place: Path) -> Path:
    sh("gzip", "--fast", base_of(place))
    return place / "base.raw.gz"


def without_containerd(place: Path) -> Path:
    return base_of(place, containerd=False)


def data_only(place: Path) -> Path:
    (place / "data").mkdir()
    return filesystem(place / "data.raw", "ext4", place / "data")


def with_stargz(place: Path) -> Path:
    return base_of(place, config='version = 3\n[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "stargz"\n')


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (backed, ["refers to another file", "base.raw"]),
        (with_data_file, ["refers to another file", "data"]),
        (descriptor, ["refers to another file", "secret"]),
        (truncated, ["t.qcow2", "cut off"]),
        (truncated_gpt, ["base.raw", "cut off", "protective MBR"]),
        (truncated_mbr, ["base.raw", "cut off", "partition 2"]),
        (text, ["not a disk image", "notes.txt"]),
        (empty, ["not a disk image"]),
        (packed, ["compressed with gzip"]),
        (without_containerd, ["has no containerd"]),
        (data_only, ["no root file system", "ext4"]),
        (with_stargz, ["stargz"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_no_base(place: Path, registry: DockerRegistry, make: Any, words: list[str]) -> None:
    path = bakefile(place, [f"{registry.host}/team/app:1"], base={"file": make(place)})
    parbake("bake", "-f", path, "--no-verify", "--json").refused(2, "BadBase", *words)
    assert artefacts(place / "artefacts") == []


def test_an_arm64_volume_is_baked_here(place: Path, registry: DockerRegistry) -> None:
    name = f"{registry.host}/team/many:1"
    both = index(APP, ARM)
    path = bakefile(place, [name], base="none", platform="linux/arm64", size=SMALL)
    record = parbake("bake", "-f", path, "--no-verify", "--json").good()
    with (
        opened(Path(record["artefact_path"]), place / "look", "ext4") as (_, daemon),
        daemon.client() as client,
    ):
        assert targets(client) == {name: both.digest, pause.REFERENCE: record["plan"]["sandbox"]["target"]["digest"]}
        for config in (ARM.config.digest, record["plan"]["sandbox"]["config"]["digest"]):
            assert json.loads(client.content.read(config))["architecture"] == "arm64"
        assert client.content.info(APP.root.digest) is None
        (bottom,) = record["plan"]["sandbox"]["layers"]
        program = (snapshot_folders(client, (bottom["chain_id"],))[0] / "pause").read_bytes()
        assert program[:4] == b"\x7fELF"
        assert int.from_bytes(program[18:20], "little") == 183  # EM_AARCH64


def test_what_has_no_machines_is_baked_and_not_proven(place: Path, registry: DockerRegistry) -> None:
    name = f"{registry.host}/team/riscv:1"
    path = bakefile(place, [name], base="none", platform="linux/riscv64", size=SMALL)
    done = as_program("bake", "-f", path, "--json")  # verification is wanted, and cannot be had
    record = done.good()
    assert "not verified: the artefact is for linux/riscv64" in done.err
    assert "no start-up trace: the artefact is for linux/riscv64" in done.err
    assert "trace" not in record or record["trace"] is None
    assert record["verdict"] is None
    refused = parbake("verify", record["record_path"], "-f", path, "--json")
    assert (refused.code, refused.document["passed"], refused.document["accelerator"]) == (3, False, "none")
    assert "for linux/riscv64, which parbake cannot boot: nothing was booted" in refused.document["problems"][0]
    assert "next: try it on a node" in refused.err
    assert parbake("show", record["record_path"], "--json").good()["parbake"]["verdict"] is None
