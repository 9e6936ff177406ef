"""Write a raw disk as a snapshot: only what differs from its parent, 64 blocks at once, resumable, checked throughout.

EBS checks each block against the SHA-256 that the list of blocks names, and the whole against the SHA-256 of those.
A pending snapshot cannot be read (EBS user guide, FAQ), so what it has already is noted beside the disk: the journal
names the snapshot, and counts only while AWS says that this is pending. A snapshot that is forgotten, AWS cancels an
hour after the last block.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from parbake import aws
from parbake.aws import Stamp
from parbake.aws.tags import ARTEFACT, EXPIRY, MANAGED, as_list
from parbake.disk import BLOCK, ZEROS, BlockList, read_blocks
from parbake.ebs.pace import Pace
from parbake.errors import AwsFault, AwsNotFound, DeadlineExceeded, InputError, Interrupted
from parbake.events import Events
from parbake.model import GIB

BLOCKS_TAG = "parbake:blocks"
"""The tag that holds the digest of the list of blocks that a snapshot was made of."""
_ZEROS_SHA256 = hashlib.sha256(ZEROS).digest()
_COMPLETE = "complete"
_WAIT = 4 * 3600.0  # seconds; sealing a large snapshot is slow at times
_TIMEOUT = 60  # minutes after which AWS cancels a snapshot that nobody writes to


@dataclass(frozen=True, slots=True)
class Parent:
    """A completed snapshot that the new one builds on, and what it holds."""

    snapshot: str
    blocks: BlockList


@dataclass(frozen=True, slots=True)
class Order:
    """What to upload, and as what.

    ``journal`` is the file that notes what has been written. ``encrypted`` and ``kms_key`` (alias, id or ARN) are
    for a snapshot without a parent: with one, the parent decides (StartSnapshot refuses to be told both).
    """

    path: Path
    blocks: BlockList
    journal: Path
    stamp: Stamp
    name: str
    region: str = ""
    parent: Parent | None = None
    encrypted: bool = False
    kms_key: str = ""

    @property
    def changed(self) -> list[int]:
        """The blocks to write, ascending."""
        nothing = BlockList(self.blocks.size, {})
        return self.blocks.changed_since(self.parent.blocks if self.parent else nothing)

    @property
    def gib(self) -> int:
        """The size of volumes made from the snapshot, in GiB."""
        return -(-self.blocks.size // GIB)

    def checksum(self, index: int) -> bytes:
        """Return the SHA-256 of a block, also of one that is zeros."""
        return self.blocks.blocks.get(index, _ZEROS_SHA256)


class Journal:
    """What a pending snapshot holds already, as a file that survives a kill; use with ``with``.

    The first line says what is uploaded and how it was started; then come the snapshot's id, the blocks that AWS has
    acknowledged, and the word that all are there. A last line that was torn does not count.
    """

    def __init__(self, path: Path, start: Mapping[str, Any]) -> None:
        self.path = path
        self.start = dict(start)
        self.snapshot = ""
        self.written: set[int] = set()
        self.complete = False
        self._handle = -1

    @classmethod
    def open(cls, path: Path, order: Order) -> Self:
        """Go on with the journal of an upload of the same bytes onto the same parent, or begin one."""
        same = {
            "blocks": order.blocks.digest(),
            "region": order.region,
            "parent": order.parent.snapshot if order.parent else "",
        }
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            lines = path.read_text().splitlines(keepends=True)
            made = cls(path, json.loads(lines[0]) if lines else {})
            if {name: made.start[name] for name in same} == same:
                for line in (line.strip() for line in lines[1:] if line.endswith("\n")):
                    if line.isdigit():
                        made.written.add(int(line))
                    elif line == _COMPLETE:
                        made.complete = True
                    else:
                        made.snapshot = line
                return made
        tags = {**order.stamp.tags("snapshot", name=order.name), BLOCKS_TAG: same["blocks"]}
        return cls(path, {**same, "token": secrets.token_hex(32), "tags": tags})

    def __enter__(self) -> Self:
        fresh = not self.written and not self.snapshot
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | (os.O_TRUNC if fresh else 0)
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
        self.snapshot = snapshot
        self._note(snapshot)

    def wrote(self, index: int) -> None:
        """Note a block that AWS has acknowledged."""
        self._note(str(index))

    def completed(self) -> None:
        """Note that every block is there."""
        self.complete = True
        self._note(_COMPLETE)

    def forget(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def upload(order: Order, events: Events) -> str:
    """Make sure that a completed snapshot of a disk's bytes exists; return its id.

    One that was made of the same bytes under the same key is found by its tags. An upload that was killed or
    interrupted goes on; one that failed leaves no snapshot. Raises AwsFault, InputError (the file is not what its list
    says), DeadlineExceeded.
    """
    ec2 = aws.client("ec2", order.region)
    filters = [*aws.mine(key=order.stamp.key), {"Name": f"tag:{BLOCKS_TAG}", "Values": [order.blocks.digest()]}]
    found = ec2.pages("describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=filters)
    done = [each for each in found if each["State"] == "completed"]
    if done:
        order.journal.unlink(missing_ok=True)
        return _keep(order, str(done[0]["SnapshotId"]))
    journal = Journal.open(order.journal, order)
    usable = {"pending", "completed"} if journal.complete else {"pending"}
    if journal.snapshot and _state(order, journal.snapshot) not in usable:
        journal.forget()  # cancelled or removed meanwhile
        journal = Journal.open(order.journal, order)
    with journal:
        try:
            _write(order, journal, events)
        except (Interrupted, KeyboardInterrupt, DeadlineExceeded):
            raise  # the same command goes on
        except Exception:
            with suppress(
                AwsFault
            ):  # where it cannot be removed (expired credentials), the same command goes on as well
                if journal.snapshot:
                    ec2.delete_snapshot(SnapshotId=journal.snapshot)
                journal.forget()
            raise
    _keep(order, journal.snapshot)
    journal.forget()
    return journal.snapshot


def _write(order: Order, journal: Journal, events: Events) -> None:
    if not journal.snapshot:
        journal.began(start(order, journal))
    snapshot, changed, again = journal.snapshot, order.changed, journal.complete
    if not journal.complete:
        _put(order, journal, [index for index in changed if index not in journal.written], events)
        journal.completed()
    try:
        aws.client("ebs", order.region).complete_snapshot(**_seal(order, snapshot, changed))
    except AwsFault as error:
        if not again or error.code not in {"ValidationException", "ConflictException"}:
            raise  # else a run before had it sealed, and was killed then
    aws.wait(
        f"snapshot {snapshot}",
        lambda: look(snapshot, order.region),
        seconds=_WAIT,
        events=events,
        hint="run the same command again: the blocks are there",
    )


def start(order: Order, journal: Journal) -> str:
    """Start the snapshot, or find the one that a run before started with the same journal; return its id."""
    wanted: dict[str, Any] = {
        "VolumeSize": order.gib,
        "Timeout": _TIMEOUT,
        "Description": f"parbake {order.name}"[:255],
        "ClientToken": journal.start["token"],
        "Tags": as_list(journal.start["tags"]),
    }
    if order.parent:
        wanted["ParentSnapshotId"] = order.parent.snapshot
    elif order.encrypted:
        wanted["Encrypted"] = True
        if order.kms_key:
            wanted["KmsKeyArn"] = key_arn(order.kms_key, order.region)
    return str(aws.client("ebs", order.region).start_snapshot(**wanted)["SnapshotId"])


def key_arn(key: str, region: str) -> str:
    """Return the ARN of a KMS key that a user names (alias, id, ARN), which is all that StartSnapshot takes."""
    return str(aws.client("kms", region).describe_key(KeyId=key)["KeyMetadata"]["Arn"])


def _put(order: Order, journal: Journal, indices: list[int], events: Events) -> None:
    client = aws.client("ebs", order.region, tries=1)
    size, pace = order.blocks.size, Pace()
    with (
        order.path.open("rb", buffering=0) as file,
        events.task(f"upload {order.name} as {journal.snapshot}", len(indices) * BLOCK) as task,
    ):

        def put(index: int, buffer: bytearray) -> None:
            if index in order.blocks.blocks:
                read_blocks(order.path, file.fileno(), size, [buffer], index * BLOCK)
            else:
                buffer[:] = ZEROS
            pace.call(
                lambda: client.put_snapshot_block(
                    SnapshotId=journal.snapshot,
                    BlockIndex=index,
                    BlockData=buffer,
                    DataLength=BLOCK,
                    Checksum=_text(order.checksum(index)),
                    ChecksumAlgorithm="SHA256",
                )
            )
            journal.wrote(index)
            task.advance(BLOCK)

        try:
            pace.each(indices, put, BLOCK)
        except AwsFault as error:
            if "checksum" in error.message.lower():
                raise InputError(
                    f"{order.path} is not what its list of blocks says ({error.message})",
                    hint="let nothing write to the file meanwhile; `parbake bake --force` makes it anew",
                ) from error
            raise


def _seal(order: Order, snapshot: str, changed: list[int]) -> dict[str, Any]:
    """Return what CompleteSnapshot is asked: the LINEAR checksum is that of all blocks' checksums, ascending."""
    whole = {"SnapshotId": snapshot, "ChangedBlocksCount": len(changed)}
    if not changed:
        return whole
    digest = hashlib.sha256(b"".join(order.checksum(index) for index in changed)).digest()
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


def _state(order: Order, snapshot: str) -> str:
    try:
        return str(_described(snapshot, order.region)["State"])
    except AwsNotFound:
        return "gone"


def look(snapshot: str, region: str) -> aws.Look:
    """Look how far a snapshot is."""
    seen = _described(snapshot, region)
    state, percent = str(seen["State"]), str(seen.get("Progress", "")).rstrip("%")
    failed = f"AWS says {seen.get('StateMessage') or state}" if state == "error" else ""
    return aws.Look(state == "completed", state, int(percent) if percent.isdigit() else None, failed)


def _keep(order: Order, snapshot: str) -> str:
    """Tag a completed snapshot as what the run was for: no clean-up takes it any more."""
    ec2 = aws.client("ec2", order.region)
    ec2.create_tags(Resources=[snapshot], Tags=[{"Key": MANAGED, "Value": ARTEFACT}])
    ec2.delete_tags(Resources=[snapshot], Tags=[{"Key": EXPIRY}])
    return snapshot
