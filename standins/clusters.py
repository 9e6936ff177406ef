"""What tests with a cluster's stand-in share: kubectl, node classes, published records, Bakefiles with targets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from parbake import cli, records
from parbake.aws import images
from parbake.aws.tags import ARTEFACT, KEY, MANAGED, VERIFIED, as_list
from parbake.core import run
from parbake.core.events import Events
from parbake.core.model import GIB, Artefact, Base, Image, Platform, Published, Snapshot
from parbake.core.signing import Signer
from parbake.records import Record
from parbake.workflows import rollout
from standins.plans import digest, image, plan, record

NEEDS_KUBECTL = pytest.mark.skipif(run.find("kubectl") is None, reason="kubectl is not installed")
REGION = "eu-central-1"


def machine_image(
    word: str,
    ami: str,
    *,
    passed: bool | None = True,
    size: int = 8 * GIB,
    region: str = REGION,
    architecture: str = "amd64",
    images: tuple[Image, ...] = (),
) -> Record:
    """Return the record of a machine image that is published in one region."""
    base, platform = Base(kind="debian", identity=digest("recipe")), Platform(architecture=architecture)
    images = images or (image(f"registry.example/{word}:1"),)
    artefact = Artefact(kind="machine-image")
    made = plan(base=base, artefact=artefact, images=images, platform=platform)
    snapshot = Snapshot(id=ami.replace("ami", "snap"), size=size, device="/dev/xvda")
    return _published(made, word, passed, region, Published(image=ami, snapshots=(snapshot,)))


def volume(
    word: str, snapshot: str, *, passed: bool | None = True, size: int = 30 * GIB, region: str = REGION
) -> Record:
    """Return the record of a volume that is published in one region."""
    made = plan(name="data", images=(image(f"registry.example/{word}:1"),))
    return _published(made, word, passed, region, Published(snapshots=(Snapshot(id=snapshot, size=size),)))


def _published(made: Any, word: str, passed: bool | None, region: str, where: Published) -> Record:
    changes = {"plan": made, "artefact": made.artefact_name, "key": made.key, "published": {region: where}}
    return record(word, passed=passed).model_copy(update=changes)


def project(
    folder: Path, targets: list[Mapping[str, Any]], *found: Record, signer: Signer | None = None, **more: Any
) -> Path:
    """Write a Bakefile with targets and more keys, and records, which ``signer`` signs; return the Bakefile."""
    file = folder / "parbake.yaml"
    images = ["registry.example.com/app:1"]
    said = {"version": 1, "images": images, "rollout": targets, "output": "artefacts", **more}
    file.write_text(json.dumps(said))
    (folder / "artefacts").mkdir(exist_ok=True)
    for each in found:
        records.write(folder / "artefacts", each, signer)
        shown_by_aws(each)
    return file


SHOWN: dict[str, dict[str, Any]] = {}
"""What AWS shows of the images and snapshots of records that a test has made up, by id."""


@contextmanager
def showing() -> Iterator[None]:
    """Let AWS show what is ``SHOWN``; the fixture ``made_up_records`` does so for a test."""
    asked = images.described_all

    def described_all(region: str, image: str, snapshots: Iterable[str] = ()) -> tuple[Mapping[str, Any], ...]:
        ids = [image] if image else list(snapshots)
        if all(each in SHOWN for each in ids):
            return tuple(SHOWN[each] for each in ids)
        return asked(region, image, snapshots)

    SHOWN.clear()
    with patch.object(images, "described_all", described_all):
        yield


def shown_by_aws(record: Record) -> None:
    """Let AWS show what a made-up record says to be there, as a bake of it had tagged it."""
    assert images.described_all.__module__ == __name__, "a test that makes records up uses `made_up_records`"
    tags = as_list(
        {KEY: record.key, MANAGED: ARTEFACT, **({VERIFIED: "2026-11-24T00:02:00Z"} if record.verified else {})}
    )
    for there in record.published.values():
        disks = [{"DeviceName": each.device, "Ebs": {"SnapshotId": each.id}} for each in there.snapshots]
        for name in filter(None, (there.image, *(each.id for each in there.snapshots))):
            SHOWN[name] = {"ImageId": there.image, "Tags": tags, "BlockDeviceMappings": disks}


def goes_out_again(folder: Path, *found: Record) -> bool:
    """Whether ``parbake watch`` would hand these out: not what a rollback left."""
    handed = rollout.rollout(
        folder / "parbake.yaml",
        [each.key for each in found],
        Events(),
        rollout.RolloutOptions(dry_run=True, again=False),
    )
    return bool(handed)


def refused(answer: tuple[int, Any], code: int, *says: str) -> None:
    """Check that a command ended with a code and said all of this; a failure shows the whole answer."""
    got, document = answer
    said = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
    assert got == code, said
    for each in says:
        assert json.dumps(each, ensure_ascii=False)[1:-1] in said or each in said, said


def parbake(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    """Run a command of parbake with --json; return its code and its document."""
    code = cli.run([*arguments, "--json"])
    captured = capsys.readouterr()
    sys.stderr.write(captured.err)  # for whoever reads why a test failed
    return code, json.loads(captured.out) if captured.out else None
