"""One door to the bytes of artefacts: every command that uses them compares them first; no other command opens them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parbake import cli, records
from parbake.cli.commands import COMMANDS
from parbake.coldstart.trace import Part, Read, Trace, save
from parbake.core.errors import InputError, VerificationFailed
from parbake.core.events import Events
from parbake.core.model import EBS_BLOCK, Startup, StartupFile
from parbake.core.workspace import work_folder
from parbake.machine import disk
from parbake.records import genuine, held
from parbake.workflows import bake, export, plan, trace
from parbake.workflows.bake.rehearsal import trace_beside
from parbake.workflows.rollout import offers
from tests.unit.records.test_genuine import GOOD, Shelf

TRACE = Trace(uuid="0", filesystem="ext4", parts=(Part(name="app", reads=(Read(0, 0, 8),)),))
USES = {
    "verify": ["verify", "ARTEFACT"],
    "trace": ["trace", "ARTEFACT"],
    "trace of a node": ["trace", "ARTEFACT", "--trace", "node.trace"],
    "bake": ["bake", "--rehearse"],
    "export gcp": ["export", "gcp", "ARTEFACT", "out"],
    "export gke": ["export", "gke", "ARTEFACT", "out"],
    "export azure": ["export", "azure", "ARTEFACT", "out"],
}
"""The commands that use the bytes of an artefact that exists."""
DOES_NOT = {
    "list": ["list"],
    "show": ["show", "ARTEFACT"],
    "lint": ["lint", "--bake", "ARTEFACT", "pod.yaml"],
    "coverage": ["coverage", "ARTEFACT", "--against", "ARTEFACT"],
    "hydrate": ["hydrate", "ARTEFACT", "out"],
    "advise": ["advise", "ARTEFACT", "--hot", "10"],
    "report": ["report", "ARTEFACT"],
    "rollout": ["rollout", "ARTEFACT"],
    "copy": ["copy", "ARTEFACT", "--region", "eu-west-1"],
    "prune": ["prune", "--keep", "0", "--dry-run"],
    "clean": ["clean"],
    "doctor": ["doctor"],
    "export kubelet-config": ["export", "kubelet-config", "ARTEFACT"],
}
"""Those that are given an artefact, or find it, and work with what is known of it."""
TAKES_NONE = {
    "init", "plan", "build", "fetch", "schema", "demo", "rollback", "status", "freeze", "thaw", "watch", "fleet", "iam",
    "observe", "suggest",
}  # fmt: skip
"""Those that use no bytes themselves: they ask a registry or a cloud, or call the ones above."""

DOORS = {"parbake.records.held", "parbake.core.access"}
"""Who may open an artefact by its name: what compares it, and what changes its mode and reads nothing."""


class Opened:
    """Notes who opens a file by its own name: the modules of parbake on the way there, or a program."""

    def __init__(self) -> None:
        self.path, self.by = "", list[set[str]]()
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.path:
            return
        if event == "open" and isinstance(arguments[0], str | bytes) and os.fsdecode(arguments[0]) == self.path:
            frame, modules = sys._getframe(), set[str]()
            while frame := frame.f_back:  # type: ignore[assignment]
                modules.add(frame.f_globals.get("__name__", ""))
            self.by.append(modules)
        elif event in {"subprocess.Popen", "os.posix_spawn", "os.exec"} and self.path in map(str, arguments[1]):
            self.by.append({"a program"})


OPENED = Opened()


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A verified artefact of an unsigned record and its Bakefile; what would use its bytes is a stand-in."""
    made = Shelf(tmp_path)
    records.folder._forget_signatures(made.artefact)
    made.record = made.record.model_copy(update={"verdict": GOOD})
    records.write(made.output, made.record)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    Path("parbake.yaml").write_text(json.dumps({"version": 1, "name": "node", "images": ["registry.example/a:1"]}))
    Path("pod.yaml").write_text("{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: []}}\n")
    Path("node.trace").write_text(TRACE.model_dump_json(by_alias=True))
    return made


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch, shelf: Shelf) -> list[Path]:
    """Let what works on the bytes do nothing; return which files it was given."""
    given: list[Path] = []

    def using(result: Any) -> Callable[..., Any]:
        def use(path: Path, *_: object, **__: object) -> Any:
            given.append(path)
            return result(path) if callable(result) else result

        return use

    monkeypatch.setattr(bake, "plan_bake", lambda *_: shelf.record.plan)
    monkeypatch.setattr("parbake.verify.verify", using(GOOD))
    monkeypatch.setattr(trace, "rehearse_disk", using(TRACE))
    monkeypatch.setattr("parbake.coldstart.rehearsal.volume.identify", using(("ext4", "0")))

    def arrange(raw: Path, target: Path, *_: object) -> None:
        given.append(raw)
        target.write_bytes(raw.read_bytes())

    for name in ("secondary_boot_disk", "write_archive", "write_vhd"):
        monkeypatch.setattr(export, name, arrange)
    return given


def run(shelf: Shelf, words: list[str]) -> int:
    """Run a command in this process, with the artefact's name, and note who opens that."""
    OPENED.path, OPENED.by = str(shelf.artefact), []
    try:
        return cli.run([str(shelf.artefact) if word == "ARTEFACT" else word for word in words])
    finally:
        OPENED.path = ""


def flip(path: Path, place: int = EBS_BLOCK + 7) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"!")


def test_each_command_is_known_to_use_artefacts_or_not() -> None:
    exports = {f"export {name}" for name in ("gcp", "gke", "azure", "kubelet-config")}
    names = {name for group in COMMANDS.values() for name in group} - {"export"} | exports
    assert names == {name.partition(" of ")[0] for name in USES} | set(DOES_NOT) | TAKES_NONE


@pytest.mark.parametrize("command", ["trace", "trace of a node", "verify"])
def test_what_a_killed_run_left_goes_with_the_next(shelf: Shelf, used: list[Path], command: str) -> None:
    left = shelf.output / ".parbake/rehearse.1.dead"
    (left / "boot/machine").mkdir(parents=True)
    assert run(shelf, USES[command]) == 0
    assert used
    assert not left.exists()


@pytest.mark.parametrize("command", USES)
def test_what_is_used_was_compared_and_is_the_file_that_was_compared(
    shelf: Shelf, used: list[Path], command: str
) -> None:
    whole = shelf.artefact.read_bytes()
    assert run(shelf, USES[command]) == 0
    assert used, "the command uses the bytes, or this test shows nothing"
    assert all(path.name == shelf.artefact.name and path != shelf.artefact for path in used if "gke" not in path.name)
    assert all(modules & DOORS for modules in OPENED.by)
    assert OPENED.by
    assert shelf.artefact.read_bytes() == whole


@pytest.mark.parametrize("command", USES)
def test_one_changed_byte_is_used_for_nothing(
    shelf: Shelf, used: list[Path], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(shelf.artefact)
    assert run(shelf, USES[command]) == 3
    assert "1 block of 512 KiB differs from its record: 1" in capsys.readouterr().err
    assert used == []
    assert not Path("out").exists() or not [path for path in Path("out").iterdir() if path.name != ".parbake"]


@pytest.mark.parametrize("command", DOES_NOT)
def test_others_do_not_open_it(shelf: Shelf, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    trace.write_trace(shelf.artefact, shelf.record, TRACE)
    run(shelf, DOES_NOT[command])
    assert OPENED.by == []


@pytest.mark.parametrize("command", [*USES, "hydrate", "export kubelet-config"])
def test_where_keys_are_trusted_what_is_unsigned_is_used_for_nothing(
    shelf: Shelf, used: list[Path], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the Bakefile signs nothing itself; a bake makes the artefact anew."""
    said = json.loads(Path("parbake.yaml").read_text())
    Path("parbake.yaml").write_text(json.dumps({**said, "trust": ["key.pub"]}))
    trace.write_trace(shelf.artefact, shelf.record, TRACE)
    anew: list[object] = []

    def build(*arguments: object, **_: object) -> None:
        anew.append(arguments)
        sys.exit(3)

    monkeypatch.setattr("parbake.workflows.bake.files.build_disk", build)
    with pytest.raises(SystemExit) if command == "bake" else pytest.MonkeyPatch.context():
        assert run(shelf, {**USES, **DOES_NOT}[command]) == 3
    assert used == []
    assert bool(anew) is (command == "bake")


@pytest.mark.parametrize("planted", [TRACE.model_copy(update={"uuid": "1"}), None], ids=["others", "unrecorded"])
def test_a_trace_that_is_not_the_records_is_not_used(shelf: Shelf, planted: Trace | None) -> None:
    """One that lies under another artefact's name, that somebody has replaced, or that no record names."""
    path = shelf.artefact.with_name(shelf.record.trace_name)
    recorded = trace.write_trace(shelf.artefact, shelf.record, TRACE)
    assert [run(shelf, DOES_NOT[each]) for each in ("hydrate", "report")] == [0, 0]
    assert offers.hydrate_part([(shelf.artefact, recorded)])
    if planted:
        save(planted, path)
    else:
        records.write(shelf.output, shelf.record)
        recorded = shelf.record
    assert run(shelf, DOES_NOT["hydrate"]) == (3 if planted else 2)
    assert run(shelf, DOES_NOT["report"]) == (3 if planted else 0)
    assert trace_beside(plan.BakeResult(shelf.artefact, recorded, changed=False)) is None
    with pytest.raises(VerificationFailed if planted else InputError, match="start-up trace"):
        offers.hydrate_part([(shelf.artefact, recorded)])


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize("command", ["gcp", "gke", "azure"])
def test_nothing_is_published_of_bytes_that_changed_while_they_were_packed(
    shelf: Shelf, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pack(raw: Path, target: Path, *_: object) -> None:
        flip(shelf.artefact)
        target.write_bytes(raw.read_bytes())

    for name in ("secondary_boot_disk", "write_archive", "write_vhd"):
        monkeypatch.setattr(export, name, pack)
    assert run(shelf, USES[f"export {command}"]) == 3
    assert list(Path("out").iterdir()) == []


def test_another_file_that_takes_its_place_meanwhile_is_not_used(shelf: Shelf, tmp_path: Path) -> None:
    whole = shelf.artefact.read_bytes()
    with work_folder(tmp_path, "test") as work, held.held(shelf.artefact, shelf.record, work, Events()) as bytes_:
        (tmp_path / "other").write_bytes(b"!" * len(whole))
        (tmp_path / "other").rename(shelf.artefact)
        assert bytes_.path.read_bytes() == whole


def test_what_this_run_has_made_is_compared_only_where_somebody_wrote_to_it(shelf: Shelf, tmp_path: Path) -> None:
    for known, change, compared in ((None, False, True), ("made", False, False), ("made", True, True)):
        state = held.state(shelf.artefact) if known else None
        if change:
            os.utime(shelf.artefact, ns=(0, shelf.artefact.stat().st_mtime_ns))
        with (
            work_folder(tmp_path, "test") as work,
            held.held(shelf.artefact, shelf.record, work, Events(), known=state) as bytes_,
        ):
            assert bytes_.compared is compared


def test_a_file_elsewhere_is_copied_and_what_is_no_file_is_refused(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "reflink", lambda *_: False)
    monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(18, "another file system")))
    with work_folder(tmp_path, "test") as work, held.held(shelf.artefact, shelf.record, work, Events()) as bytes_:
        flip(shelf.artefact)
        assert bytes_.path.read_bytes() == b"a" * EBS_BLOCK + b"b" * EBS_BLOCK
    shelf.artefact.unlink()
    os.mkfifo(shelf.artefact)
    with work_folder(tmp_path, "test") as work, pytest.raises(InputError, match="it is no file"):
        held.held(shelf.artefact, shelf.record, work, Events()).__enter__()


class TestStartups:
    """Images start as the Bakefile says, or as a record says that a trusted key has signed."""

    @pytest.fixture
    def planted(self, shelf: Shelf) -> Startup:
        startup = Startup(command=("cat", "/etc/shadow"))
        [image] = shelf.record.plan.images
        plan = shelf.record.plan.model_copy(update={"images": (image.model_copy(update={"startup": startup}),)})
        shelf.record = shelf.record.model_copy(update={"plan": plan})
        records.write(shelf.output, shelf.record)
        return startup

    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch) -> list[Startup | None]:
        found: list[Startup | None] = []

        def look(result: Any) -> Callable[..., Any]:
            def use(_path: Path, plan: Any, *_: object, **__: object) -> Any:
                found.extend(image.startup for image in plan.images)
                return result

            return use

        monkeypatch.setattr(trace, "rehearse_disk", look(TRACE))
        monkeypatch.setattr("parbake.verify.verify", look(GOOD))
        return found

    @pytest.mark.parametrize("command", ["trace", "verify"])
    @pytest.mark.parametrize("known", [True, False], ids=["the Bakefile's image", "another image"])
    def test_what_nobody_signed_is_not_run(
        self, shelf: Shelf, planted: Startup, started: list[Startup | None], command: str, known: bool
    ) -> None:
        if not known:
            Path("parbake.yaml").unlink()
        assert run(shelf, USES[command]) == 0
        assert started == [None] != [planted]

    @pytest.mark.parametrize("command", ["trace", "verify"])
    def test_what_is_signed_is_run_and_the_bakefile_comes_first(
        self, shelf: Shelf, planted: Startup, started: list[Startup | None], command: str
    ) -> None:
        records.write(shelf.output, shelf.record, shelf.signer)
        said = {"version": 1, "name": "other", "trust": ["key.pub"], "images": ["registry.example/a:1"]}
        said["sign"] = {"key": "key.pem"}
        Path("parbake.yaml").write_text(json.dumps(said))
        assert run(shelf, USES[command]) == 0
        said |= {"name": "node", "images": [{"reference": "registry.example/a:1", "startup": {"args": ["mine"]}}]}
        Path("parbake.yaml").write_text(json.dumps(said))
        assert run(shelf, USES[command]) == 0
        assert started == [planted, Startup(args=("mine",))]

    def test_a_verdict_is_of_the_startups_that_it_was_seen_with(
        self, shelf: Shelf, started: list[Startup | None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bake proves what exists again when they were edited, either way, and a signed record says so."""
        records.write(shelf.output, shelf.record, shelf.signer)
        said = {"version": 1, "name": "node", "images": ["registry.example/a:1"], "trust": ["key.pub"]}
        Path("parbake.yaml").write_text(json.dumps({**said, "sign": {"key": "key.pem"}}))
        monkeypatch.setattr("parbake.workflows.verify.can_boot", lambda *_: True)
        [image] = shelf.record.plan.images
        file = StartupFile(content="level: info")
        edits = (Startup(args=("serve",)), Startup(user="1"), Startup(user="1", files={"/etc/app.yaml": file}), None)
        for startup in edits:
            images = (image.model_copy(update={"startup": startup}),)
            plan = shelf.record.plan.model_copy(update={"images": images})
            monkeypatch.setattr(bake, "plan_bake", lambda *_, plan=plan: plan)
            for _ in range(2):
                assert run(shelf, ["bake", "--no-rehearse"]) == 0
            found = genuine.need(shelf.artefact, shelf.trust)
            assert (found.plan.images[0].startup, found.verified) == (startup, True)
        assert started == [*edits], "once for each edit"
