"""Write a raw disk as a snapshot: only what differs from its parent, 64 blocks at once, resumable, checked throughout.

Each block is read and hashed once, by the thread that sends it: EBS checks the block against this SHA-256, the list of
blocks holds it, and the whole is checked against the SHA-256 of all of them. Hashing, reading and sending release the
interpreter's lock, so that they overlap with each other and with the network.
A pending snapshot cannot be read (EBS user guide, FAQ), so what it has already is noted beside the disk: the journal
names the snapshot and the hash of each block that is there, and counts only while AWS says that it is pending; one that
was just started EC2 may not know yet. A block that is written again replaces what was there (API reference,
PutSnapshotBlock). A snapshot that is forgotten, AWS
cancels an hour after the last block.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from parbake import aws
from parbake.aws import Stamp
from parbake.aws.ebs.throttle import Pace
from parbake.aws.tags import as_list
from parbake.core.errors import AwsError, AwsNotFound, DeadlineExceeded, InputError, Interrupted
from parbake.core.events import Events, Task
from parbake.core.model import GIB
from parbake.machine.disk import BLOCK, ZEROS, BlockList, data_blocks, read_blocks

BLOCKS_TAG = "parbake:blocks"
"""The tag that holds the digest of the list of blocks that a snapshot was made of."""
_ZEROS_SHA256 = hashlib.sha256(ZEROS).digest()
_COMPLETE = "complete"
_HEADERS = {"x-amz-Data-Length": str(BLOCK), "x-amz-Checksum-Algorithm": "SHA256"}
_LINE = re.compile(r"(\d+) ([0-9a-f]{64})")
_WAIT = 4 * 3600.0  # seconds; sealing a large snapshot is slow at times
_TIMEOUT = 60  # minutes after which AWS cancels a snapshot that nobody writes to


@dataclass(frozen=True, slots=True)
class Parent:
    """A completed snapshot that the new one builds on, and what it holds."""

    snapshot: str
    blocks: BlockList


@dataclass(frozen=True, slots=True)
class UploadRequest:
    """What to upload, and as what.

    ``journal`` is the file that notes what has been written; it stays until whoever is done with the disk removes it.
    ``encrypted`` and ``kms_key`` (alias, id or ARN) are for a snapshot without a parent: with one, the parent decides
    (StartSnapshot refuses to be told both).
    """

    path: Path
    journal: Path
    stamp: Stamp
    name: str
    region: str = ""
    parent: Parent | None = None
    encrypted: bool = False
    kms_key: str = ""


@dataclass(frozen=True, slots=True)
class Sent:
    """A completed snapshot, the SHA-256 of the blocks that it holds, and how many were not its parent's."""

    snapshot: str
    blocks: BlockList
    changed: int


class Journal:
    """What a pending snapshot holds already, as a file that survives a kill; use with ``with``.

    The first line says how the snapshot was started; then come its id and when that was, the blocks that AWS has
    acknowledged with their SHA-256 (the last one of a block counts), and the word that all are there. A last line that
    was torn does not count.
    """

    def __init__(self, path: Path, start: Mapping[str, Any]) -> None:
        self.path = path
        self.start = dict(start)
        self.snapshot = ""
        self.began_at = 0.0  # seconds since 1970
        self.written: dict[int, bytes] = {}
        self.complete = False
        self._handle = -1

    @classmethod
    def open(cls, path: Path, request: UploadRequest) -> Self:
        """Go on with the journal of an upload that was started alike, or begin one."""
        same = {
            "key": request.stamp.key,
            "region": request.region,
            "gib": -(-request.path.stat().st_size // GIB),
            "parent": request.parent.snapshot if request.parent else "",
            "encrypted": request.encrypted,
            "kms_key": request.kms_key,
        }
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            lines = path.read_text().splitlines(keepends=True)
            made = cls(path, json.loads(lines[0]) if lines else {})
            if {name: made.start[name] for name in same} == same:
                for line in (line.strip() for line in lines[1:] if line.endswith("\n")):
                    if block := _LINE.fullmatch(line):
                        made.written[int(block[1])] = bytes.fromhex(block[2])
                    elif line == _COMPLETE:
                        made.complete = True
                    else:
                        made.snapshot, _, began_at = line.partition(" ")
                        made.began_at = float(began_at or 0)
                return made
        tags = request.stamp.tags("snapshot", name=request.name)
        return cls(path, {**same, "token": secrets.token_hex(32), "tags": tags})

    def __enter__(self) -> Self:
        fresh = not self.written and not self.snapshot
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_TRUNC if fresh else 0)
        self._handle = os.open(self.path, flags, 0o600)
        if fresh:
            self._note(json.dumps(self.start))
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def _note(self, line: str) -> None:
        os.write(self._handle, f"{line}\n".encode())  # one call: threads do not mix their lines

    def began(self, snapshot: str) -> None:
        """Note the id of the snapshot."""
        self.snapshot, self.began_at = snapshot, time.time()
        self._note(f"{snapshot} {self.began_at:.0f}")

    def wrote(self, index: int, digest: bytes) -> None:
        """Note a block that AWS has acknowledged, with its SHA-256."""
        self.written[index] = digest
        self._note(f"{index} {digest.hex()}")

    def completed(self) -> None:
        """Note that every block is there."""
        self.complete = True
        self._note(_COMPLETE)

    def forget(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def upload(request: UploadRequest, events: Events) -> Sent:
    """Make sure that a completed snapshot of a disk's bytes exists.

    It is tagged as temporary, and with the digest of its blocks: whoever is done with it says so. An upload that was
    killed or interrupted goes on; one that failed leaves no snapshot. Raises AwsError, InputError (the file changes
    meanwhile, or has no bytes), DeadlineExceeded.
    """
    if not request.path.stat().st_size:
        raise InputError(f"{request.path} has no bytes", hint="name a disk, or the file of a volume")
    ec2 = aws.client("ec2", request.region)
    journal = Journal.open(request.journal, request)
    usable = {"pending", "completed"} if journal.complete else {"pending"}
    if journal.snapshot and _state(request, journal, events) not in usable:
        journal.forget()  # cancelled or removed meanwhile
        journal = Journal.open(request.journal, request)
    with journal:
        try:
            blocks = _write(request, journal, events)
        except (Interrupted, KeyboardInterrupt, DeadlineExceeded):
            raise  # the same command goes on
        except Exception as error:
            with suppress(AwsError):  # where it cannot be removed (expired credentials), the same command goes on
                if snapshot := journal.snapshot:
                    new = () if isinstance(error, AwsNotFound) else (snapshot,)  # that has been waited for
                    aws.when_known(lambda: ec2.delete_snapshot(SnapshotId=snapshot), *new)
                journal.forget()
            raise
    ec2.create_tags(Resources=[journal.snapshot], Tags=as_list({BLOCKS_TAG: blocks.digest()}))
    return Sent(journal.snapshot, blocks, len(journal.written))


def _write(request: UploadRequest, journal: Journal, events: Events) -> BlockList:
    if not journal.snapshot:
        journal.began(start(request, journal))
    snapshot, again = journal.snapshot, journal.complete
    blocks = _put(request, journal, events)
    if not again:
        journal.completed()
    elif _state(request, journal, events) == "completed":
        return blocks
    try:
        aws.client("ebs", request.region).complete_snapshot(**_seal(journal))
    except AwsError as error:
        if not again or error.code not in {"ValidationException", "ConflictException"}:
            raise  # else a run before had it sealed, and was killed then
    aws.wait(
        f"snapshot {snapshot}",
        lambda: look(snapshot, request.region),
        seconds=_WAIT,
        events=events,
        hint="run the same command again: the blocks are there",
    )
    return blocks


def start(request: UploadRequest, journal: Journal) -> str:
    """Start the snapshot, or find the one that a run before started with the same journal; return its id."""
    wanted: dict[str, Any] = {
        "VolumeSize": journal.start["gib"],
        "Timeout": _TIMEOUT,
        "Description": f"parbake {request.name}"[:255],
        "ClientToken": journal.start["token"],
        "Tags": as_list(journal.start["tags"]),
    }
    if request.parent:
        wanted["ParentSnapshotId"] = request.parent.snapshot
    elif request.encrypted:
        wanted["Encrypted"] = True
        if request.kms_key:
            wanted["KmsKeyArn"] = key_arn(request.kms_key, request.region)
    return str(aws.client("ebs", request.region).start_snapshot(**wanted)["SnapshotId"])


def key_arn(key: str, region: str) -> str:
    """Return the ARN of a KMS key that a user names (alias, id, ARN), which is all that StartSnapshot takes."""
    return str(aws.client("kms", region).describe_key(KeyId=key)["KeyMetadata"]["Arn"])


def _put(request: UploadRequest, journal: Journal, events: Events) -> BlockList:
    """Hash the disk, and send what the snapshot does not have; return the list of what it has then."""
    with request.path.open("rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        indices = list(data_blocks(file.fileno(), before.st_size))
        # What lies in holes here has to be zeros there as well.
        there = {*journal.written, *(request.parent.blocks.blocks if request.parent else ())}.difference(indices)
        indices += sorted(index for index in there if index * BLOCK < before.st_size)
        with events.task(f"upload {request.name} as {journal.snapshot}", len(indices) * BLOCK) as task:
            writer = _Writer(request, journal, file.fileno(), before.st_size, task)
            writer.pace.each(indices, writer.put, BLOCK)
        after = os.fstat(file.fileno())
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise InputError(
                f"{request.path} changed during the upload",
                hint="make sure that nothing writes to the file meanwhile; `parbake bake --force` makes it anew",
            )
    return BlockList(before.st_size, writer.found)


class _Writer:
    """Sends blocks of an open file of ``size`` bytes; ``found`` gets the SHA-256 of those that are not zeros."""

    def __init__(self, request: UploadRequest, journal: Journal, handle: int, size: int, task: Task) -> None:
        self.pace = Pace()
        self.found: dict[int, bytes] = {}
        self._order, self._journal, self._handle, self._size, self._task = request, journal, handle, size, task
        self._below = request.parent.blocks.blocks if request.parent else {}
        self._ebs = aws.Rest(aws.client("ebs", request.region, tries=1))

    def put(self, index: int, buffer: bytearray) -> None:
        """Read a block, and send it unless the snapshot has it."""
        read_blocks(self._order.path, self._handle, self._size, [buffer], index * BLOCK)
        if buffer == ZEROS:
            digest = _ZEROS_SHA256
        else:
            digest = self.found[index] = hashlib.sha256(buffer).digest()
        if digest != self._journal.written.get(index, self._below.get(index, _ZEROS_SHA256)):
            place = f"/snapshots/{self._journal.snapshot}/blocks/{index}"
            headers = {**_HEADERS, "x-amz-Checksum": _text(digest)}
            self.pace.call(lambda: self._ebs.put("put_snapshot_block", place, headers, buffer))
            self._journal.wrote(index, digest)
        self._task.advance(BLOCK)


def _seal(journal: Journal) -> dict[str, Any]:
    """Return what CompleteSnapshot is asked: the LINEAR checksum is that of all blocks' checksums, ascending."""
    whole = {"SnapshotId": journal.snapshot, "ChangedBlocksCount": len(journal.written)}
    if not journal.written:
        return whole
    digest = hashlib.sha256(b"".join(journal.written[index] for index in sorted(journal.written))).digest()
    return {
        **whole,
        "Checksum": _text(digest),
        "ChecksumAlgorithm": "SHA256",
        "ChecksumAggregationMethod": "LINEAR",
    }


def _text(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _described(snapshot: str, region: str) -> Mapping[str, Any]:
    found = aws.client("ec2", region).describe_snapshots(SnapshotIds=[snapshot])["Snapshots"]
    if not found:
        raise AwsNotFound(f"the snapshot {snapshot} is not known in {region}")
    described: Mapping[str, Any] = found[0]
    return described


def _state(request: UploadRequest, journal: Journal, events: Events) -> str:
    """Return the state of a journal's snapshot; ``gone`` when EC2 does not know it, though it had time to."""
    patience = max(0.0, journal.began_at + aws.UNKNOWN_SECONDS - time.time())

    def look() -> aws.Look:
        return aws.Look(True, value=str(_described(journal.snapshot, request.region)["State"]))

    try:
        what = f"look for {journal.snapshot}"
        return str(aws.wait(what, look, seconds=patience, events=events, new=patience > 0))
    except (AwsNotFound, DeadlineExceeded):
        return "gone"


def look(snapshot: str, region: str) -> aws.Look:
    """Look how far a snapshot is."""
    seen = _described(snapshot, region)
    state, percent = str(seen["State"]), str(seen.get("Progress", "")).rstrip("%")
    failed = f"AWS says {seen.get('StateMessage') or state}" if state == "error" else ""
    return aws.Look(state == "completed", state, int(percent) if percent.isdigit() else None, failed)
