"""What the cache remembers of a disk image is believed where this user wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parbake.core.events import Events
from parbake.machine import disk
from parbake.machine.disk import files


def test_a_digest_that_others_have_written_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, read = tmp_path / "base.raw", list[Path]()
    image.write_bytes(b"a base")

    def inspect(path: Path) -> dict[str, str]:
        read.append(path)
        return {"format": "raw", "virtual-size": "6"}

    monkeypatch.setattr(files, "inspect", inspect)
    true = disk.describe(image, tmp_path / "cache", Events())
    assert disk.describe(image, tmp_path / "cache", Events()) == true
    assert len(read) == 1
    [remembered] = (tmp_path / "cache/digests").glob("*.json")
    said = json.loads(remembered.read_text())
    other = json.dumps({**said, "digest": "sha256:" + "0" * 64}).encode()
    for lie in (other, b"[" * 500, b"{}", b"\xff"):
        remembered.write_bytes(lie)
        assert disk.describe(image, tmp_path / "cache", Events()) == true
    assert len(read) == 5
