"""Snapshots written and read by EBS's direct API, against the stand-in that checks what EBS checks."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parbake import aws
from parbake.aws import KEY, MANAGED, Stamp, clients, ebs, encryption
from parbake.aws.ebs import Journal, ParentSnapshot, UploadRequest, throttle
from parbake.aws.ebs.upload import start
from parbake.core.blocks import BlockList
from parbake.core.errors import AwsError, AwsLimit, AwsNoAccess, AwsNotFound, InputError
from parbake.core.events import Event, Events
from parbake.core.model import EBS_BLOCK, GIB, Platform
from parbake.machine.disk import ZEROS, block_list
from standins.ebs_direct_server import Cloud

# Not whole blocks: the last one is filled up.
SIZE = 400 * EBS_BLOCK - 4096
AMD64 = Platform(architecture="amd64")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "_FIRST_PAUSE", 0.002)
    monkeypatch.setattr(throttle, "_LONGEST_PAUSE", 0.05)


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    made = Cloud()
    with made.serve() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        clients.forget()
        yield made


def disk_of(path: Path, blocks: dict[int, bytes], size: int = SIZE) -> BlockList:
    """Write a sparse disk: a few bytes in some of its blocks."""
    with path.open("wb") as file:
        file.truncate(size)
        for index, content in blocks.items():
            os.pwrite(file.fileno(), content, index * EBS_BLOCK + 1000)
    return block_list(path, Events())


def request(path: Path, *, key: str = "k", parent: ParentSnapshot | None = None, **more: object) -> UploadRequest:
    stamp = Stamp(key=key, run="r", name="node")
    journal = path.with_suffix(f".{key}.upload")
    return UploadRequest(path, journal, stamp, "node-k", "eu-west-1", parent, **more)  # type: ignore[arg-type]


def sent(wanted: UploadRequest) -> str:
    """Upload, and return the snapshot; the list of blocks that came of it is that of the file."""
    done = ebs.upload(wanted, Events())
    assert done.blocks == block_list(wanted.path, Events())
    return done.snapshot


def held(cloud: Cloud, snapshot: str) -> dict[int, bytes]:
    """Return what a volume made from a snapshot reads as, without blocks of zeros and the zeros that end a block."""
    return {index: data for index, data in cloud.content(snapshot).items() if data}


def holds(path: Path) -> dict[int, bytes]:
    """Return the blocks of a file that are not zeros, without the zeros that end a block."""
    found, place, size = {}, 0, path.stat().st_size
    with path.open("rb") as file:
        while place < size:
            try:
                place = os.lseek(file.fileno(), place, os.SEEK_DATA) // EBS_BLOCK * EBS_BLOCK
            except OSError:  # a hole up to the end
                break
            if block := os.pread(file.fileno(), EBS_BLOCK, place).rstrip(b"\0"):
                found[place // EBS_BLOCK] = block
            place += EBS_BLOCK
    return found


SMALL = {0: b"boot", 3: b"x" * 5000, 399: b"end"}


def test_a_disk_becomes_a_snapshot(tmp_path: Path, cloud: Cloud) -> None:
    path = tmp_path / "disk.raw"
    blocks, wanted = disk_of(path, SMALL), request(path)
    said: list[Event] = []
    done = ebs.upload(wanted, Events(said.append))
    snapshot, made = done.snapshot, cloud.snapshots[done.snapshot]
    assert done == ebs.UploadResult(snapshot, blocks, 3)
    assert held(cloud, snapshot) == holds(path)
    assert (made.state, made.gib, made.encrypted) == ("completed", 1, False)
    assert (made.tags[MANAGED], made.tags[KEY]) == ("temporary", "k")
    assert made.tags[ebs.BLOCKS_TAG] == blocks.digest()
    assert cloud.calls["PutSnapshotBlock"] == 3
    assert cloud.refused == {}
    (task,) = [event for event in said if event.kind == "task-end" and event.text.startswith("upload")]
    assert task.done == task.total == 3 * EBS_BLOCK

    assert ebs.upload(wanted, Events()) == done, "the journal says that they are there"
    assert cloud.calls["PutSnapshotBlock"] == 3
    ebs.mark_permanent(snapshot, "eu-west-1", verified="2026-01-01T00:00:00Z", events=Events())
    assert (made.tags[MANAGED], made.tags["parbake:verified"]) == ("artefact", "2026-01-01T00:00:00Z")
    assert "parbake:expires" not in made.tags


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.integers(0, 399), st.binary(min_size=1, max_size=3), max_size=6), st.booleans())
def test_a_child_writes_what_differs(tmp_path: Path, cloud: Cloud, blocks: dict[int, bytes], known: bool) -> None:
    parent_path, path = tmp_path / "parent.raw", tmp_path / "child.raw"
    old = disk_of(parent_path, SMALL)
    parent = sent(request(parent_path, key=f"parent-{len(cloud.snapshots)}"))
    new = disk_of(path, {**{index: SMALL[index] for index in (0, 3)}, **blocks})
    found = old if known else ebs.blocks_of(parent, path, Events(), region="eu-west-1")
    before = cloud.calls["PutSnapshotBlock"]
    child = sent(request(path, key=f"child-{len(cloud.snapshots)}", parent=ParentSnapshot(parent, found)))
    assert held(cloud, child) == holds(path)
    assert cloud.snapshots[child].parent == parent
    assert cloud.calls["PutSnapshotBlock"] - before == len(new.changed_since(old))


def test_one_that_changes_nothing_writes_nothing(tmp_path: Path, cloud: Cloud) -> None:
    path = tmp_path / "disk.raw"
    blocks = disk_of(path, SMALL)
    parent = sent(request(path))
    child = sent(request(path, key="other", parent=ParentSnapshot(parent, blocks)))
    assert child != parent
    assert cloud.snapshots[child].written == {}
    assert held(cloud, child) == held(cloud, parent)


def test_what_is_known_to_be_the_parents_is_not_read(tmp_path: Path, cloud: Cloud) -> None:
    """Not even where the disk has other bytes: whoever made it says so. What the parent does not have, is read."""
    path = tmp_path / "disk.raw"
    disk_of(path, {1: b"same", 2: b"old", 3: b"same too"})
    parent = ParentSnapshot(sent(request(path)), block_list(path, Events()))
    found = disk_of(path, {1: b"never read", 2: b"new", 3: b"same too", 4: b"more"})
    inherited = {1: parent.blocks.blocks[1], 2: found.blocks[2], 3: found.blocks[3]}
    done = ebs.upload(request(path, key="c", parent=parent, inherited=inherited), Events())
    assert done.blocks.blocks == {**found.blocks, 1: parent.blocks.blocks[1]}
    assert cloud.snapshots[done.snapshot].written.keys() == {2, 4}


def test_encryption_by_alias(tmp_path: Path, cloud: Cloud) -> None:
    path = tmp_path / "disk.raw"
    blocks = disk_of(path, SMALL)
    made = cloud.snapshots[sent(request(path, encrypted=True, kms_key="alias/nodes"))]
    assert made.encrypted
    assert made.key.startswith("arn:aws:kms:")
    parent = ParentSnapshot(made.id, blocks)
    child = sent(request(path, key="c", parent=parent, encrypted=True, kms_key="alias/nodes"))
    assert cloud.snapshots[child].key == made.key, "the parent decides"
    with pytest.raises(AwsError, match="Alias is not found"):
        sent(request(path, key="m", encrypted=True, kms_key="alias/missing"))


def test_a_region_that_encrypts_by_default(tmp_path: Path, cloud: Cloud) -> None:
    """EBS user guide, "Encryption outcomes for EBS direct APIs"."""
    path = tmp_path / "disk.raw"
    blocks = disk_of(path, SMALL)
    open_parent = sent(request(path, key="p"))
    cloud.by_default["eu-west-1"] = encryption.EBS_KEY
    made = cloud.snapshots[sent(request(path))]
    assert (made.encrypted, made.key) == (True, cloud.default_key("eu-west-1"))
    with pytest.raises(AwsError, match="this account encrypts by default"):
        sent(request(path, key="c", parent=ParentSnapshot(open_parent, blocks)))
    child = cloud.snapshots[sent(request(path, key="d", parent=ParentSnapshot(made.id, blocks)))]
    assert (child.encrypted, child.key, child.written) == (True, made.key, {})


def test_a_copy_that_fails_late_is_seen_and_made_anew(tmp_path: Path, cloud: Cloud) -> None:
    """AWS looks at the key while it copies (EC2 API reference, CopySnapshot)."""
    path = tmp_path / "disk.raw"
    disk_of(path, SMALL)
    cloud.slow = 2
    wanted = request(path, encrypted=True, kms_key="alias/nodes")
    snapshot = sent(wanted)
    how = {"stamp": wanted.stamp, "name": "n", "events": Events()}
    with pytest.raises(AwsNoAccess, match="Given key ID is not accessible") as caught:
        ebs.copy(snapshot, "eu-west-1", "us-east-1", kms_key="alias/missing", **how)  # type: ignore[arg-type]
    assert "kms:CreateGrant" in caught.value.hint
    made = ebs.copy(snapshot, "eu-west-1", "us-east-1", kms_key="alias/nodes", **how)  # type: ignore[arg-type]
    assert [each.id for each in cloud.snapshots.values() if each.region == "us-east-1"] == [made]
    assert cloud.snapshots[made].key == cloud.key_arn("alias/nodes", "us-east-1")


def test_faults_that_pass(tmp_path: Path, cloud: Cloud) -> None:
    """Throttling, failures, broken connections, a snapshot that is known late and sealed slowly."""
    path = tmp_path / "disk.raw"
    disk_of(path, {index: b"%d" % index for index in range(150)})
    cloud.throttle_every, cloud.fail_every, cloud.break_every, cloud.late, cloud.slow = 13, 31, 47, 9, 3
    snapshot = sent(request(path))
    assert cloud.refused["RequestThrottledException"] > 0
    assert cloud.refused["InternalServerException"] > 0
    assert cloud.refused["ResourceNotFoundException"] > 0
    assert held(cloud, snapshot) == holds(path)
    assert cloud.snapshots[snapshot].state == "completed"


def test_throttling_lowers_what_is_in_flight(cloud: Cloud) -> None:
    paced = throttle.Pace()
    with pytest.raises(AwsLimit):
        paced.call(_throttled)
    assert paced.limit < throttle.IN_FLIGHT
    before = paced.limit
    for _ in range(200):
        paced.call(lambda: None)
    assert before < paced.limit <= throttle.IN_FLIGHT
    assert cloud.calls == {}


def _throttled() -> None:
    raise AwsLimit("throttled", code="RequestThrottledException")


def test_at_most_64_are_in_flight(tmp_path: Path, cloud: Cloud) -> None:
    path = tmp_path / "disk.raw"
    disk_of(path, dict.fromkeys(range(300), b"x"))
    sent(request(path))
    assert 1 < cloud.most <= 64


@pytest.mark.parametrize("reason", ["always throttled", "changed file", "cut off"])
def test_an_upload_that_fails_leaves_no_snapshot(
    tmp_path: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    path = tmp_path / "disk.raw"
    disk_of(path, SMALL)
    wrote = Journal.wrote

    def meanwhile(journal: Journal, index: int, digest: bytes) -> None:
        wrote(journal, index, digest)
        with path.open("r+b") as file:
            file.write(b"y") if reason == "changed file" else file.truncate(300 * EBS_BLOCK)

    error: type[Exception] = InputError
    if reason == "always throttled":
        cloud.rate, error = 0.001, AwsLimit
    else:
        monkeypatch.setattr(Journal, "wrote", meanwhile)
    with pytest.raises(error):
        sent(request(path))
    assert cloud.snapshots == {}
    assert not request(path).journal.exists()


def test_a_wrong_whole_ends_in_an_error_and_is_removed(tmp_path: Path, cloud: Cloud) -> None:
    """A journal that says more than is there: the LINEAR checksum tells."""
    path = tmp_path / "disk.raw"
    blocks, wanted = disk_of(path, SMALL), request(path)
    with Journal.open(wanted.journal, wanted) as journal:
        journal.began(start(wanted, journal))
        journal.wrote(3, blocks.blocks[3])
    with pytest.raises(AwsError, match="checksums do not match"):
        sent(wanted)
    assert cloud.snapshots == {}
    assert not wanted.journal.exists()
    assert held(cloud, sent(wanted)) == holds(path)


@pytest.mark.parametrize("wrong", ["snapshot", "checksum", "place", "throttled", "credentials"])
def test_refusals_read_as_those_of_boto3(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """Blocks are sent past boto3's own layers: what comes back means the same."""
    client = aws.client("ebs", "eu-west-1", tries=1)
    snapshot = client.start_snapshot(VolumeSize=1)["SnapshotId"] if wrong != "snapshot" else "snap-00000000000000009"
    digest = hashlib.sha256(ZEROS if wrong != "checksum" else b"").digest()
    index, checksum = 4096 if wrong == "place" else 1, base64.b64encode(digest).decode()
    cloud.throttle_every = wrong == "throttled"
    if wrong == "credentials":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "")
        clients.forget()
        client = aws.client("ebs", "eu-west-1", tries=1)
    with pytest.raises(AwsError) as usual:
        client.put_snapshot_block(
            SnapshotId=snapshot, BlockIndex=index, BlockData=ZEROS, DataLength=EBS_BLOCK, Checksum=checksum,
            ChecksumAlgorithm="SHA256",
        )  # fmt: skip
    headers = {"x-amz-Data-Length": str(EBS_BLOCK), "x-amz-Checksum-Algorithm": "SHA256", "x-amz-Checksum": checksum}
    with pytest.raises(AwsError) as bare:
        aws.Rest(client).put("put_snapshot_block", f"/snapshots/{snapshot}/blocks/{index}", headers, bytearray(ZEROS))
    assert type(bare.value) is type(usual.value)
    assert (bare.value.message, bare.value.code, bare.value.hint) == (
        usual.value.message,
        usual.value.code,
        usual.value.hint,
    )


def test_nothing_is_no_disk(tmp_path: Path, cloud: Cloud) -> None:
    (tmp_path / "disk.raw").touch()
    with pytest.raises(InputError, match="has no bytes"):
        sent(request(tmp_path / "disk.raw"))
    assert cloud.calls == {}


# -- reading


def test_a_snapshot_becomes_a_file(tmp_path: Path, cloud: Cloud) -> None:
    path = tmp_path / "disk.raw"
    blocks = disk_of(path, {index * 3: b"%d" % index for index in range(130)})  # more than a page of 100
    snapshot = sent(request(path))
    cloud.fail_every = 17
    fetched = ebs.fetch(snapshot, tmp_path / "back.raw", Events(), region="eu-west-1")
    assert (fetched.snapshot, fetched.blocks) == (snapshot, BlockList(GIB, blocks.blocks))
    assert fetched.path.stat().st_size == GIB
    assert holds(fetched.path) == holds(path)
    assert fetched.path.stat().st_blocks * 512 <= 131 * EBS_BLOCK, "what is not there stays a hole"
    with pytest.raises(InputError, match="exists already"):
        ebs.fetch(snapshot, tmp_path / "back.raw", Events(), region="eu-west-1")


@pytest.mark.usefixtures("cloud")
def test_fetching_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither an AMI nor a snapshot"):
        ebs.fetch("vol-1", tmp_path / "x", Events(), region="eu-west-1")
    with pytest.raises(AwsNotFound) as caught:
        ebs.fetch("snap-00000000000000009", tmp_path / "x", Events(), region="eu-west-1")
    assert "copy" in caught.value.hint
    with pytest.raises(AwsError, match="does not exist"):
        ebs.fetch("ami-00000000000000009", tmp_path / "x", Events(), region="eu-west-1")
    assert list(tmp_path.iterdir()) == []


# -- AMIs


def test_a_snapshot_becomes_an_ami_with_what_nodes_need(tmp_path: Path, cloud: Cloud) -> None:
    path = tmp_path / "disk.raw"
    disk_of(path, SMALL)
    wanted = request(path)
    snapshot = sent(wanted)
    cloud.slow = 2
    how = {"name": "node-k", "platform": AMD64, "stamp": wanted.stamp, "region": "eu-west-1"}
    how |= {"traits": ebs.Traits(boot="uefi-preferred")}
    ami = ebs.register(snapshot, events=Events(), **how)  # type: ignore[arg-type]
    made = cloud.images[ami]
    expected = {
        "Architecture": "x86_64",
        "VirtualizationType": "hvm",
        "EnaSupport": "true",
        "BootMode": "uefi-preferred",
        "ImdsSupport": "v2.0",
        "RootDeviceName": "/dev/xvda",
    }
    assert made["attributes"].items() >= expected.items()
    assert (made["device"], made["snapshot"], made["tags"][MANAGED]) == ("/dev/xvda", snapshot, "temporary")
    assert ebs.register(snapshot, events=Events(), **how) == ami  # type: ignore[arg-type]
    assert len(cloud.images) == 1
    assert "TpmSupport" not in made["attributes"]
    fetched = ebs.fetch(ami, tmp_path / "root.raw", Events(), region="eu-west-1")
    assert holds(fetched.path) == holds(path)

    disk_of(path, {1: b"other"})
    other = sent(request(path, key="o"))
    with pytest.raises(AwsError, match="already in use") as caught:
        ebs.register(other, events=Events(), **how)  # type: ignore[arg-type]
    assert "change `name`" in caught.value.hint


@pytest.mark.parametrize(
    ("boot", "tpm", "said"), [("uefi", True, "v2.0"), ("uefi", False, ""), ("uefi-preferred", True, "")]
)
def test_a_tpm_holds_where_the_disk_boots_by_uefi_alone(
    tmp_path: Path, cloud: Cloud, boot: str, tpm: bool, said: str
) -> None:
    path = tmp_path / "disk.raw"
    disk_of(path, SMALL)
    wanted = request(path)
    how = {"name": "node-k", "platform": AMD64, "stamp": wanted.stamp, "region": "eu-west-1"}
    traits = ebs.Traits(boot=boot, tpm=tpm)
    ami = ebs.register(sent(wanted), events=Events(), traits=traits, **how)  # type: ignore[arg-type]
    assert cloud.images[ami]["attributes"].get("TpmSupport", "") == said
    assert ebs.traits_of(ami, "eu-west-1", Events()) == replace(traits, tpm=bool(said))


def test_without_a_signature_for_ebs_nothing_is_answered(
    tmp_path: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    clients.forget()
    path = tmp_path / "disk.raw"
    disk_of(path, SMALL)
    with pytest.raises(AwsNoAccess, match="no AWS credentials"):
        sent(request(path))
    assert cloud.calls == {}


# -- repeating


@pytest.mark.parametrize("way", ["put", "get"])
def test_a_call_is_repeated_so_often_and_by_nobody_else(
    tmp_path: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """One place repeats calls for blocks: layers that do so as well would multiply."""
    monkeypatch.setattr(throttle, "_FIRST_PAUSE", 0.001)
    path = tmp_path / "disk.raw"
    disk_of(path, {3: b"alone"})
    operation = "GetSnapshotBlock" if way == "get" else "PutSnapshotBlock"
    snapshot = sent(request(path)) if way == "get" else ""
    cloud.fail_every = 1
    with pytest.raises(AwsError, match="InternalServerException"):
        ebs.fetch(snapshot, tmp_path / "b", Events(), region="eu-west-1") if snapshot else sent(request(path))
    assert (cloud.calls[operation], cloud.refused["InternalServerException"]) == (throttle._TRIES, throttle._TRIES)


def test_pauses_double_to_a_bound_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    paced = throttle.Pace()
    waited: list[float] = []
    monkeypatch.setattr(paced._stopped, "wait", waited.append)
    with pytest.raises(AwsLimit):
        paced.call(_throttled)
    bounds = [min(throttle._FIRST_PAUSE * 2**tries, throttle._LONGEST_PAUSE) for tries in range(1, throttle._TRIES)]
    assert len(waited) == len(bounds)
    assert all(bound / 4 <= pause <= bound for pause, bound in zip(waited, bounds, strict=True))
    assert len({pause / bound for pause, bound in zip(waited, bounds, strict=True)}) > 1
