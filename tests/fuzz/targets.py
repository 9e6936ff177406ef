"""What is fuzzed: any bytes must end in a result or in one of our errors, within bounded memory and time.

A target is a function of bytes; what it raises beyond our errors is a finding. Its seeds are what mutation starts from.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import zstandard

from parbake.coldstart.trace import Part, Read, Trace, hydrate_list, summary
from parbake.coldstart.trace.data import HotEntry, parse
from parbake.coldstart.trace.tracefs import Device, parse_lines
from parbake.core.errors import BadContent, InputError, LayerError, NoSuchImage
from parbake.images.layers import FolderSink, complete_folder, engine, unpack
from parbake.images.layers.archive import Archive, Chunks
from parbake.images.registry import documents
from parbake.machine.vm import busiest_disk, marked_disk
from parbake.machine.vm.reads import by_disk
from standins.hostile import corpus
from standins.layers import describe
from standins.tars import BLOCK, archive, checksummed, entry, pax

SEED = archive(
    entry(b"etc/", b"5", mode=0o755),
    entry(b"etc/motd", data=b"hello" * 200),
    entry(b"l", b"2", link=b"etc"),
    entry(b"h", b"1", link=b"etc/motd"),
    pax({b"mtime": b"1.5", b"SCHILY.xattr.user.a": b"b"}),
    entry(b"l/x", data=b"y"),
    entry(b"n" * 150, data=b"z"),
    pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.size": b"9"}),
    entry(b"sp", data=b"1\n2\n3\n".ljust(512, b"\0") + b"abc"),
)
"""One archive with most of what an archive may have."""


def fuzz_archive(data: bytes) -> int:
    """Read a tar in buffers of 1 KiB; return how many entries it has, -1 when it is refused."""
    pieces = iter([memoryview(data)[at : at + 1024] for at in range(0, len(data), 1024)])
    reader = Archive(Chunks(lambda: next(pieces, None)), most_entries=10_000)
    count, short = 0, bool(len(data) % 2)  # every other length goes the short way of plain files

    def take(*_: object) -> bool:
        nonlocal count
        count += short
        return short

    try:
        while reader.next(take) is not None:
            count += 1
    except LayerError:
        return -1
    return count


def fuzz_layer(data: bytes) -> bool:
    """Unpack bytes as a layer whose digests are right; return whether it was accepted. Nothing is written outside."""
    folder = Path(tempfile.mkdtemp(dir=_fast()))
    try:
        (folder / "outside").mkdir()
        (folder / "outside/victim").write_bytes(b"untouched")
        target = folder / "target"
        target.mkdir()
        try:
            # Every other length goes the way of large layers.
            with mock.patch.object(engine, "SMALL", engine.SMALL if len(data) % 2 else -1):
                # A diffID cannot be known beforehand for what may inflate to anything.
                unpacked = unpack(
                    io.BytesIO(data), describe(data), FolderSink(target), bound=1 << 24, progress=lambda _: None
                )
            complete_folder(target, unpacked, ())
            accepted = True
        except (LayerError, BadContent):
            accepted = False
        assert {path.name for path in folder.iterdir()} == {"outside", "target"}
        assert [path.name for path in (folder / "outside").iterdir()] == ["victim"]
        assert (folder / "outside/victim").read_bytes() == b"untouched"
        return accepted
    finally:
        shutil.rmtree(folder)


@cache
def _fast() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def with_checksums(data: bytes) -> bytes:
    """Return a tar in which each block is a header with the right checksum, unless it is empty.

    Mutation would else hardly ever get past the checksum. Blocks of data are changed by that, which does no harm.
    """
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    return b"".join(checksummed(block) if len(block) == BLOCK and any(block) else block for block in blocks)


def headers(data: bytes) -> None:
    """Read a tar: as it is, and with checksums that are right."""
    fuzz_archive(data)
    fuzz_archive(with_checksums(data))


def files(data: bytes) -> None:
    """Unpack a tar whose checksums are right."""
    fuzz_layer(with_checksums(data))


def framing(data: bytes) -> None:
    """Inflate, and unpack what comes of it."""
    fuzz_layer(data)


def document(data: bytes) -> None:
    """Read a manifest or an index; the first byte says what the registry calls it."""
    types = ("", *sorted(documents.DOCUMENTS), "text/html; charset=utf-8")
    content_type, body = types[(data[0] if data else 0) % len(types)], data[1:]
    with suppress(BadContent, NoSuchImage, InputError):
        read = documents.read_document("registry/image:tag", body, content_type)
        if isinstance(read.content, documents.Manifest):
            documents.check_image("registry/image:tag", read.content)
        else:
            for each in read.content.manifests:
                assert each.is_attestation in {True, False}
                assert each.descriptor.size >= 0


def config(data: bytes) -> None:
    """Read an image's config."""
    with suppress(BadContent, NoSuchImage):
        documents.read_config("registry/image:tag", data)


def planted(data: bytes) -> None:
    """Fail on purpose, so that a test sees what a finding looks like."""
    if len(data) > 3:
        raise ValueError("planted")


@dataclass(frozen=True)
class Target:
    """A function, its seeds, how long its inputs get at most (bytes), and whether it belongs to ``make fuzz``."""

    function: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]
    longest: int = 1 << 14
    usual: bool = True


def _tars() -> Iterator[bytes]:
    yield SEED
    for data, _ in corpus().values():
        if len(data) <= 1 << 14:
            yield data


def _packed() -> Iterator[bytes]:
    yield SEED
    yield gzip.compress(SEED, 1)
    yield gzip.compress(SEED[:1000], 1) + gzip.compress(b"") + gzip.compress(SEED[1000:]) + bytes(20)
    yield gzip.compress(bytes(1 << 22))
    for level in (1, 19):
        yield zstandard.ZstdCompressor(level=level, write_checksum=True).compress(SEED)
    skippable = b"\x5f\x2a\x4d\x18" + (6).to_bytes(4, "little") + b"ignore"
    yield skippable + zstandard.compress(SEED[:700]) + skippable + zstandard.compress(SEED[700:])


_DIGEST = "sha256:" + "0123456789abcdef" * 4


def _documents() -> Iterator[bytes]:
    def entry_of(media_type: str, **more: object) -> dict[str, object]:
        return {"mediaType": media_type, "digest": _DIGEST, "size": 10, **more}

    layer = entry_of("application/vnd.oci.image.layer.v1.tar+gzip", annotations={"a": "b"}, urls=["https://x/y"])
    platform = {"os": "linux", "architecture": "arm64", "variant": "v8"}
    manifest = {
        "schemaVersion": 2, "mediaType": documents.OCI_MANIFEST,
        "config": entry_of(documents.OCI_CONFIG), "layers": [layer, layer],
    }  # fmt: skip
    index = {"schemaVersion": 2, "manifests": [entry_of(documents.OCI_MANIFEST, platform=platform, artifactType="a")]}
    old = {"schemaVersion": 1, "fsLayers": [{"blobSum": _DIGEST}]}
    bodies: tuple[object, ...] = (manifest, index, old, {**manifest, **index}, {"mediaType": [1]}, [], None)
    for number in range(6):
        for body in bodies:
            yield bytes([number]) + json.dumps(body).encode()


def _configs() -> Iterator[bytes]:
    rootfs = {"type": "layers", "diff_ids": [_DIGEST]}
    yield json.dumps({"os": "linux", "architecture": "amd64", "variant": None, "rootfs": rootfs, "config": {}}).encode()
    yield b'{"rootfs": {"diff_ids": null}}'
    yield b"[" * 5000


# -- start-up traces, which travel between machines


def trace(data: bytes) -> None:
    """Read bytes as a trace and put them in order; and as lines of the kernel and of QEMU."""
    device = Device("/dev/loop0", ((7, 0),), 8, 1 << 20)
    for read in parse_lines(data.decode(errors="replace").splitlines(), device, since=1.0):
        assert 0 <= read.sector < read.sector + read.length <= device.count
    disks = by_disk(data.decode(errors="replace").splitlines())
    busiest_disk(disks)
    marked_disk(disks, (1, 2, 3))
    with suppress(InputError):
        found = parse(data)
        if all(read.length < 1 << 20 for part in found.parts for read in part.reads):
            hydrate_list(found)
            summary(found)


def _traces() -> Iterator[bytes]:
    reads = (Read(0, 2, 2), Read(3, 1024, 8))
    part = Part(name="a:1", seconds=1.0, stages={"mount": 1.0}, reads=reads)
    yield (
        Trace(uuid="0a", size=1 << 30, parts=(part,), files=(HotEntry("a", 1),)).model_dump_json(by_alias=True).encode()
    )
    yield b" tar-1 [000] ..... 982.219760: block_bio_queue: 7,0 RA 8736 + 8 [tar]\n"
    yield b"1@1795546735.420999:virtio_blk_handle_read vdev 0x1 req 0x2 sector 0 nsectors 1\n"


TARGETS = {
    "headers": Target(headers, _tars),
    "files": Target(files, _tars),
    "framing": Target(framing, _packed),
    "document": Target(document, _documents, 1 << 12),
    "config": Target(config, _configs, 1 << 13),
    "trace": Target(trace, _traces, 1 << 13),
    "planted": Target(planted, lambda: iter([b"x"]), 8, usual=False),
}
