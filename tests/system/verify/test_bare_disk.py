"""A bare disk is verified without a plan: what its store holds is looked at, and a store without images is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from parbake.core import run
from parbake.core.events import Events
from standins.base import default_base
from standins.booted_here import BootedHere
from standins.runs import traces

__all__ = ["default_base"]

pytestmark = pytest.mark.root


def test_the_base_itself_has_nothing_to_prove(default_base: Path, tmp_path: Path) -> None:
    """A machine image, nothing in its store, not even a sandbox image."""
    image = tmp_path / "base.qcow2"
    run.run(["qemu-img", "convert", "-O", "qcow2", str(default_base), str(image)])
    with BootedHere(image, None, events=Events(), folder=tmp_path / "work") as verification:
        assert verification.kind == "machine-image"
        verdict = verification.verdict()
    assert verdict.images == ()
    assert verdict.problems == ("there is no image in the runtime's store (namespace k8s.io)",)
    assert not verdict.passed
    [warning] = verdict.warnings
    assert "no sandbox (pause) image localhost/parbake/pause:1" in warning
    assert verdict.boot_seconds is not None
    assert traces(tmp_path) == []
