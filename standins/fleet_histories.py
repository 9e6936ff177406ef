"""Records histories of every workflow and path, for tests that replay them: ``python -m standins.fleet_histories``.

Run it once for a release; the files of earlier releases stay. They are sealed with a key that is none. What is there
already is not recorded again: remove it first.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from temporalio.client import Client

from parbake import __version__
from parbake.core.errors import Interrupted
from parbake.fleet.engine import rollouts, runs
from standins.fleet_program import key_of
from standins.fleets import Fleet

FOLDER = Path(__file__).parents[1] / "tests/unit/fleet/histories"
KEY = bytes(32)


def record(fleet: Fleet, identity: str, name: str, run_id: str | None = None) -> None:
    """Write the history of a workflow, its last run or the one that is named."""

    async def go(client: Client) -> str:
        history = await client.get_workflow_handle(identity, run_id=run_id).fetch_history()
        return history.to_json()

    place = FOLDER / __version__ / f"{name}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        place.write_text(fleet.ask(go) + "\n")


def of_rollouts(fleet: Fleet) -> None:
    """Record rollouts: with all that a wave may ask, paused and gone on, back by themselves and by hand."""
    cells = ["one@amd64", "two@amd64"]
    gate = {"command": ["./errors"], "timeout": 10.0}
    approve = {"by": ["ann"], "count": 1, "within": 3600.0}
    canary = {"name": "canary", "targets": ["one/a"], "soak": 1.0, "gate": gate, "approve": approve}
    rest = {"name": "rest", "targets": ["one/b", "two/c", "two/d"], "at_once": 2}
    fleet.waves(canary, rest, windows=["Mon-Sun 00:00-24:00"])
    fleet.run(cells, name="d", rollout=True)
    fleet.until("approval", "d")
    fleet.approve("canary", name="d")
    fleet.until("completed", "d")
    record(fleet, "fleet/d", "fleet-rolled-out")
    record(fleet, "rollout/d", "rollout")
    fleet.ask(lambda client: rollouts.back(client, "d", "ann wants it back"))
    fleet.until("rolled-back", "d")
    record(fleet, "rollout/d", "rollout-back-after-its-end")
    fleet.waves({**rest, "at_once": 1}, on_failure="rollback")
    fleet.target("c.stalls").touch()
    fleet.run(cells, name="e", rollout=True)
    fleet.until("rolled-back", "e")
    record(fleet, "rollout/e", "rollout-back-by-itself")
    fleet.waves({**rest, "at_once": 1})
    fleet.run(cells, name="f", rollout=True)
    fleet.until("paused", "f")
    fleet.target("c.stalls").unlink()
    fleet.target("d.slow").touch()
    fleet.ask(lambda client: rollouts.resume(client, "f", "by ann"))
    fleet.wait_until(lambda: fleet.written()[-1].startswith("write d"), "the last target")
    fleet.ask(lambda client: rollouts.back(client, "f", "ann wants it back"))
    fleet.until("rolled-back", "f")
    record(fleet, "rollout/f", "rollout-paused-and-back-by-hand")
    fleet.target("d.slow").unlink()
    fleet.waves(canary)
    fleet.run(cells, name="g", rollout=True)
    fleet.until("approval", "g")
    fleet.ask(lambda client: rollouts.cancel(client, "g"))
    fleet.until("canceled", "g")
    record(fleet, "rollout/g", "rollout-cancelled")


def of_places(fleet: Fleet) -> None:
    """Record a run that brings its cells to places, one of them in vain."""
    places = fleet.places("eu-west-1", "us-east-1")
    fleet.run(["ebs-one", "ebs-two"], name="h", places=places, copies=1, bakes={"ebs": 1})
    record(fleet, "fleet/h", "fleet-placed")
    (fleet.root / "us-east-1.refuses").touch()
    fleet.run(["ebs-three"], name="i", places=places)
    record(fleet, "fleet/i", "fleet-not-placed")
    fleet.places()


def of_superseding(fleet: Fleet) -> None:
    """Record a rollout whose place another takes, and that one, which goes back; all of it with an audit trail."""
    cells = ["one@amd64", "two@amd64"]
    approve: dict[str, object] = {"by": [], "count": 1, "within": None}
    fleet.waves({"name": "canary", "targets": ["one/a", "two/c"], "approve": approve})
    fleet.run(cells, name="j", rollout=True, supersede=True, audited=True)
    fleet.until("approval", "j")
    first = fleet.ask(lambda client: _run_id(client, "rollout/j"))
    fleet.newer("2")
    fleet.run(cells, name="j", rollout=True, supersede=True, audited=True)
    record(fleet, "fleet/j", "fleet-supersedes")
    fleet.wait_until(lambda: fleet.ask(lambda client: _run_id(client, "rollout/j")) != first, "the newer one")
    record(fleet, "rollout/j", "rollout-superseded", first)
    fleet.until("approval", "j")
    fleet.ask(lambda client: rollouts.back(client, "j", "ann wants it back"))
    fleet.until("rolled-back", "j")
    record(fleet, "rollout/j", "rollout-back-past-what-was-superseded")
    fleet.newer("")


async def _run_id(client: Client, identity: str) -> str:
    return (await client.get_workflow_handle(identity).describe()).run_id


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        state.mkdir()
        (state / "key").write_text(KEY.hex())
        (state / "key").chmod(0o600)
        with Fleet(Path(folder)) as fleet:
            fleet.work(1)
            fleet.run(["one", "build-two", "wrong-three", "refused-four", "flaky-five"])
            record(fleet, "fleet/shop", "fleet")
            record(fleet, fleet.bake_id("one"), "bake")
            record(fleet, fleet.bake_id("refused-four"), "bake-refused")
            fleet.run(["flaky-six"], attempts=2)
            record(fleet, fleet.bake_id("flaky-six"), "bake-quarantined")
            fleet.start(["slow-seven"], name="a")
            fleet.wait_until(lambda: fleet.happened("start")[key_of("slow-seven")] == 1, "the bake's start")
            fleet.start(["slow-seven"], name="b")
            fleet.wait_until(lambda: len(fleet.status("b").running) == 1, "the other's wait")
            for name in ("b", "a"):
                fleet.ask(lambda client, name=name: runs.cancel(client, name))  # type: ignore[misc]
                try:
                    fleet.end(name)
                except Interrupted:
                    record(fleet, f"fleet/{name}", "fleet-cancelled" if name == "a" else "fleet-joined-cancelled")
            record(fleet, fleet.bake_id("slow-seven"), "bake-cancelled")
            fleet.start([f"wrong-{number}" for number in range(60)], name="c", failures=1, window=2)
            fleet.wait_until(lambda: fleet.status("c").state == "paused", "the pause")
            fleet.ask(lambda client: runs.resume(client, "c"))
            fleet.end("c")
            record(fleet, "fleet/c", "fleet-paused")
            of_rollouts(fleet)
            of_places(fleet)
            of_superseding(fleet)


if __name__ == "__main__":
    main()
