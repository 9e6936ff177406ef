"""An artefact's bytes in a store: packs of 64 blocks of 512 KiB, compressed, and an index that says where each is.

What earlier packs of artefacts of the same name have is not sent again, so that a bake after a small change sends
little more than that.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import batched
from pathlib import Path
from typing import Annotated, Literal

import zstandard
from pydantic import Field

from parbake.core.blocks import BlockList
from parbake.core.errors import BadContent, InputError
from parbake.core.events import Events, Task
from parbake.core.files import write_all
from parbake.core.model import EBS_BLOCK, MIB, Frozen
from parbake.core.workspace import room_for
from parbake.machine.disk import block_list, read_blocks
from parbake.machine.disk.blocks import HASHES
from parbake.records.store.entries import StoredFile, get_object, put_object
from parbake.records.store.port import Store

_BLOCKS = 64  # 32 MiB before compression: few enough objects, and small enough to send again after a cut
_THREADS = 4  # each holds a pack twice
_LEVEL = 1  # layers' files were compressed for their way; here disks must not wait for a processor
_LARGEST = _BLOCKS * EBS_BLOCK
_MOST_PACKED = _LARGEST + MIB  # random bytes become a little more (ZSTD_compressBound)
_MOST_SIZE = 64 << 40  # the largest volume of EBS, in bytes

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Pack(Frozen):
    """Some blocks, one after the other, compressed with zstd: an object, and the digests of its blocks."""

    object: StoredFile
    blocks: tuple[_Digest, ...] = Field(max_length=_BLOCKS)


class PackIndex(Frozen):
    """Where each block of an artefact is: ``places`` gives a block's digest by its index in the file."""

    size: int = Field(ge=0, le=_MOST_SIZE)
    algorithm: Literal["sha256", "blake3"]
    places: dict[Annotated[int, Field(ge=0, lt=_MOST_SIZE // EBS_BLOCK)], _Digest]
    packs: tuple[Pack, ...]

    def blocks(self) -> BlockList:
        """Return the list of blocks of the file."""
        places = {place: bytes.fromhex(digest) for place, digest in self.places.items()}
        return BlockList(self.size, places, self.algorithm)


def send(store: Store, path: Path, known: BlockList | None, earlier: Iterable[PackIndex], events: Events) -> PackIndex:
    """Make sure that a store has a file's bytes; return the index. ``earlier`` are indices of files like it.

    Raises InputError when the file is not what its list of blocks says.
    """
    listed = known or block_list(path, events, algorithm="blake3")
    used, missing = _known_packs(listed, earlier)
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        places = _first_places(listed, missing)
        with (
            events.task(f"store {path.name}", len(places) * EBS_BLOCK) as task,
            ThreadPoolExecutor(_THREADS) as pool,
        ):

            def pack(batch: Sequence[tuple[str, int]]) -> Pack:
                return _pack(store, path, handle, listed, batch, task)

            made = tuple(pool.map(pack, batched(places.items(), _BLOCKS)))
    finally:
        os.close(handle)
    return PackIndex(
        size=listed.size,
        algorithm=listed.algorithm,
        places={index: digest.hex() for index, digest in listed.blocks.items()},
        packs=(*used, *made),
    )


def _known_packs(listed: BlockList, earlier: Iterable[PackIndex]) -> tuple[tuple[Pack, ...], set[str]]:
    """Return packs that have some of a list's blocks, and the blocks that are in none of them."""
    missing = {digest.hex() for digest in listed.blocks.values()}
    used = []
    for index in earlier:
        if index.algorithm != listed.algorithm:
            continue
        for pack in index.packs:
            if not missing.isdisjoint(pack.blocks):
                used.append(pack)
                missing.difference_update(pack.blocks)
    return tuple(used), missing


def _first_places(listed: BlockList, missing: set[str]) -> dict[str, int]:
    """Return a place in the file for each missing block, ascending."""
    places: dict[str, int] = {}
    for index in sorted(listed.blocks):
        digest = listed.blocks[index].hex()
        if digest in missing:
            places.setdefault(digest, index)
    return places


def _pack(
    store: Store, path: Path, handle: int, listed: BlockList, batch: Sequence[tuple[str, int]], task: Task
) -> Pack:
    digest_of = HASHES[listed.algorithm]
    content = bytearray()
    buffer = [bytearray(EBS_BLOCK)]
    for digest, index in batch:
        read_blocks(path, handle, listed.size, buffer, index * EBS_BLOCK)
        if digest_of(buffer[0]).hex() != digest:
            raise InputError(f"{path} changed while it was stored", hint="`parbake verify` shows what is wrong with it")
        content += buffer[0]
    compressed = zstandard.ZstdCompressor(level=_LEVEL).compress(content)
    task.advance(len(content))
    return Pack(object=put_object(store, compressed), blocks=tuple(digest for digest, _ in batch))


def fetch(store: Store, index: PackIndex, path: Path, events: Events) -> None:
    """Write a file from a store; each block is compared with its digest. Raises BadContent, DiskFull."""
    wanted: dict[str, list[int]] = {}
    for place, digest in index.places.items():
        wanted.setdefault(digest, []).append(place)
    covered = {block for pack in index.packs for block in pack.blocks}
    if lost := wanted.keys() - covered:
        raise BadContent(
            f"{len(lost)} blocks of {path.name} are missing from the packs in {store.url}", hint="bake it again"
        )
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _lengthen(handle, index.size, path, store)
        with (
            room_for(path),
            events.task(f"fetch {path.name}", len(index.places) * EBS_BLOCK) as task,
            ThreadPoolExecutor(_THREADS) as pool,
        ):

            def unpack(work: tuple[Pack, frozenset[str]]) -> None:
                _unpack(store, index, handle, path, *work, wanted, task)

            for _ in pool.map(unpack, _shares(index.packs, wanted)):
                pass
        os.fsync(handle)
    finally:
        os.close(handle)


def _lengthen(handle: int, size: int, path: Path, store: Store) -> None:
    try:
        os.truncate(handle, size)
    except OSError as error:
        raise BadContent(
            f"{path.name} in {store.url} has {size} bytes, which no file can have here ({error.strerror})",
            hint="move `output` to another file system",
        ) from error


def _shares(packs: Iterable[Pack], wanted: Mapping[str, object]) -> Iterator[tuple[Pack, frozenset[str]]]:
    """Yield each pack with the blocks that are taken from it: a block may be in more than one."""
    taken: set[str] = set()
    for pack in packs:
        share = frozenset(block for block in pack.blocks if block in wanted and block not in taken)
        taken |= share
        if share:
            yield pack, share


def _unpack(
    store: Store,
    index: PackIndex,
    handle: int,
    path: Path,
    pack: Pack,
    share: frozenset[str],
    wanted: Mapping[str, list[int]],
    task: Task,
) -> None:
    if pack.object.size > _MOST_PACKED:
        raise BadContent(f"{path.name}: a pack in {store.url} has {pack.object.size} bytes", hint="bake it again")
    try:
        packed = io.BytesIO(get_object(store, pack.object, path.name))
        content = zstandard.ZstdDecompressor().stream_reader(packed).read(_LARGEST)  # not more, whatever its head says
    except zstandard.ZstdError as error:
        raise BadContent(f"{path.name}: a pack in {store.url} is not one: {error}", hint="bake it again") from error
    digest_of = HASHES[index.algorithm]
    for number, digest in enumerate(pack.blocks):
        if digest not in share:
            continue
        block = memoryview(content)[number * EBS_BLOCK : (number + 1) * EBS_BLOCK]
        if len(block) != EBS_BLOCK or digest_of(block).hex() != digest:
            raise BadContent(f"{path.name}: a block in {store.url} does not match its digest", hint="bake it again")
        for place in wanted[digest]:
            start = place * EBS_BLOCK
            write_all(handle, block[: max(0, index.size - start)], start)
            task.advance(EBS_BLOCK)
