"""The engine's parts that need no server: seals, words of failures, what is allowed where."""

from __future__ import annotations

import ast
import asyncio
import importlib
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.converter import (
    ActivitySerializationContext,
    SerializationContext,
    WorkflowSerializationContext,
)
from temporalio.exceptions import ActivityError, ApplicationError, RetryState, TimeoutType
from temporalio.exceptions import TimeoutError as TimedOut
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput
from temporalio.worker.workflow_sandbox import SandboxRestrictions
from temporalio.worker.workflow_sandbox._importer import Importer
from temporalio.worker.workflow_sandbox._restrictions import RestrictionContext

from parbake.core import ports
from parbake.core.errors import CommandFailed, EnvironmentProblem, InputError
from parbake.core.run import run
from parbake.fleet import source, stores
from parbake.fleet.engine import local
from parbake.fleet.engine.activities import failure
from parbake.fleet.engine.calls import Answering
from parbake.fleet.engine.failures import describe
from parbake.fleet.engine.sealing import Seal, make_key, read_keys
from parbake.fleet.engine.tasks import Failure, Root
from parbake.fleet.engine.workflows import tried_enough
from parbake.fleet.file import Source
from parbake.records.store import open_store

SOURCE = Path(__file__).parents[3] / "src" / "parbake"
FIRST, SECOND = bytes(32), b"k" * 32


def through(seal: Seal, opening: Seal, payload: Payload) -> Payload:
    async def go() -> Payload:
        (opened,) = await opening.decode(await seal.encode([payload]))
        return opened

    return asyncio.run(go())


def test_what_is_sealed_is_opened_by_those_who_have_the_key() -> None:
    payload = Payload(metadata={"encoding": b"json/plain"}, data=b'"a marker"')
    assert through(Seal((FIRST,)), Seal((SECOND, FIRST)), payload) == payload
    assert through(Seal((SECOND, FIRST)), Seal((SECOND,)), payload) == payload, "the first one seals"
    (sealed,) = asyncio.run(Seal((FIRST,)).encode([payload]))
    assert b"marker" not in sealed.SerializeToString()
    (again,) = asyncio.run(Seal((FIRST,)).encode([payload]))
    assert again.data != sealed.data, "two alike cannot be told"


@pytest.mark.parametrize("how", ["plain", "another key", "changed", "short"])
def test_what_is_not_sealed_is_refused(how: str) -> None:
    payload = Payload(metadata={"encoding": b"json/plain"}, data=b'"x"')
    if how != "plain":
        (payload,) = asyncio.run(Seal((SECOND if how == "another key" else FIRST,)).encode([payload]))
        if how == "changed":
            payload.data = payload.data[:-1] + bytes([payload.data[-1] ^ 1])
        if how == "short":
            payload.data = payload.data[:5]
    with pytest.raises(ApplicationError, match="is not sealed with the key of this fleet"):
        asyncio.run(Seal((FIRST,)).decode([payload]))


def places() -> dict[str, SerializationContext]:
    """Return every kind of place that differs from every other in one thing."""
    named: dict[str, SerializationContext]
    named = {name: WorkflowSerializationContext("default", name) for name in ("rollout/shop", "fleet/shop", "bake/k/s")}
    named["namespace"] = WorkflowSerializationContext("other", "rollout/shop")
    for space, workflow, kind, identity in (
        ("default", "rollout/shop", "gate", "gate/r1/1"),
        ("default", "rollout/shop", "gate", "gate/r1/2"),
        ("default", "rollout/shop", "hand", "gate/r1/1"),
        ("default", "rollout/eshop", "gate", "gate/r1/1"),
        ("other", "rollout/shop", "gate", "gate/r1/1"),
    ):
        named[f"{space} {workflow} {kind} {identity}"] = ActivitySerializationContext(
            space, identity, kind, None, workflow, None, is_local=False
        )
    return named


@pytest.mark.parametrize("of", places())
def test_what_is_sealed_for_one_place_opens_in_no_other(of: str) -> None:
    payload = Payload(metadata={"encoding": b"json/plain"}, data=b'"x"')
    sealing = Seal((FIRST,)).with_context(places()[of])
    for name, context in places().items():
        opening = Seal((FIRST,)).with_context(context)
        if name == of:
            assert through(sealing, opening, payload) == payload
        else:
            with pytest.raises(ApplicationError, match="for its place"):
                through(sealing, opening, payload)


def test_what_a_schedule_was_given_opens_at_each_of_its_ticks() -> None:
    payload = Payload(metadata={"encoding": b"json/plain"}, data=b'"x"')
    schedule, tick = ("tick/fleet/shop", "tick/fleet/shop-2026-12-02T22:00:00Z")
    sealing, opening = (
        Seal((FIRST,)).with_context(WorkflowSerializationContext("default", name)) for name in (schedule, tick)
    )
    assert through(sealing, opening, payload) == payload


def test_keys_are_made_once_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    make_key(path)
    (key,) = read_keys(path)
    make_key(path)
    assert read_keys(path) == (key,)
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("a") as file:
        file.write("00" * 32 + "\n")
    assert read_keys(path) == (key, bytes(32))


@pytest.mark.parametrize(("of", "does"), [("r1", True), ("r0", False)])
def test_a_worker_does_only_what_its_own_run_has_asked_for(of: str, does: bool) -> None:
    did: list[object] = []

    class Work(ActivityInboundInterceptor):
        async def execute_activity(self, input: ExecuteActivityInput) -> None:  # noqa: A002  # the library's
            did.append(input)

    async def go() -> object:
        work = Answering().intercept_activity(Work(cast(Any, None)))
        return await work.execute_activity(cast(Any, None))

    world = ActivityEnvironment()
    world.info = replace(world.info, workflow_run_id="r1", activity_id=f"gate/{of}/1")
    if does:
        assert asyncio.run(world.run(go)) == {"answers": "gate/r1/1", "with": None}
    else:
        with pytest.raises(ApplicationError, match="of another run"):
            asyncio.run(world.run(go))
    assert len(did) == does


@pytest.mark.parametrize(
    ("code", "document", "kind", "final"),
    [
        (2, {"error": "BakefileError", "message": "x", "hint": "y"}, "BakefileError", True),
        (3, {"error": "VerificationFailed", "message": "x"}, "VerificationFailed", True),
        (1, {"error": "Denied", "message": "x"}, "Denied", True),
        (1, {"error": "Moved", "message": "x"}, "Moved", True),
        (1, {"error": "Unreachable", "message": "x"}, "Unreachable", False),
        (1, {}, "ParbakeError", False),
        (130, {}, "Interrupted", False),
        (-9, {}, "Killed", False),
        (137, {}, "Killed", False),
    ],
)
def test_the_exit_code_is_the_policy_of_retries(code: int, document: dict[str, object], kind: str, final: bool) -> None:
    error = failure(code, document)
    assert (error.type, error.non_retryable) == (kind, final)
    assert error.message


def in_activity(cause: BaseException) -> ActivityError:
    error = ActivityError(
        "activity failed",
        scheduled_event_id=1,
        started_event_id=2,
        identity="w",
        activity_type="bake",
        activity_id="1",
        retry_state=RetryState.MAXIMUM_ATTEMPTS_REACHED,
    )
    error.__cause__ = cause
    return error


def test_what_failed_is_what_parbake_said() -> None:
    said = in_activity(ApplicationError("no such image", "push it", type="NoSuchImage", non_retryable=True))
    assert describe("a", said) == Failure("a", "NoSuchImage", "no such image", "push it")
    assert not tried_enough(said)
    lost = in_activity(TimedOut("heartbeat", type=TimeoutType.HEARTBEAT, last_heartbeat_details=[]))
    assert describe("a", lost).error == "WorkerLost"
    assert tried_enough(lost)
    assert tried_enough(in_activity(ApplicationError("x", type="Unreachable")))
    assert describe("a", in_activity(ValueError("odd"))) == Failure("a", "ValueError", "odd")


def test_the_first_note_of_a_quarantine_stays_until_it_is_lifted(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert stores.quarantined(store, "k") is None
    stores.quarantine(str(tmp_path), "k", stores.Note("a@amd64", "WorkerLost", "first"))
    stores.quarantine(str(tmp_path), "k", stores.Note("a@amd64", "WorkerLost", "second"))
    assert stores.quarantined(store, "k") == stores.Note("a@amd64", "WorkerLost", "first")
    stores.lift(store, ["k", "other"])
    assert stores.quarantined(store, "k") is None


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "bakes"
    path.mkdir()
    git = ["git", "-C", str(path), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    run([*git, "init", "--quiet", "--initial-branch", "main"])
    (path / "fleet.yaml").write_text("first")
    run([*git, "add", "."])
    run([*git, "commit", "--quiet", "-m", "first"])
    run([*git, "tag", "-a", "v1", "-m", "v1"])
    (path / "fleet.yaml").write_text("second")
    run([*git, "commit", "--quiet", "-am", "second"])
    return path


def test_a_run_is_pinned_to_one_commit_that_workers_fetch_once(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    address = f"file://{repository}"
    tagged = source.pinned(Source.model_construct(git=address, ref="v1"), tmp_path)
    newest = source.pinned(Source.model_construct(git=address, ref="main"), tmp_path)
    assert tagged.git == newest.git == address
    assert (source.checked_out(tagged) / "fleet.yaml").read_text() == "first"
    place = source.checked_out(newest)
    assert (place / "fleet.yaml").read_text() == "second"
    inode = place.stat().st_ino
    assert source.checked_out(newest).stat().st_ino == inode
    shutil.copytree(tmp_path / "cache", tmp_path / "restored")
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "restored"))
    (there,) = (tmp_path / "restored").glob(f"fleet-sources/*/{newest.commit}")
    (there / "fleet.yaml").write_text("of somebody who can write to the cache")
    assert (source.checked_out(newest) / "fleet.yaml").read_text() == "second"
    assert source.pinned(Source.model_construct(git=address, ref=newest.commit), tmp_path) == newest
    with pytest.raises(InputError, match="has no branch or tag v2"):
        source.pinned(Source.model_construct(git=address, ref="v2"), tmp_path)
    with pytest.raises(CommandFailed):
        source.checked_out(Root(git=address, commit="0" * 40))
    assert not (place.parent / ("0" * 40)).exists()


def test_a_folder_must_be_there(tmp_path: Path) -> None:
    assert source.checked_out(source.pinned(None, tmp_path)) == tmp_path
    with pytest.raises(InputError, match="there is no folder"):
        source.checked_out(Root(folder=str(tmp_path / "gone")))
    with pytest.raises(InputError, match="is not a commit"):
        source.checked_out(Root(git="x", commit="--upload-pack=evil"))


def test_one_room_knows_the_engine() -> None:
    for path in sorted(SOURCE.rglob("*.py")):
        if path.is_relative_to(SOURCE / "fleet/engine"):
            continue
        nodes = ast.walk(ast.parse(path.read_text()))
        imports = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any("temporalio" in each for each in imports), f"{path}: it is known in fleet/engine alone"


@pytest.mark.parametrize("module", ["workflows", "waves", "ticks"])
def test_a_workflow_executes_its_own_module_and_no_other_of_ours(module: str) -> None:
    """Thousands of workflows begin in a run: each would make all data classes anew."""
    name = f"parbake.fleet.engine.{module}"
    importlib.import_module(name)
    of_sandbox = Importer(SandboxRestrictions.default, RestrictionContext(), workflow_module_name=name)
    with of_sandbox.applied():
        importlib.import_module(name)
    ours = {each: there for each, there in of_sandbox.new_modules.items() if each.startswith("parbake.")}
    anew = {each for each, there in ours.items() if there is not sys.modules[each]}
    assert anew == {"parbake.fleet", "parbake.fleet.engine", name}


def test_the_engine_is_no_scheduler_of_ours() -> None:
    """Timers, queues and retries belong to the engine: outside of it nothing of fleets waits or tries again."""
    for path in sorted((SOURCE / "fleet").rglob("*.py")):
        names = {
            name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in [*(alias.name for alias in node.names), getattr(node, "module", "") or ""]
        }
        assert not names & {"queue", "sched", "heapq", "Queue", "PriorityQueue", "tenacity", "stamina"}, path
        if path.name != "local.py":  # which waits for a program to listen, and looks whether it lives
            assert not names & {"sleep", "Deadline"}, path


def test_a_bake_imports_nothing_of_it() -> None:
    code = (
        "import sys, parbake.cli, parbake.workflows.bake, parbake.workflows.watch, parbake.cli.text.artefacts; "
        "print([name for name in sys.modules if name.startswith(('temporalio', 'parbake.fleet'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_worker_starts_without_what_reads_bakefiles() -> None:
    """It takes a third of its start, and memory: parbake's commands, which it runs, load it for themselves."""
    code = "import sys, parbake.fleet.engine.worker; print({'parbake.bakefile', 'ruamel.yaml'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_port_that_another_has_is_refused_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_LETS_GO", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(EnvironmentProblem, match=rf"port {port} is in use") as caught:
            local._need_free(port)
    assert "--port" in caught.value.hint
    local._need_free(port)


def test_a_port_that_a_killed_engine_lets_go_of_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_LETS_GO", 60.0)
    other = socket.create_server(("127.0.0.1", 0))
    asked = threading.Event()
    free = ports.is_free

    def looks(port: int) -> bool:
        found = free(port)
        asked.set()
        return found

    monkeypatch.setattr(local, "is_free", looks)

    def let_go() -> None:
        asked.wait(30)
        other.close()

    thread = threading.Thread(target=let_go)
    thread.start()
    local._need_free(other.getsockname()[1])
    thread.join()
    assert asked.is_set()
