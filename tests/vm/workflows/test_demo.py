"""The main job, end to end, as `make demo` runs it, but with a small application.

The sample's heavy imports and its hundreds of megabytes would take minutes in emulation; they are for
``tests/system/workflows/test_demo.py``, where the sample starts on this machine.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parbake import records
from parbake.cli import run
from parbake.workflows.demo import sample
from tests.fakes.contexts import write_files

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow(110)]

CONTAINERFILE = """\
FROM scratch
ADD busybox /bin/busybox
ADD healthz /www/healthz
ENTRYPOINT ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]
"""


def prepare(folder: Path, **_: object) -> Path:
    busybox = Path("/bin/busybox").read_bytes()
    write_files(folder, {"Containerfile": CONTAINERFILE, "busybox": busybox, "healthz": "well\n"})
    (folder / "busybox").chmod(0o755)
    return folder


def test_the_demo_bakes_boots_starts_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "prepare", prepare)
    assert run(["demo", str(tmp_path / "demo"), "--json", "--progress", "none"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["verified"]
    (image,) = outcome["plan"]["images"]
    (started,) = [seen for seen in outcome["verdict"]["images"] if seen["reference"] == image["reference"]]
    assert started["pinned"]
    assert started["unpacked"]
    assert started["digest"] == image["target"]["digest"]
    assert outcome["start_baked_seconds"] > 0
    assert outcome["start_pulled_seconds"] > 0
    record = records.read(Path(outcome["record_path"]))
    assert record.verified
    assert record.plan.base.kind == "debian"
    assert record.base_digest
