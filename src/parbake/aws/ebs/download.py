"""Read a snapshot into a file, or find out what it holds: 64 blocks at once, each checked against its SHA-256."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parbake import aws
from parbake.aws.ebs.throttle import Pace
from parbake.aws.images import described
from parbake.core.blocks import BlockList
from parbake.core.errors import AwsError, AwsNoAccess, AwsNotFound, BadContent, InputError
from parbake.core.events import Events
from parbake.core.model import EBS_BLOCK, GIB
from parbake.core.workspace import publish, room_for, work_folder
from parbake.machine.disk import ZEROS, data_blocks

_PAGE = 10_000  # the most that one call lists


@dataclass(frozen=True, slots=True)
class FetchedSnapshot:
    """A snapshot as a raw, sparse file, and the list of its blocks."""

    path: Path
    snapshot: str
    blocks: BlockList


@dataclass(frozen=True, slots=True)
class _Listed:
    """The blocks that a snapshot has, with the tokens by which they are read; ``size`` in bytes."""

    size: int
    tokens: dict[int, str]


def fetch(what: str, target: Path, events: Events, *, region: str = "") -> FetchedSnapshot:
    """Read a snapshot, or the root disk of an AMI, into a sparse file; it appears when it is complete.

    Raises InputError (neither an AMI's nor a snapshot's id; the target exists), AwsError, BadContent, DiskFull.
    """
    if target.exists():
        raise InputError(f"{target} exists already", hint="name another file, or remove it")
    snapshot = _snapshot_of(what, region)
    listed = _list(snapshot, region, events)
    target.parent.mkdir(parents=True, exist_ok=True)
    with room_for(target), work_folder(target.parent, "fetch") as work:
        draft = work / target.name
        with draft.open("wb", buffering=0) as file:
            file.truncate(listed.size)
            found = _read(snapshot, region, listed, listed.tokens, events, file.fileno())
        publish(draft, target)
    return FetchedSnapshot(target, snapshot, BlockList(listed.size, found))


def blocks_of(snapshot: str, disk: Path, events: Events, *, region: str = "") -> BlockList:
    """Return the list of a snapshot's blocks, as far as it helps to say what of a raw disk differs from it.

    Blocks that only the snapshot has are in the list with a word for a digest: they differ without being read.
    """
    listed = _list(snapshot, region, events)
    with disk.open("rb", buffering=0) as file:
        common = listed.tokens.keys() & set(data_blocks(file.fileno(), os.fstat(file.fileno()).st_size))
    unread = dict.fromkeys(listed.tokens.keys() - common, b"unread")
    return BlockList(listed.size, {**unread, **_read(snapshot, region, listed, common, events, None)})


def _snapshot_of(what: str, region: str) -> str:
    """Return the snapshot that an id names: itself, or an AMI's root disk."""
    if what.startswith("snap-"):
        return what
    if not what.startswith("ami-"):
        raise InputError(f"{what!r} is the id of neither an AMI nor a snapshot", hint="such as ami-… or snap-…")
    ec2 = aws.client("ec2", region)
    images = ec2.describe_images(ImageIds=[what])["Images"]
    if not images:
        raise InputError(f"there is no AMI {what} in {ec2.region}", hint="check the id and the region")
    image = described(images[0], ec2.region)
    if not image.snapshots:
        raise InputError(
            f"{what} does not name the snapshot of its root disk",
            hint=f"copy it into your account first: aws ec2 copy-image --source-image-id {what} …",
        )
    return image.snapshots[0]


def _list(snapshot: str, region: str, events: Events) -> _Listed:
    """List the blocks of a snapshot; a page may be empty and not the last."""
    client = aws.client("ebs", region)
    tokens: dict[int, str] = {}
    more: dict[str, str] = {}
    with events.task(f"list the blocks of {snapshot}", unit="items") as task:
        while True:
            try:
                page = client.list_snapshot_blocks(SnapshotId=snapshot, MaxResults=_PAGE, **more)
            except (AwsNoAccess, AwsNotFound) as error:
                error.hint = (
                    f"{error.hint}; snapshots of others that are public cannot be read: copy the AMI or the snapshot "
                    "into your account first (aws ec2 copy-image, copy-snapshot)"
                )
                raise
            for block in page.get("Blocks", ()):
                tokens[int(block["BlockIndex"])] = block["BlockToken"]
            task.advance(len(page.get("Blocks", ())))
            if not page.get("NextToken"):
                break
            more = {"NextToken": page["NextToken"]}
    if page.get("BlockSize", EBS_BLOCK) != EBS_BLOCK:
        raise AwsError(f"the blocks of {snapshot} have {page['BlockSize']} bytes, not {EBS_BLOCK}")
    return _Listed(int(page["VolumeSize"]) * GIB, tokens)


def _read(
    snapshot: str, region: str, listed: _Listed, indices: Iterable[int], events: Events, handle: int | None
) -> dict[int, bytes]:
    """Read blocks, write them into an open file if there is one, and return the SHA-256 of those that are not zeros."""
    client, pace = aws.client("ebs", region, tries=1), Pace()
    wanted = sorted(indices)
    found: dict[int, bytes] = {}
    lock = threading.Lock()
    with events.task(f"read {snapshot}", len(wanted) * EBS_BLOCK) as task:

        def get(index: int, _: bytearray) -> None:
            data, digest = pace.call(lambda: _get(client, snapshot, index, listed.tokens[index]))
            if data != ZEROS:
                if handle is not None:
                    os.pwrite(handle, data, index * EBS_BLOCK)
                with lock:
                    found[index] = digest
            task.advance(EBS_BLOCK)

        pace.each(wanted, get, 0)
    return found


def _get(client: aws.Client, snapshot: str, index: int, token: str) -> tuple[bytes, bytes]:
    answer: dict[str, Any] = client.get_snapshot_block(SnapshotId=snapshot, BlockIndex=index, BlockToken=token)
    with aws.translating("ebs", "get_snapshot_block", client.region):
        data: bytes = answer["BlockData"].read()
    digest = hashlib.sha256(data).digest()
    if len(data) != EBS_BLOCK or answer["Checksum"] != base64.b64encode(digest).decode():
        raise BadContent(f"block {index} of {snapshot} does not match its checksum", hint="run the same command again")
    return data, digest
