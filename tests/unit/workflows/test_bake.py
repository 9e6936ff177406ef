"""The story's own decisions, with stand-ins for the builder."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from parbake import records
from parbake.bakefile import load
from parbake.builders import Disk, Ingredients, coldstart
from parbake.coldstart.trace import Part, Read, Trace, summary
from parbake.core.errors import ArtefactFull, DiskFull, LayerTooLarge, ParbakeError, VerificationFailed
from parbake.core.events import Event, Events
from parbake.core.model import GIB, MIB, Plan, Verdict
from parbake.core.run import run
from parbake.core.workspace import work_folder
from parbake.images.registry import Registry
from parbake.machine import disk
from parbake.records import folder as records_folder
from parbake.records import held
from parbake.workflows import verify as verification
from parbake.workflows.bake import ahead, disks, files
from parbake.workflows.bake.make import make
from parbake.workflows.clean import clean
from parbake.workflows.plan import Bake, BakeOptions, BakeResult, Session
from parbake.workflows.verify import judge, verify_again
from standins.plans import image, layer, plan, record, release


class Builder:
    """Fails on disks that are too small, as the local builder does."""

    def __init__(self, needed: int, error: ParbakeError) -> None:
        self.needed, self.error = needed, error
        self.works: list[Path] = []

    def build(self, plan: Plan, ingredients: Ingredients) -> Disk:
        self.works.append(ingredients.work)
        assert list(ingredients.work.iterdir()) == []
        (ingredients.work / "disk.raw").write_bytes(b"")
        if plan.size < self.needed:
            raise self.error
        return Disk(ingredients.work / "disk.raw")


def build(folder: Path, made: Plan, builder: Builder, said: list[Event]) -> tuple[Plan, Disk]:
    ingredients = Ingredients(None, lambda _: pytest.fail("nothing is fetched"), folder, Events(said.append))
    return disks.build_large_enough(made, builder, ingredients)


UNKNOWN = plan(images=(image(layers=(layer("x", size=100 * MIB, raw_size=0),)),))


@pytest.mark.parametrize(
    "error", [ArtefactFull("the images do not fit"), LayerTooLarge("inflates to more than the disk")]
)
def test_a_larger_disk_is_tried_in_a_fresh_folder(tmp_path: Path, error: ParbakeError) -> None:
    said: list[Event] = []
    builder = Builder(3 * GIB, error)
    grown, baked = build(tmp_path, UNKNOWN, builder, said)
    assert grown == UNKNOWN.model_copy(update={"size": 4 * GIB})
    assert [event.text for event in said] == [
        f"{error.message}: baking again with a disk of {size} MiB" for size in (2048, 4096)
    ]
    assert len(set(builder.works)) == 3
    assert list(tmp_path.rglob("disk.raw")) == [baked.path]


def test_the_error_comes_out_when_no_size_is_believable(tmp_path: Path) -> None:
    said: list[Event] = []
    with pytest.raises(LayerTooLarge, match="a bomb"):
        build(tmp_path, UNKNOWN, Builder(1 << 60, LayerTooLarge("a bomb")), said)
    assert len(said) == 4


def test_other_errors_come_out_at_once(tmp_path: Path) -> None:
    said: list[Event] = []
    builder = Builder(3 * GIB, DiskFull("the host is full"))
    with pytest.raises(DiskFull, match="the host is full"):
        build(tmp_path, UNKNOWN, builder, said)
    assert len(builder.works) == 1
    assert said == []


def test_the_record_is_written_once_with_its_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built, rehearsed, then written down: no moment in which a record exists without the trace that was made."""
    steps: list[str] = []
    trace = Trace(uuid="0", parts=(Part(name="app", reads=(Read(0, 0, 8),)),))
    wanted = plan(images=())

    def prepare(built: Disk, *_: object, **__: object) -> Disk:
        steps.append("prepare")
        return replace(built, trace=trace)

    def write(folder: Path, made: records.Record, *_: object, **__: object) -> Path:
        steps.append("write")
        assert made.trace is not None
        assert (folder / made.trace_name).exists()
        return folder

    monkeypatch.setattr(files, "need_rights", lambda *_: None)
    monkeypatch.setattr(disks, "builder_of", lambda _: Builder(0, DiskFull("never")))
    monkeypatch.setattr(coldstart, "prepare", prepare)
    monkeypatch.setattr(records_folder, "write", write)
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    with session(tmp_path) as run:
        finished = make(Bake(run, wanted, BakeOptions(rehearse=True, verify=False)))
    assert finished.record.trace == summary(trace, file=finished.record.trace_name)
    assert steps == ["prepare", "write", "write"], "while it waits, and under its name"


@contextmanager
def session(folder: Path) -> Iterator[Session]:
    """What a bake in a folder works with."""
    (folder / "parbake.yaml").write_text("version: 1\nbase: none\noutput: .\nimages: [registry.example/app:1]\n")
    bakefile = load(folder / "parbake.yaml")
    with Registry(bakefile.registries, events=Events()) as registry:
        yield Session(bakefile, registry, Events())


@pytest.mark.parametrize(
    ("more", "there", "force", "started"),
    [
        ("", "", False, True),
        ("", "other-1.raw", False, True),
        ("", "demo-0123.raw", False, False),
        ("", "demo-0123.raw", True, True),
        ("artefact: {kind: volume, filesystem: xfs}\n", "", False, False),
        ("builder: qemu\n", "", False, False),
    ],
)
def test_a_worker_starts_ahead_where_a_volume_is_written_for_the_first_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, there: str, *, force: bool, started: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    base = "base: none\n" if "qemu" not in more else "base: debian\n"
    (tmp_path / "parbake.yaml").write_text(
        f"version: 1\nname: demo\n{base}output: out\nimages: [registry.example/app:1]\n{more}"
    )
    if there:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / there).touch()
    with ahead.spare_worker(load(tmp_path / "parbake.yaml"), force=force) as spare:
        assert (spare is not None) is started


def test_a_worker_that_cannot_start_ahead_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("parbake.core.run.find", lambda _: None)
    (tmp_path / "parbake.yaml").write_text("version: 1\nbase: none\nimages: [registry.example/app:1]\n")
    with ahead.spare_worker(load(tmp_path / "parbake.yaml"), force=False) as spare:
        assert spare is None


SEEN = Verdict(passed=True, accelerator="kvm", boot_seconds=1.0)


@pytest.fixture
def booted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Let verification pass without a machine; return what was booted."""
    found: list[Path] = []

    def verify(artefact: Path, *_: object, **__: object) -> Verdict:
        found.append(artefact)
        return SEEN

    monkeypatch.setattr("parbake.verify.verify", verify)
    monkeypatch.setattr(verification, "can_boot", lambda *_: True)
    return found


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, booted: list[Path]) -> Builder:  # noqa: ARG001
    """Let a bake need neither root nor a machine; return what has built."""
    builder = Builder(0, DiskFull("never"))
    monkeypatch.setattr(files, "need_rights", lambda *_: None)
    monkeypatch.setattr(disks, "builder_of", lambda _: builder)
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    return builder


def seen(folder: Path) -> set[str]:
    """Return what people see in a folder of artefacts."""
    return {path.name for path in folder.iterdir() if path.name not in {".parbake", "cache", "parbake.yaml"}}


OPTIONS = BakeOptions(rehearse=False)


@pytest.mark.parametrize(
    "verdict", [SEEN, Verdict(passed=False, accelerator="kvm", problems=("no runtime",))], ids=["good", "bad"]
)
def test_an_artefact_appears_once_with_its_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Builder, verdict: Verdict
) -> None:
    """A bad one as well: people want to look into it."""

    def verify(*_: object, **__: object) -> Verdict:
        assert seen(tmp_path) == set()
        return verdict

    monkeypatch.setattr("parbake.verify.verify", verify)
    with session(tmp_path) as run, nullcontext() if verdict.passed else pytest.raises(VerificationFailed):
        make(Bake(run, plan(images=()), OPTIONS))
    [(_, found)] = records.find(tmp_path)
    assert found.verdict == verdict
    assert seen(tmp_path) == {found.artefact, found.file_name, f"{found.artefact}.blocks"}
    assert not (tmp_path / ".parbake").exists()
    assert len(built.works) == 1


@pytest.mark.parametrize("then", ["verify", "no-verify", "force", "clean"])
def test_what_is_built_waits_for_its_verdict_when_the_run_ends_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Builder, then: str
) -> None:
    def stopped(*_: object, **__: object) -> Verdict:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut, session(tmp_path) as run:
        cut.setattr("parbake.verify.verify", stopped)
        with pytest.raises(KeyboardInterrupt):
            make(Bake(run, plan(images=()), OPTIONS))
    assert seen(tmp_path) == set()
    records.sweep(tmp_path)
    with records.in_use(tmp_path, plan(images=()).artefact_name):
        assert clean(tmp_path) == (), "a run is at it"
    if then == "clean":
        assert clean(tmp_path) == (records.waiting(tmp_path, plan(images=()).key),)
    options = replace(OPTIONS, verify=then != "no-verify", force=then == "force")
    with session(tmp_path) as run:
        finished = make(Bake(run, plan(images=()), options))
    assert len(built.works) == (2 if then in {"force", "clean"} else 1)
    assert (finished.changed, finished.record.verified) == (True, then != "no-verify")
    assert [found for _, found in records.find(tmp_path)] == [finished.record]
    assert not (tmp_path / ".parbake").exists()


def made(folder: Path, content: bytes, *, raw: bool) -> BakeResult:
    """Make an artefact and its record, as a bake does."""
    (folder / "draft").write_bytes(content)
    blocks = disk.block_list(folder / "draft", Events()) if raw else None
    named = blocks and records.Blocks(count=len(blocks.blocks), digest=blocks.digest())
    sha256 = "" if raw else hashlib.sha256(content).hexdigest()
    written = record().model_copy(update={"sha256": sha256, "blocks": named})
    with work_folder(folder, "bake") as work:
        artefact = release(folder / "draft", written, folder, work, blocks=blocks)
    return BakeResult(artefact, written, changed=True, state=held.state(artefact))


@pytest.mark.parametrize("raw", [True, False])
def test_a_verified_record_has_the_digest_of_the_whole_file(tmp_path: Path, booted: list[Path], raw: bool) -> None:
    finished = made(tmp_path, b"content", raw=raw)
    with session(tmp_path) as run:
        proven = make(Bake(run, finished.record.plan, earlier=finished))
    assert proven.record.sha256 == hashlib.sha256(b"content").hexdigest()
    assert proven.record.verdict == SEEN
    assert records.read(tmp_path / proven.record.file_name) == proven.record
    _, verdict = verify_again(str(finished.artefact), tmp_path, Events())
    assert verdict == SEEN.model_copy(update={"intact": True})
    assert len(booted) == 2


@pytest.mark.parametrize("raw", [True, False])
def test_what_is_not_what_was_baked_fails(tmp_path: Path, booted: list[Path], raw: bool) -> None:
    finished = made(tmp_path, b"content", raw=raw)
    finished.artefact.write_bytes(b"coNtent")
    _, verdict = verify_again(str(finished.artefact), tmp_path, Events())
    assert (verdict.passed, verdict.intact) == (False, False)
    assert booted == [], "bytes are compared before anything is booted"
    with pytest.raises(VerificationFailed, match="record") as caught:
        judge(finished.artefact, verdict)
    assert "--force" in caught.value.hint
    stored = records.read(tmp_path / finished.record.file_name)
    assert stored.verdict == verdict
    assert stored.sha256 == finished.record.sha256


def test_hashing_ends_with_a_verification_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = made(tmp_path, b"content", raw=True)
    with finished.artefact.open("r+b") as file:
        file.truncate(1 << 43)  # hours of hashing
    finished = replace(finished, state=held.state(finished.artefact))

    def verify(*_: object, **__: object) -> Verdict:
        raise ParbakeError("no machine")

    monkeypatch.setattr("parbake.verify.verify", verify)
    monkeypatch.setattr(verification, "can_boot", lambda *_: True)
    with pytest.raises(ParbakeError, match="no machine"), session(tmp_path) as run:
        make(Bake(run, finished.record.plan, earlier=finished))


def test_what_certainly_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    disks.need_room(tmp_path, plan())
    huge = plan(images=(image(layers=(layer("x", size=1 << 50, raw_size=0),)),))
    with pytest.raises(DiskFull, match="of free space, and the images take more than 1073741824 MiB") as caught:
        disks.need_room(tmp_path, huge)
    assert "output" in caught.value.hint


def test_a_bake_loads_what_acts_only_when_something_is_left_to_do() -> None:
    acting = (
        "parbake.workflows.bake.make",
        "parbake.builders",
        "parbake.machine",
        "parbake.verify",
        "parbake.containerd",
        "grpc",
        "rich",
    )
    code = f"import sys, parbake.cli, parbake.workflows.bake; print([name for name in {acting} if name in sys.modules])"
    assert run([sys.executable, "-c", code]).text == "[]"
