"""Write a raw disk as a snapshot: only what differs from its parent, 64 blocks at once, resumable, checked throughout.

Each block is read and hashed once, by the thread that sends it: EBS checks the block against this SHA-256, the list of
blocks holds it, and the whole is checked against the SHA-256 of all of them. Hashing, reading and sending release the
interpreter's lock, so that they overlap with each other and with the network.
A pending snapshot cannot be read (EBS user guide, FAQ), so what it has already is noted: the journal names the snapshot
and the hash of each block that is there, and counts only while AWS says that it is pending; one that was just started
EC2 may not know yet. A block that is written again replaces what was there (API reference, PutSnapshotBlock). If a
machine that lost its claim still sends a block, the checksum of the whole no longer matches, and AWS fails the
snapshot. AWS cancels a snapshot that nobody completes an hour after its last block.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from parbake import aws
from parbake.aws.ebs.journal import Journal, UploadRequest
from parbake.aws.ebs.throttle import Pace
from parbake.aws.tags import as_list
from parbake.core.blocks import BlockList
from parbake.core.claim import Notes
from parbake.core.errors import AwsError, AwsNotFound, ClaimLost, DeadlineExceeded, InputError, Interrupted
from parbake.core.events import Events, Task
from parbake.core.model import EBS_BLOCK
from parbake.machine.disk import ZEROS, data_blocks, read_blocks

BLOCKS_TAG = "parbake:blocks"
"""The tag that holds the digest of the list of blocks that a snapshot was made of."""
_ZEROS_SHA256 = hashlib.sha256(ZEROS).digest()
_HEADERS = {"x-amz-Data-Length": str(EBS_BLOCK), "x-amz-Checksum-Algorithm": "SHA256"}
_ANNOUNCED = 512  # blocks: 256 MiB, which one call to the store announces
_WAIT = 4 * 3600.0  # seconds; sealing a large snapshot is slow at times
_TIMEOUT = 60  # minutes after which AWS cancels a snapshot that nobody writes to


@dataclass(frozen=True, slots=True)
class UploadResult:
    """A completed snapshot, the SHA-256 of the blocks that it holds, and how many were not its parent's."""

    snapshot: str
    blocks: BlockList
    changed: int


def upload(request: UploadRequest, events: Events) -> UploadResult:
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
    if journal.snapshot and _state(journal, request.region, events) not in usable:
        journal.forget()  # cancelled or removed meanwhile
        journal = Journal.open(request.journal, request)
    elif journal.replaced:
        drop(journal.replaced, request.region)
    with journal:
        try:
            blocks = _write(request, journal, events)
        except (Interrupted, KeyboardInterrupt, DeadlineExceeded, ClaimLost):
            raise  # the same command goes on, or another machine
        except Exception as error:
            with suppress(AwsError):  # where it cannot be removed (expired credentials), the same command goes on
                if snapshot := journal.snapshot:
                    new = () if isinstance(error, AwsNotFound) else (snapshot,)  # that has been waited for
                    aws.when_known(lambda: ec2.delete_snapshot(SnapshotId=snapshot), *new)
                journal.forget()
            raise
    _tag(journal.snapshot, blocks, request.region)
    return UploadResult(journal.snapshot, blocks, len(journal.written))


def _tag(snapshot: str, blocks: BlockList, region: str) -> None:
    aws.client("ec2", region).create_tags(Resources=[snapshot], Tags=as_list({BLOCKS_TAG: blocks.digest()}))


def drop(snapshot: str, region: str) -> None:
    """Remove a snapshot that will not be resumed; one that is gone already is fine, and one that has become an AMI."""
    try:
        aws.client("ec2", region).delete_snapshot(SnapshotId=snapshot)
    except AwsNotFound:
        return
    except AwsError as error:
        if error.code != "InvalidSnapshot.InUse":
            raise


def completed(snapshot: str, region: str) -> Mapping[str, Any] | None:
    """Return a snapshot as EC2 describes it, None where it is not there any more, or not completed."""
    try:
        found = _described(snapshot, region)
    except AwsNotFound:
        return None
    return found if found["State"] == "completed" else None


def abandon(shared: Notes, region: str) -> None:
    """Let an upload that machines share be begun anew. Raises AwsError."""
    journal = Journal.read(shared)
    if journal and journal.snapshot:
        drop(journal.snapshot, region)
        journal.forget()


def complete_elsewhere(shared: Notes, region: str, events: Events) -> Journal | None:
    """Return the journal of an upload all of whose blocks another machine has sent, once its snapshot is completed.

    None: there is none. Raises AwsError, DeadlineExceeded.
    """
    journal = Journal.read(shared)
    if journal is None or not journal.complete:
        return None
    state = _state(journal, region, events)
    if state not in {"pending", "completed"}:
        return None
    if state == "pending":
        _seal(journal, region, events, again=True)
    return journal


def _write(request: UploadRequest, journal: Journal, events: Events) -> BlockList:
    if not journal.snapshot:
        journal.began(start(request, journal))
    again = journal.complete
    blocks = _put(request, journal, events)
    if not again:
        journal.completed()
    elif _state(journal, request.region, events) == "completed":
        return blocks
    _seal(journal, request.region, events, again=again)
    return blocks


def _seal(journal: Journal, region: str, events: Events, *, again: bool) -> None:
    """Say that all is there, and wait until AWS has seen to it; ``again``: that may have been said before."""
    try:
        aws.client("ebs", region).complete_snapshot(**_whole(journal))
    except AwsError as error:
        if not again or error.code not in {"ValidationException", "ConflictException"}:
            raise  # else a run before had it sealed, and was killed then
    aws.wait(
        f"snapshot {journal.snapshot}",
        lambda: look(journal.snapshot, region),
        seconds=_WAIT,
        events=events,
        hint="run the same command again: the blocks are there",
    )


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
        below = request.parent.blocks.blocks if request.parent else ()
        there = {*journal.written, *journal.unsure, *below}.difference(indices)
        indices += sorted(index for index in there if index * EBS_BLOCK < before.st_size)
        same = _same(request, journal)
        indices = [index for index in indices if index not in same]
        with events.task(f"upload {request.name} as {journal.snapshot}", len(indices) * EBS_BLOCK) as task:
            writer = _Writer(request, journal, file.fileno(), before.st_size, indices, task)
            writer.pace.each(range(len(indices)), writer.put, EBS_BLOCK)
        after = os.fstat(file.fileno())
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise InputError(
                f"{request.path} changed during the upload",
                hint="make sure that nothing writes to the file meanwhile; `parbake bake --force` bakes it again",
            )
    return BlockList(before.st_size, same | writer.found)


def _same(request: UploadRequest, journal: Journal) -> dict[int, bytes]:
    """Return what the snapshot is known to have of its parent, without a look at the disk, by index."""
    below = request.parent.blocks.blocks if request.parent else {}
    same = {index: digest for index, digest in request.inherited.items() if below.get(index) == digest}
    return {
        index: digest for index, digest in same.items() if index not in journal.written and index not in journal.unsure
    }


class _Writer:
    """Sends blocks of an open file of ``size`` bytes; ``found`` gets the SHA-256 of those that are not zeros.

    Blocks are announced in batches, those without anything new in them not at all: little is in doubt after a death.
    """

    def __init__(
        self, request: UploadRequest, journal: Journal, handle: int, size: int, indices: Sequence[int], task: Task
    ) -> None:
        self.pace = Pace()
        self.found: dict[int, bytes] = {}
        self._indices = indices
        self._announced: set[int] = set()
        self._announcing = threading.Lock()
        self._order, self._journal, self._handle, self._size, self._task = request, journal, handle, size, task
        self._below = request.parent.blocks.blocks if request.parent else {}
        self._unsure = frozenset(journal.unsure)
        self._ebs = aws.Rest(aws.client("ebs", request.region, tries=1))

    def put(self, place: int, buffer: bytearray) -> None:
        """Read a block, and send it unless the snapshot has it."""
        index, batch = self._indices[place], place // _ANNOUNCED
        read_blocks(self._order.path, self._handle, self._size, [buffer], index * EBS_BLOCK)
        if buffer == ZEROS:
            digest = _ZEROS_SHA256
        else:
            digest = self.found[index] = hashlib.sha256(buffer).digest()
        there = self._journal.written.get(index, self._below.get(index, _ZEROS_SHA256))
        if digest != there or index in self._unsure:
            self._announce(batch)
            path = f"/snapshots/{self._journal.snapshot}/blocks/{index}"
            headers = {**_HEADERS, "x-amz-Checksum": _text(digest)}
            self.pace.call(lambda: self._ebs.put("put_snapshot_block", path, headers, buffer))
            self._journal.wrote(index, digest)
        elif batch in self._announced:
            self._journal.left(index)
        self._task.advance(EBS_BLOCK)

    def _announce(self, batch: int) -> None:
        with self._announcing:
            if batch not in self._announced:
                self._journal.announce(self._indices[batch * _ANNOUNCED : (batch + 1) * _ANNOUNCED])
                self._announced.add(batch)


def _whole(journal: Journal) -> dict[str, Any]:
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


def _state(journal: Journal, region: str, events: Events) -> str:
    """Return the state of a journal's snapshot; ``gone`` when EC2 does not know it, though it had time to."""
    patience = max(0.0, journal.began_at + aws.UNKNOWN_SECONDS - time.time())

    def look() -> aws.Observation:
        return aws.Observation(True, value=str(_described(journal.snapshot, region)["State"]))

    try:
        what = f"look for {journal.snapshot}"
        return str(aws.wait(what, look, seconds=patience, events=events, new=patience > 0))
    except (AwsNotFound, DeadlineExceeded):
        return "gone"


def look(snapshot: str, region: str) -> aws.Observation:
    """Look how far a snapshot is."""
    seen = _described(snapshot, region)
    state, percent = str(seen["State"]), str(seen.get("Progress", "")).rstrip("%")
    failed = f"AWS says {seen.get('StateMessage') or state}" if state == "error" else ""
    return aws.Observation(state == "completed", state, int(percent) if percent.isdigit() else None, failed)
