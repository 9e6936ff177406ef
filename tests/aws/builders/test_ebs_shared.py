"""Machines that publish to EBS and share a store: one snapshot for a key and region, whoever dies or freezes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from parbake import aws
from parbake.aws.ebs.journal import Journal
from parbake.aws.ebs.throttle import Pace
from parbake.builders.choose import publisher_of
from parbake.builders.ebs import kept_files
from parbake.core import sealed
from parbake.core.errors import AwsError, ClaimLost
from parbake.core.events import Event, Events
from parbake.core.model import Plan, Startup
from parbake.records import Record
from parbake.records.store import leases
from parbake.workflows import bake, clean
from parbake.workflows.bake.sharing import make_and_share
from parbake.workflows.plan import Bake, BakeOptions, BakeResult
from standins import machines
from standins.aws.ebs_direct_in_process import Direct
from standins.aws.eventual import Eventual
from standins.aws.iam_recorder import allowed_by
from standins.aws.interceptor import killed_everywhere, throttled_everywhere
from standins.ebs_direct_server import Cloud
from tests.aws.aws.test_ebs import held
from tests.aws.aws.test_ebs_crash import HOME, OTHER, left
from tests.aws.builders.test_ebs_builder import (
    MACHINE,
    VOLUME,
    FakeBuilder,
    cloud,
    direct,
    fake_builder,
    policy_for,
    session,
)

__all__ = ["cloud", "direct", "fake_builder"]
pytestmark = pytest.mark.usefixtures("fake_builder")

SETTINGS: dict[str, Any] = {"region": HOME, "copy_to": [OTHER]}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machines.install(monkeypatch, tmp_path)
    monkeypatch.setattr(sys.modules["parbake.aws.ebs.upload"], "_ANNOUNCED", 2)


def story(
    folder: Path,
    wanted: Plan,
    *,
    machine: str = "one",
    store: Path | None = None,
    force: bool = False,
    said: Callable[[Event], None] = lambda _: None,
    **settings: Any,
) -> BakeResult:
    """Bake on a machine, as the story does once it has a plan."""
    options, mine = BakeOptions(force=force), folder / machine
    mine.mkdir(exist_ok=True, parents=True)
    settings = settings or SETTINGS
    with (
        machines.on(machine),
        session(mine, wanted, settings, Events(said), store=str(store or folder / "store")) as run,
        allowed_by(policy_for(wanted, settings)),
    ):
        publisher = publisher_of(run.bakefile, fresh=force)
        make = partial(bake.ensure_artefact, Bake(run, wanted, options, publisher=publisher))
        return make_and_share(run, wanted, make, force=force)


def of_key(cloud: Cloud, region: str = HOME) -> list[str]:
    return [each.id for each in cloud.snapshots.values() if each.region == region]


@pytest.mark.parametrize("wanted", [VOLUME, MACHINE], ids=lambda plan: plan.name)
def test_two_at_once_make_one(
    tmp_path: Path, fake_builder: FakeBuilder, direct: Direct, monkeypatch: pytest.MonkeyPatch, wanted: Plan
) -> None:
    machines.install(monkeypatch, tmp_path, ttl=60)  # both live, however slowly
    found: dict[str, Record] = {}
    meanwhile = threading.Event()
    waits = threading.Event()

    def told(event: Event) -> None:
        if "waiting" in event.text:
            waits.set()

    def second() -> None:
        assert meanwhile.wait(120)
        found["two"] = story(tmp_path, wanted, machine="two", said=told).record

    def on_its_way(_: str, operation: str, __: dict[str, Any]) -> None:
        if operation == "StartSnapshot":
            meanwhile.set()
            assert waits.wait(120)

    direct.before.append(on_its_way)
    other = machines.elsewhere(second, "two")
    found["one"] = story(tmp_path, wanted).record
    other.join()
    assert found["one"] == found["two"]
    assert len(fake_builder.bakes) == 1, "the second waited for the first"
    assert left(direct.world) == sorted(
        f"{region} artefact" for region in (HOME, OTHER) for _ in range(1 + (wanted is MACHINE))
    )


def killed(direct: Direct, at: str, nth: int = 1) -> Callable[[], None]:
    """Let nothing reach AWS any more from the n-th call of an operation on; return what brings it back."""
    seen = 0

    def die(_: str, operation: str, __: dict[str, Any]) -> None:
        nonlocal seen
        seen += operation == at
        if seen >= nth:
            raise KeyboardInterrupt

    direct.before.append(die)
    return lambda: direct.before.remove(die)


def one_after_the_other(_: Pace, items: Sequence[int], work: Callable[[int, bytearray], None], size: int) -> None:
    for item in items:
        work(item, bytearray(size))


def die_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the lease of a run stay as a killed one's does."""
    monkeypatch.setattr(leases.LeaseClaim, "release", lambda _: None)


@pytest.mark.parametrize("at", ["PutSnapshotBlock", "CompleteSnapshot", "RegisterImage", "CreateTags", "CopySnapshot"])
@pytest.mark.parametrize("wanted", [VOLUME, MACHINE], ids=lambda plan: plan.name)
def test_another_machine_goes_on_with_what_a_dead_one_has_sent(
    tmp_path: Path, fake_builder: FakeBuilder, direct: Direct, monkeypatch: pytest.MonkeyPatch, wanted: Plan, at: str
) -> None:
    """Its own disk has other bytes: they are those that are published, or the dead one's, read back and proven."""
    if (wanted is VOLUME and at == "RegisterImage") or (wanted is MACHINE and at == "CopySnapshot"):
        return
    world = direct.world
    monkeypatch.setattr(Pace, "each", one_after_the_other)
    with monkeypatch.context() as cut:
        die_with(cut)
        back = killed(direct, at, nth=2 if at == "PutSnapshotBlock" else 1)
        with pytest.raises(KeyboardInterrupt):
            story(tmp_path, wanted)
        back()
    (snapshot,) = of_key(world)
    fake_builder.content = {0: b"boot", 5: b"other", 901: b"more"}
    fake_builder.steps.clear()
    record = story(tmp_path, wanted, machine="two").record
    assert of_key(world) == [snapshot], "the same one"
    assert record.published[HOME].snapshots[0].id == snapshot
    sent_by_two = at == "PutSnapshotBlock"
    there = held(world, snapshot)
    assert there[5].startswith(b"other" if sent_by_two else b"data")
    laid_out = {700} if wanted is VOLUME else set[int]()
    assert set(there) == {0, 5, 901 if sent_by_two else 900} | laid_out
    assert fake_builder.steps[0] == ("build" if sent_by_two else "rehearse" if laid_out else "prove")
    assert fake_builder.steps[-1] == "prove"
    assert record.blocks is not None
    assert set(left(world)) == {f"{region} artefact" for region in (HOME, OTHER)}
    assert story(tmp_path, wanted).record == record, "and the dead one takes it over"
    assert len(of_key(world)) == 1


class Freezer:
    """Freezes machine ``one`` at its first call of an operation, before or after it has looked at its lease."""

    def __init__(self, direct: Direct, monkeypatch: pytest.MonkeyPatch, *, looked: bool) -> None:
        self.at, self.meanwhile, self.frozen = "", list[Callable[[], object]](), False
        passing, call, put, renew = direct.passing, aws.Client._call, aws.Rest.put, leases.LeaseClaim._renew

        def pass_by(service: str, operation: str, *more: Any) -> Any:
            if looked:
                self.stop(operation)
            return passing(service, operation, *more)

        def called(client: aws.Client, name: str, /, **arguments: Any) -> Any:
            if not looked:
                self.stop("".join(part.capitalize() for part in name.split("_")))
            return call(client, name, **arguments)

        def noted(rest: aws.Rest, *more: Any) -> None:
            if not looked:
                self.stop("PutSnapshotBlock")
            put(rest, *more)

        monkeypatch.setattr(direct, "passing", pass_by)
        monkeypatch.setattr(aws.Client, "_call", called)
        monkeypatch.setattr(aws.Rest, "put", noted)
        monkeypatch.setattr(
            leases.LeaseClaim, "_renew", lambda claim: None if self.frozen and claim._holder == "one" else renew(claim)
        )

    def stop(self, operation: str) -> None:
        if operation == self.at:
            self.at, self.frozen = "", True
            self.meanwhile.pop()()
            self.frozen = False


@pytest.mark.parametrize("looked", [False, True], ids=["before its look", "after its look"])
def test_a_frozen_machine_that_comes_back_changes_nothing(
    tmp_path: Path, direct: Direct, monkeypatch: pytest.MonkeyPatch, looked: bool
) -> None:
    """Frozen before each of its calls that change something; another one has done all meanwhile."""
    freezer = Freezer(direct, monkeypatch, looked=looked)
    calls = ["StartSnapshot", "PutSnapshotBlock", "CompleteSnapshot", "RegisterImage", "CopyImage", "CreateTags"]
    for number, name in enumerate(calls):
        folder, wanted = tmp_path / name, MACHINE.model_copy(update={"name": f"node{number}"})
        folder.mkdir()
        done: list[BakeResult] = []

        def act(folder: Path = folder, wanted: Plan = wanted, done: list[BakeResult] = done) -> None:
            machines.elsewhere(lambda: done.append(story(folder, wanted, machine="two")), "two").join()

        freezer.at = name
        freezer.meanwhile.append(act)
        before = len(direct.world.snapshots)
        with pytest.raises((ClaimLost, AwsError)):
            story(folder, wanted)
        assert done, "the other one has done it"
        assert len(direct.world.snapshots) - before == 2, f"frozen before {name}: one in each region"
        assert len([each for each in direct.world.images.values() if wanted.key[:12] in each["name"]]) == 2
        assert story(folder, wanted).record == done[0].record
    assert set(left(direct.world)) == {f"{region} artefact" for region in (HOME, OTHER)}


@pytest.mark.slow
def test_killed_at_each_call(
    tmp_path: Path, fake_builder: FakeBuilder, direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever goes on, the dead one itself or another machine, makes nothing twice, also where AWS shows it late."""
    world, work = direct.world, tmp_path / "work"
    world.late, direct.eventual = 2, Eventual(late=2)

    def finishes() -> None:
        folder = work.with_name("copy")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["/bin/cp", "-a", str(work), str(folder)], check=True)  # holes stay holes
        for kept in work.rglob("uploads/[0-9a-f]*/"):
            if sealed.is_bound(kept, kept_files(kept)):  # the copy stands for the same files, which nobody has moved
                there = folder / kept.relative_to(work)
                sealed.bind(there, kept_files(there))
        machines.install(monkeypatch, folder, ttl=0.05)
        fake_builder.content = {0: b"boot", 5: b"other", 900: b"more"}
        story(folder, MACHINE, machine=("one", "two")[len(direct.calls) % 2], region=HOME)
        assert direct.eventual
        direct.eventual.settle()
        assert left(world) == [f"{HOME} artefact"] * 2, "nothing is made twice"

    machines.install(monkeypatch, work, ttl=60)  # it gives no sign of life while its folder is copied
    calls = killed_everywhere(
        direct, lambda: story(work, MACHINE, region=HOME), finishes, also_before=("StartSnapshot", "RegisterImage")
    )
    assert calls[0] == "StartSnapshot"


@pytest.mark.slow
def test_throttled_at_each_call(tmp_path: Path, direct: Direct) -> None:
    """It says so, and leaves nothing twice; the next run finishes."""

    def judge(came: Exception | None, _: object) -> None:
        assert came is None or isinstance(came, AwsError)

    throttled_everywhere(direct, lambda: story(tmp_path, MACHINE), judge)
    assert len(of_key(direct.world)) <= 1
    story(tmp_path, MACHINE)
    assert left(direct.world) == [f"{region} artefact" for region in (HOME, HOME, OTHER, OTHER)]


def test_what_was_not_noted_is_sent_again(
    tmp_path: Path, fake_builder: FakeBuilder, direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead machine's last blocks are in the snapshot, and in no note: even where mine are empty, they are written."""
    with monkeypatch.context() as cut:
        die_with(cut)
        cut.setattr(Journal, "wrote", lambda journal, index, digest: journal.written.update({index: digest}))
        cut.setattr(Journal, "completed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            story(tmp_path, VOLUME, region=HOME)
    (snapshot,) = of_key(direct.world)
    assert 900 in direct.world.snapshots[snapshot].written
    fake_builder.content = {0: b"boot"}
    record = story(tmp_path, VOLUME, machine="two", region=HOME).record
    assert record.published[HOME].snapshots[0].id == snapshot
    assert set(held(direct.world, snapshot)) == {0, 700}


def interrupted(_: Journal) -> None:
    raise KeyboardInterrupt


def test_a_forced_bake_leaves_nothing_of_what_was_begun(
    tmp_path: Path, direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as cut:
        die_with(cut)
        back = killed(direct, "CompleteSnapshot")
        with pytest.raises(KeyboardInterrupt):
            story(tmp_path, VOLUME, region=HOME)
        back()
    (begun,) = of_key(direct.world)
    made = story(tmp_path, VOLUME, machine="two", force=True, region=HOME).record
    assert of_key(direct.world) == [made.published[HOME].snapshots[0].id] != [begun]


def test_a_clean_up_spares_what_another_machine_works_on(
    tmp_path: Path, direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned: list[clean.Cleaned] = []

    def meanwhile(_: str, operation: str, __: dict[str, Any]) -> None:
        if operation == "CompleteSnapshot":
            cleaned.append(clean.clean_aws(tmp_path / "one/parbake.yaml", Events()))

    direct.before.append(meanwhile)
    story(tmp_path, VOLUME)
    direct.before.remove(meanwhile)
    assert cleaned[0].removed == {HOME: (), OTHER: ()}
    assert list(cleaned[0].spared) == [VOLUME.key]
    assert VOLUME.artefact_name in cleaned[0].spared[VOLUME.key]
    with monkeypatch.context() as cut:
        die_with(cut)
        back = killed(direct, "CompleteSnapshot")
        with pytest.raises(KeyboardInterrupt):
            story(tmp_path, VOLUME, force=True, region=HOME)
        back()
    monkeypatch.setattr(leases, "_SPARED", timedelta())
    gone = clean.clean_aws(tmp_path / "one/parbake.yaml", Events())
    assert len(gone.removed[HOME]) == 1, "a dead one's goes, when its lease has expired"
    assert gone.spared == {}


def test_a_changed_startup_is_proven_anew_once_both_ways(
    tmp_path: Path, fake_builder: FakeBuilder, direct: Direct
) -> None:
    """Each edit of the Bakefile costs one verification of what is there: nothing is built or published again."""
    [image] = VOLUME.images
    first = story(tmp_path, VOLUME).record
    for minute, startup in enumerate((Startup(args=("serve",)), None)):
        fake_builder.steps.clear()
        fake_builder.verdict = fake_builder.verdict.model_copy(update={"verified_at": f"2026-01-01T00:0{minute}:00Z"})
        edited = VOLUME.model_copy(update={"images": (image.model_copy(update={"startup": startup}),)})
        found = story(tmp_path, edited).record
        assert fake_builder.steps[-1] == "prove"
        assert "build" not in fake_builder.steps
        assert (found.plan.images[0].startup, found.verified) == (startup, True)
        assert (found.published, found.started_at) == (first.published, first.started_at)
        fake_builder.steps.clear()
        assert story(tmp_path, edited).record == story(tmp_path, edited, machine="two").record == found
        assert fake_builder.steps == [], "it was proven so"
    assert len(of_key(direct.world)) == 1
