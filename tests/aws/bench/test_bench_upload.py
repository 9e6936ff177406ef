"""The benchmark's own code, on a disk that costs nothing. Figures are not judged, only that they are figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import upload
from parbake.aws import clients
from parbake.core.model import MIB


def test_both_sides_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")  # put back at the end, as all that the benchmark sets
    monkeypatch.setattr(upload, "CHANGED", 0.5)
    clients.forget()
    result = upload.measure(16 * MIB, 1, tmp_path)
    assert set(result) == {"full_mib_s", "plain_mib_s", "ratio", "incremental_requests", "changed_blocks"}
    assert all(value > 0 for value in result.values())
    assert result["changed_blocks"] == 16
    assert result["incremental_requests"] == 20, "one for each block, two to start and complete, two of EC2's"
