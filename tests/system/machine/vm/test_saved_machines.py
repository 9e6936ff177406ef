"""States that QEMU itself writes and reads, of machines with nothing on their disk; what boots is in tests/vm."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest

from parbake.core.errors import EnvironmentProblem, MachineError
from parbake.machine.vm import Drive, Machine, Saved, saved


@pytest.fixture
def disks(tmp_path: Path) -> tuple[Path, Path]:
    empty, volume = tmp_path / "empty.raw", tmp_path / "volume.raw"
    for path in (empty, volume):
        path.write_bytes(bytes(1 << 20))
    return empty, volume


def machine(disks: tuple[Path, Path], folder: Path) -> Machine:
    empty, volume = disks
    return Machine(empty, folder, firmware="bios", memory=64, drives=[Drive(volume, "volume", plugged=False)])


def test_a_machine_goes_on_when_it_is_kept_and_another_goes_on_from_there(
    tmp_path: Path, disks: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (state := tmp_path / "state").mkdir()
    first = machine(disks, tmp_path / "first")
    with first:
        with pytest.raises(MachineError, match="serial line"):
            first.save(state)
        first.guest._port = first.guest._ports[0]  # as if an agent had said hello
        first.save(state)
        assert first._status() == "running"
        first.plug()
    kept = Saved(state)
    assert {path.name for path in state.iterdir()} == {kept.memory.name, kept.root.name, "age"}
    assert kept.memory.stat().st_size < 2 << 20
    second = machine(disks, tmp_path / "second")
    second.saved = kept
    monkeypatch.setattr("parbake.machine.vm.guest.Guest.resume", lambda *_: None)
    with second:
        second.wait_agent()
        assert second._status() == "running"
        assert time.monotonic() - second.started > kept.age > 0
        second.plug()
        with pytest.raises(MachineError, match="refused device_add"):
            second.plug()


@pytest.mark.parametrize("damaged", ["memory", "root", "age", "memory is gone"])
def test_a_state_that_is_no_state_is_an_error_at_once(tmp_path: Path, disks: tuple[Path, Path], damaged: str) -> None:
    (state := tmp_path / "state").mkdir()
    broken = machine(disks, tmp_path / "machine")
    broken.saved = Saved(state)
    broken.saved.write_age(1.0)
    if damaged == "age":
        broken.saved._age.write_text("long")
    noise = os.urandom(100_000)
    root = Machine(disks[0], tmp_path / "other", firmware="bios")
    root.folder.mkdir()
    root._prepare()
    saved.pack(io.BytesIO(root._overlay("root").read_bytes()), broken.saved.root)
    if damaged == "root":
        broken.saved.root.write_bytes(noise)
    if damaged != "memory is gone":
        saved.pack(io.BytesIO(noise), broken.saved.memory)
    with pytest.raises((MachineError, EnvironmentProblem, OSError)), broken:
        broken.wait_agent()
