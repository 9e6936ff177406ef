"""When the machine that carries volumes boots, when it resumes, and what is kept of it. The machine is played."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

from parbake.core import sealed
from parbake.core.errors import EnvironmentProblem, MachineError
from parbake.core.workspace import WORK, lock
from parbake.machine.vm import Saved
from parbake.machine.vm.guest import Ran
from parbake.verify import carrier
from parbake.verify.carrier import KEPT, Carrier, digest_of

DEVICE = "/dev/disk/by-id/virtio-volume"


class Played:
    """A machine that notes what is done with it; ``breaks`` is what goes wrong, by the name of the step."""

    def __init__(
        self, disk: Path, shape: str = "one", accelerator: str = "tcg", breaks: dict[str, Exception] | None = None
    ) -> None:
        self.disk, self.shape, self.accelerator, self.stretch = disk, shape, accelerator, 10.0
        self.saved: Saved | None = None
        self.did: list[str] = []
        self.state = "running"
        self.breaks = breaks or {}

    @property
    def guest(self) -> Self:
        return self

    def step(self, name: str) -> None:
        self.did.append(name)
        if name in self.breaks:
            raise self.breaks[name]

    def __enter__(self) -> Self:
        self.resuming = self.saved is not None
        self.step("resume" if self.resuming else "boot")
        return self

    def __exit__(self, *_: object) -> None:
        self.did.append("off")

    def wait_agent(self) -> None:
        self.step("resumed" if self.resuming else "booted")

    def plug(self) -> None:
        self.step("plug-resumed" if self.resuming else "plug")

    def check(self, argv: list[str], **_: object) -> None:
        assert (argv[:2], argv[-1]) == (["udevadm", "wait"], DEVICE)
        self.did.append("found")

    def run(self, argv: list[str], **_: object) -> Ran:
        assert argv[:2] == ["systemctl", "is-system-running"]
        return Ran(0, f"{self.state}\n")

    def save(self, folder: Path) -> None:
        Saved(folder).memory.write_bytes(b"memory")
        self.step("save")
        Saved(folder).root.write_bytes(b"root")


BOOT = ["boot", "booted", "save", "plug", "found", "off"]
UNKEPT = ["boot", "booted", "plug", "found", "off"]
RESUME = ["resume", "resumed", "plug-resumed", "found", "off"]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "base/debian.raw"
    path.parent.mkdir()
    path.write_bytes(b"base")
    return path


def start(machine: Played) -> list[str]:
    """Start a machine and switch it off; return what was told."""
    told: list[str] = []
    with ExitStack() as stack:
        Carrier(machine, told.append).start(stack, DEVICE)  # type: ignore[arg-type]
    return told


def resumes(machine: Played) -> bool:
    return Carrier(machine, print).resumes  # type: ignore[arg-type]


def states(disk: Path) -> list[Path]:
    return sorted(disk.parent.glob("*.state"))


def test_it_boots_once_and_is_kept_before_it_sees_a_volume(disk: Path) -> None:
    first, second = Played(disk), Played(disk)
    assert not resumes(first)
    assert start(first) == []
    assert first.did == BOOT
    [state] = states(disk)
    assert state.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in state.iterdir()) == ["memory.zst", "root.qcow2.zst"]
    assert [path.stat().st_mode & 0o777 for path in state.iterdir()] == [0o600] * 2
    assert resumes(second)
    assert start(second) == []
    assert second.did == RESUME
    assert second.saved is None


def test_what_is_not_equal_boots(disk: Path) -> None:
    start(Played(disk))
    assert not resumes(Played(disk, "two"))
    os.utime(disk, (1, 1))  # made again, by the same recipe
    again = Played(disk)
    assert not resumes(again)
    start(again)
    assert again.did == BOOT
    assert len(states(disk)) == 2


@pytest.mark.parametrize("step", ["resume", "resumed", "plug-resumed"])
@pytest.mark.parametrize("error", [MachineError("it is broken"), EnvironmentProblem("it is broken"), OSError("broken")])
def test_a_broken_state_is_removed_and_the_machine_boots(disk: Path, step: str, error: Exception) -> None:
    start(Played(disk))
    [state] = states(disk)
    Saved(state).memory.write_bytes(b"broken")
    sealed.seal(state, digest_of(state))
    machine = Played(disk, breaks={step: error})
    [told] = start(machine)
    assert "did not resume, and boots: " in told
    assert "broken" in told
    assert machine.did[-len(BOOT) :] == BOOT
    assert Saved(state).memory.read_bytes() == b"memory", "it is not made anew"


@pytest.mark.parametrize("how", ["one byte", "a file more", "a link", "no seal", "another key"])
def test_a_state_that_others_have_written_is_not_resumed(disk: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    start(Played(disk))
    [state] = states(disk)
    if how == "one byte":
        Saved(state).memory.write_bytes(b"memorY")
    elif how == "a file more":
        (state / "more").touch()
    elif how == "a link":
        Saved(state).memory.rename(state.with_suffix(".moved"))
        Saved(state).memory.symlink_to(state.with_suffix(".moved"))
    elif how == "no seal":
        sealed.loosen(state)
    else:
        monkeypatch.setenv(sealed.VARIABLE, "k" * 32)
    machine = Played(disk)
    [told] = start(machine)
    assert "has no seal of this user's key: the machine boots" in told
    assert machine.did == BOOT
    assert start(again := Played(disk)) == []
    assert again.did == RESUME, "it was kept anew"


def test_a_state_that_another_removes_meanwhile_is_no_failure(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(Played(disk))

    def gone(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("parbake.verify.carrier.os.utime", gone)
    machine = Played(disk)
    assert start(machine) == []
    assert machine.did == RESUME


def test_with_hardware_virtualisation_nothing_is_kept(disk: Path) -> None:
    machine = Played(disk, accelerator="kvm")
    assert not resumes(machine)
    start(machine)
    assert machine.did == UNKEPT
    assert states(disk) == []


def test_a_machine_that_is_not_idle_or_not_well_is_not_kept(disk: Path) -> None:
    machine = Played(disk)
    machine.state = "degraded"
    assert start(machine) == []
    assert machine.did == UNKEPT
    assert states(disk) == []


@pytest.mark.parametrize("error", [MachineError("no"), OSError(28, "No space left"), EnvironmentProblem("a link")])
def test_what_cannot_be_kept_fails_nothing_and_leaves_nothing(disk: Path, error: Exception) -> None:
    machine = Played(disk, breaks={"save": error})
    [told] = start(machine)
    assert "state is not kept: " in told
    assert machine.did == BOOT
    assert [path.name for path in disk.parent.iterdir()] == [disk.name]


def test_where_there_is_little_room_nothing_is_kept(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "_ROOM", 1 << 60)
    machine = Played(disk)
    assert start(machine) == []
    assert machine.did == UNKEPT


def test_one_keeps_it_and_who_comes_meanwhile_just_boots(disk: Path) -> None:
    machine = Played(disk)
    path = Carrier(machine, print)._state.with_suffix(".lock")  # type: ignore[arg-type]
    with lock(path, what="the other"):
        start(machine)
    assert machine.did == UNKEPT
    start(machine)
    late = Played(disk)
    late_carrier = Carrier(late, print)  # type: ignore[arg-type]
    late_carrier._keep()
    assert late.did == [], "it is kept twice"


def test_what_a_killed_run_left_is_never_used_and_goes(disk: Path) -> None:
    half = disk.parent / WORK / "state.1.abcd"
    (half / "state").mkdir(parents=True)
    Saved(half / "state").memory.write_bytes(b"half")
    machine = Played(disk)
    assert not resumes(machine)
    start(machine)
    assert not half.exists()
    assert len(states(disk)) == 1


def test_those_that_were_used_last_stay(disk: Path) -> None:
    for number in range(KEPT + 1):
        start(Played(disk, str(number)))
        for age, state in enumerate(sorted(states(disk), key=lambda path: path.stat().st_mtime, reverse=True)):
            os.utime(state, (10_000 - age, 10_000 - age))
        start(Played(disk, "0"))
    assert len(states(disk)) == KEPT
    assert [resumes(Played(disk, str(number))) for number in range(KEPT + 1)] == [True, False, True, True, True]
