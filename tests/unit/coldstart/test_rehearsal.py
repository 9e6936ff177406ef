"""What a machine's rehearsal does with the machine and with its log. The machine is played."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from parbake.coldstart.rehearsal import NotStarted, machine
from parbake.coldstart.rehearsal.cold_start import stages_of
from parbake.coldstart.rehearsal.machine import TracedStarts, TraceWindow, parts_of, start_all
from parbake.coldstart.trace import Read
from parbake.core.errors import MachineError
from parbake.core.events import Events
from parbake.core.model import Startup
from parbake.machine.vm import GuestRead
from parbake.verify import Verification
from parbake.verify.starter import Started
from standins.plans import image, plan

ROOT, APP, OTHER = "/var/lib/containerd", "registry.example/app:1", "registry.example/other:1"
MOUNT = ("mount", "-o", "defaults", "/dev/disk/by-id/virtio-parbake-volume", ROOT)


class Played:
    """A machine with a volume: notes what is done; ``breaks`` are the acts that fail, by their first word."""

    def __init__(self, volume: Path, *, breaks: str = "") -> None:
        self.did: list[str] = []
        self.breaks = breaks
        machine = SimpleNamespace(guest=self, stretch=1.0)
        cri = SimpleNamespace(wait_ready=lambda _: self.did.append("ready"), image_status=lambda _: "known")
        self.node = SimpleNamespace(machine=machine, cri=cri, mounting=MOUNT, is_docker=False, boot_seconds=2.0)
        self.starter, self.events, self.kind, self.artefact = self, Events(), "volume", volume

    def check(self, argv: Sequence[str], **_: object) -> str:
        self.did.append(" ".join(argv[:3] if argv[0] == "sh" else argv))
        if argv[0] == self.breaks:
            raise MachineError(f"{argv[0]}: target is busy")
        return ""

    def provide_sandbox(self) -> None:
        self.did.append("sandbox")

    def start(self, name: str, _startup: Startup) -> Started:
        self.did.append(f"start {name}")
        if name == OTHER:
            return Started(None, 0.5, "no such file\n", ("it ended with code 1",))
        return Started(1.0, 0.5, "", ())


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume.raw"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    return path


def started(played: Played) -> TracedStarts:
    wanted = plan(images=(image(APP), image(OTHER)))
    return start_all(cast("Verification", played), wanted)


def test_each_image_finds_a_volume_of_which_nothing_is_in_a_cache(volume: Path) -> None:
    played = Played(volume)
    found = started(played)
    cold = [
        "systemctl stop containerd.service", f"umount {ROOT}", "udevadm settle",
        f"{' '.join(MOUNT)} -t ext4", "systemctl start containerd.service", "ready",
    ]  # fmt: skip
    marks, *rest = played.did
    assert marks.startswith("sh -ec for at; do dd if=/dev/disk/by-id/virtio-parbake-volume ")
    assert rest == ["sandbox", *cold, f"start {APP}", *cold, f"start {OTHER}"]
    [window] = found.windows
    assert (window.name, window.kind, list(window.stages)) == (
        APP,
        "image",
        ["mount", "containerd", "sandbox", "start"],
    )
    assert found.skipped == {OTHER: "it ended with code 1; no such file"}


def test_marks_are_sectors_of_the_volume_and_others_each_time(volume: Path) -> None:
    found = [machine.mark(cast("Any", Played(volume).node), volume) for _ in range(5)]
    assert len(set(found)) == 5
    assert all(len(set(marks)) == 3 and 0 <= min(marks) <= max(marks) < 2048 for marks in found)


def test_a_volume_that_something_still_uses_is_not_cold(volume: Path) -> None:
    """Mounted once more it would be the same file system, with all its caches."""
    found = started(Played(volume, breaks="umount"))
    assert (found.windows, found.skipped) == ([], dict.fromkeys((APP, OTHER), "umount: target is busy"))


READS = [GuestRead(at, sector, 8) for at, sector in ((9.5, 0), (10.0, 16), (10.5, 996), (11.0, 2000), (12.5, 24))]


def test_a_part_has_what_was_read_in_its_time_of_its_file_system() -> None:
    windows = [TraceWindow("boot", "boot", 0.0, 10.0, 9.0), TraceWindow(APP, "image", 10.0, 12.0, 1.0, {"start": 1.0})]
    parts, skipped = parts_of(TracedStarts(windows, {OTHER: "odd"}), READS, math.inf, 10, 990)
    assert [part.kind for part in parts] == ["boot", "image"]
    assert parts[0].reads == (), "what lies before the file system"
    assert parts[1].reads == (Read(0, 6, 8), Read(500, 986, 4)), "no further than its end"
    assert (parts[1].seconds, parts[1].stages, skipped) == (1.0, {"start": 1.0}, {OTHER: "odd"})


def test_who_reads_without_end_is_skipped_and_not_cut_short() -> None:
    windows = [TraceWindow(APP, "image", 9.0, 10.2, 1.0), TraceWindow(OTHER, "image", 10.3, 13.0, 1.0)]
    parts, skipped = parts_of(TracedStarts(windows, {}), READS, 11.0, 0, 4096)
    assert [part.name for part in parts] == [APP]
    assert skipped == {OTHER: "it read more often than a trace can hold"}


@pytest.mark.parametrize(
    ("by_itself", "exceeded", "finding"), [(True, "", True), (True, "its memory", False), (False, "", False)]
)
def test_what_a_limit_of_this_machine_ended_is_no_finding(by_itself: bool, exceeded: str, finding: bool) -> None:
    with pytest.raises(NotStarted) as caught:
        stages_of({}, Started(None, 0.1, "", ("it ended with code 1",), by_itself=by_itself), exceeded)
    assert caught.value.by_itself is finding


def test_a_clock_that_was_set_back_is_no_error() -> None:
    reads = [GuestRead(50.0, 0, 8), GuestRead(20.0, 8, 8)]
    [boot], _ = parts_of(TracedStarts([TraceWindow("boot", "boot", 0.0, 60.0, 9.0)], {}), reads, math.inf, 0, 4096)
    assert [read.ms for read in boot.reads] == [0, 0]
