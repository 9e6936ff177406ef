"""Uploads to EBS that were cut off: the next goes on by the journal of what was acknowledged."""

from __future__ import annotations

import importlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parbake import aws
from parbake.aws import ebs
from parbake.aws.ebs import Journal, ParentSnapshot
from parbake.aws.ebs.upload import start
from parbake.core.events import Events
from standins.ebs_direct_server import Cloud
from standins.forks import in_child
from tests.aws.aws.test_ebs import SMALL, cloud, disk_of, held, holds, quick, request, sent

__all__ = ["cloud", "quick"]


def killed(point: str, path: Path) -> None:
    """Upload, and die at a point: in a copy of this process, whose modules nobody else sees."""
    uploads: Any = importlib.import_module("parbake.aws.ebs.upload")

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    match point:
        case "started":
            uploads.Journal.began = die
        case "middle":
            wrote, count = uploads.Journal.wrote, iter(range(100))
            uploads.Journal.wrote = lambda *block: die() if next(count, None) is None else wrote(*block)
        case "written":
            uploads.Journal.completed = die
        case "sealing":
            uploads._whole = die
        case "sealed":
            uploads.look = die
        case _:
            uploads.UploadResult = die
    ebs.upload(request(path), Events())


@pytest.mark.parametrize("point", ["started", "middle", "written", "sealing", "sealed", "done"])
def test_an_upload_that_was_killed_goes_on(tmp_path: Path, cloud: Cloud, point: str) -> None:
    path = tmp_path / "disk.raw"
    blocks = disk_of(path, {index: b"%d" % index for index in range(300 if point == "middle" else 60)})
    cloud.slow = 2
    assert in_child(lambda: killed(point, path)) == -signal.SIGKILL
    assert len(cloud.snapshots) == 1
    snapshot = sent(request(path))
    assert list(cloud.snapshots) == [snapshot]
    assert held(cloud, snapshot) == holds(path)
    assert cloud.snapshots[snapshot].tags[ebs.BLOCKS_TAG] == blocks.digest()
    in_flight = 64 if point == "middle" else 0
    assert cloud.calls["PutSnapshotBlock"] <= len(blocks.blocks) + in_flight, "what was acknowledged is not sent again"


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.integers(0, 399), st.binary(min_size=1, max_size=3), max_size=6), st.booleans())
def test_what_changed_since_the_kill_is_sent_again(
    tmp_path: Path, cloud: Cloud, blocks: dict[int, bytes], child: bool
) -> None:
    """Hashes say what a pending snapshot has: other bytes replace it, also zeros, also what the parent has."""
    below = tmp_path / "parent.raw"
    old = disk_of(below, SMALL)
    parent = ParentSnapshot(sent(request(below, key=f"below-{len(cloud.snapshots)}")), old) if child else None
    path = tmp_path / "disk.raw"
    disk_of(path, {0: b"other", 3: SMALL[3], 7: b"more"})
    wanted = request(path, key=f"k-{len(cloud.snapshots)}", parent=parent)
    with pytest.MonkeyPatch.context() as cut:
        cut.setattr(Journal, "completed", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            sent(wanted)
    disk_of(path, blocks)
    snapshot = sent(wanted)
    assert held(cloud, snapshot) == holds(path)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_journal_whose_snapshot_is_gone_counts_for_nothing(
    tmp_path: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "UNKNOWN_SECONDS", 0.05)
    path = tmp_path / "disk.raw"
    blocks, wanted = disk_of(path, SMALL), request(path)
    with Journal.open(wanted.journal, wanted) as journal:
        journal.began(start(wanted, journal))
        journal.wrote(3, blocks.blocks[3])
    cloud.snapshots.clear()  # AWS has cancelled it
    assert held(cloud, sent(wanted)) == holds(path)


def test_what_is_no_journal_of_this_upload_counts_for_nothing(tmp_path: Path, cloud: Cloud) -> None:
    path = tmp_path / "disk.raw"
    for content in (b"not a journal", b"{}\nsnap-1\n3\n", b""):
        disk_of(path, {**SMALL, 7: b"7" + content})
        wanted = request(path)
        wanted.journal.write_bytes(content)
        assert held(cloud, sent(wanted)) == holds(path)
        wanted.journal.unlink()
