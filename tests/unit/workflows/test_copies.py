"""What is copied to no other region, before AWS is asked for anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from standins.clusters import machine_image, parbake, project
from standins.plans import record

pytestmark = pytest.mark.usefixtures("made_up_records")


def test_what_lies_in_no_cloud_or_has_failed_stays_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    local, bad = record("local"), machine_image("bad", "ami-1", passed=False)
    project(tmp_path, [], local, bad, builder="ebs")
    (tmp_path / "artefacts" / local.artefact).touch()
    (tmp_path / "artefacts/some.raw").touch()
    for what, code, says in (
        (local.key, 2, "lies in no cloud, so there is nothing to copy"),
        (bad.key, 3, "failed verification, and stays where it is"),
        ("other", 2, "no such record or file"),
        ("artefacts/some.raw", 2, "has no record beside it"),
    ):
        found, error = parbake(capsys, "copy", what, "us-east-1")
        assert found == code
        assert says in error["message"]
