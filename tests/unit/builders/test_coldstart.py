"""Where a volume's images are rehearsed: in a machine where KVM works, else here, and as the user says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from parbake import cli
from parbake.builders import Disk, RehearsalPlace, coldstart
from parbake.coldstart.trace import Part, Trace
from parbake.core.errors import EnvironmentProblem, InputError
from parbake.core.events import Event, Events
from parbake.core.model import Artefact, Base, Plan, Platform
from parbake.workflows.bake.rehearsal import need_rights
from parbake.workflows.plan import BakeOptions
from standins.plans import image, plan

HERE = Platform(architecture=Platform.host().architecture)
OTHER = Platform(architecture="arm64" if HERE.architecture == "amd64" else "amd64")
VOLUME = plan(platform=HERE, images=(image("registry.example/app:1"), image("registry.example/odd:1")))
MACHINE = plan(platform=HERE, artefact=Artefact(kind="machine-image"), base=Base(kind="debian"))
TRACE = Trace(uuid="0", parts=(Part(name="registry.example/app:1"),), skipped={"registry.example/odd:1": "it is odd"})
Accelerated = Callable[[str], None]


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> Accelerated:
    """Let this machine have KVM, emulation alone, or no QEMU."""

    def let(found: str) -> None:
        def accelerator(architecture: str) -> str:
            if found == "none":
                raise EnvironmentProblem("qemu-system-x86_64 is not installed", hint="apt-get install qemu-system-x86")
            return found if architecture == HERE.architecture else "tcg"

        monkeypatch.setattr("parbake.machine.vm.accelerator", accelerator)

    return let


@pytest.mark.parametrize(
    ("found", "root", "asked", "place"),
    [
        ("kvm", True, None, "machine"),
        ("tcg", True, None, "host"),
        ("none", True, None, "host"),
        ("kvm", True, "host", "host"),
        ("none", True, "host", "host"),
        ("kvm", True, "machine", "machine"),
        ("tcg", True, "machine", "machine"),
        ("kvm", False, None, "machine"),
        ("tcg", False, None, "machine"),
        ("tcg", False, "machine", "machine"),
    ],
)
def test_volumes_are_rehearsed_in_a_machine_where_kvm_works_or_root_is_missing_and_where_the_user_says(
    accelerated: Accelerated,
    monkeypatch: pytest.MonkeyPatch,
    found: str,
    root: bool,
    asked: Literal["machine", "host"] | None,
    place: str,
) -> None:
    accelerated(found)
    monkeypatch.setattr(coldstart, "capable", lambda *_: root)
    assert coldstart.place_of(VOLUME, asked) == place


def test_nothing_is_rehearsed_on_this_machine_by_who_is_not_root(
    accelerated: Accelerated, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerated("tcg")
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(EnvironmentProblem, match="a rehearsal on this machine needs root") as caught:
        coldstart.place_of(VOLUME, "host")
    assert "leave --rehearse-in host out" in caught.value.hint
    need_rights(VOLUME, BakeOptions())


def test_a_volume_for_another_architecture_is_not_for_the_machines_here(accelerated: Accelerated) -> None:
    accelerated("kvm")
    assert coldstart.place_of(plan(platform=OTHER), None) == "host", "which says why nothing is rehearsed"


def test_a_machine_that_cannot_be_had_is_refused_before_anything_is_built(
    accelerated: Accelerated, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerated("none")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(EnvironmentProblem, match="is not installed"):
        need_rights(VOLUME, BakeOptions(rehearse_in="machine"))
    need_rights(VOLUME, BakeOptions())
    need_rights(VOLUME, BakeOptions(rehearse_in="machine", rehearse=False))


def test_a_machine_image_boots_wherever_it_is_rehearsed(accelerated: Accelerated) -> None:
    accelerated("tcg")
    assert {coldstart.place_of(MACHINE, asked) for asked in (None, "machine")} == {"machine"}
    with pytest.raises(InputError, match="--rehearse-in host: node is a machine image"):
        coldstart.place_of(MACHINE, "host")


class Rehearsals:
    """Stand-ins that note where a disk was rehearsed; ``breaks`` is what a machine ends with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places: list[Any] = []
        self.breaks: Exception | None = None
        monkeypatch.setattr("parbake.coldstart.rehearsal.rehearse_volume", self.here)
        monkeypatch.setattr("parbake.coldstart.rehearsal.rehearse_machine", self.in_a_machine)

    def here(self, *_: object) -> Trace:
        self.places.append("host")
        return TRACE

    def in_a_machine(self, _image: Path, _plan: Plan, _events: Events, _work: Path, base: Path | None) -> Trace:
        self.places.append(base)
        if self.breaks:
            raise self.breaks
        return TRACE


@pytest.fixture
def rehearsals(monkeypatch: pytest.MonkeyPatch) -> Rehearsals:
    return Rehearsals(monkeypatch)


def test_a_volume_is_attached_to_the_node_that_verifies_it(accelerated: Accelerated, rehearsals: Rehearsals) -> None:
    accelerated("tcg")
    said: list[Event] = []
    for where in (RehearsalPlace(), RehearsalPlace("machine"), RehearsalPlace("machine", Path("node.raw"))):
        assert coldstart.rehearse_disk(Path("volume.raw"), VOLUME, Events(said.append), Path(), where) == TRACE
    assert rehearsals.places == ["host", None, Path("node.raw")]
    assert {event.text for event in said} == {"registry.example/odd:1 is not in the start-up trace: it is odd"}


def test_what_a_user_asked_for_is_an_error_and_no_warning_where_it_cannot_be(
    accelerated: Accelerated, rehearsals: Rehearsals, tmp_path: Path
) -> None:
    """A bake is complete without a trace, and never starts images here instead."""
    accelerated("kvm")
    rehearsals.breaks = EnvironmentProblem("the default base cannot be made", hint="--rehearse-in host does without")
    said: list[Event] = []

    def prepare(where: RehearsalPlace, name: str) -> Disk:
        (work := tmp_path / name).mkdir()
        return coldstart.prepare(Disk(Path("volume.raw")), VOLUME, work, events=Events(said.append), where=where)

    assert prepare(RehearsalPlace(), "default").trace is None
    assert [event.text for event in said] == [
        "no start-up trace: the default base cannot be made (--rehearse-in host does without)"
    ]
    with pytest.raises(EnvironmentProblem, match="the default base cannot be made"):
        prepare(RehearsalPlace("machine"), "asked")
    assert rehearsals.places == [None, None]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bake", "--no-rehearse"], "--no-rehearse for none"),
        (["bake", "--trace", "node.trace"], "--trace for none"),
        (["trace", "RECORD", "--trace", "node.trace"], "--trace and --misses for none"),
        (["trace", "/"], "nothing is started on a device"),
        (["bake", "--rehearse-in", "cloud"], "cloud"),
    ],
)
def test_a_place_for_no_rehearsal_is_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([words[0], "--rehearse-in", "machine", *words[1:]]) == 2
    assert says in capsys.readouterr().err
