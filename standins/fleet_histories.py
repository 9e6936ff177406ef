"""Records a history of each workflow, for tests that replay them: ``python -m standins.fleet_histories``.

Run it once for a release; the files of earlier releases stay. They are sealed with a key that is none. What is there
already is not recorded again: remove it first.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from temporalio.client import Client

from parbake import __version__
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
            gate = {"command": ["./errors"], "timeout": 10.0}
            approve = {"by": ["ann"], "count": 1, "within": 3600.0}
            canary = {"name": "canary", "targets": ["one/a"], "soak": 1.0, "gate": gate, "approve": approve}
            rest = {"name": "rest", "targets": ["one/b", "two/c", "two/d"], "at_once": 2}
            fleet.waves(canary, rest, windows=["Mon-Sun 00:00-24:00"])
            fleet.run(["one@amd64", "two@amd64"], rollout=True)
            fleet.until("approval")
            fleet.approve("canary")
            fleet.until("completed")
            record(fleet, "rollout/shop", "rollout")


if __name__ == "__main__":
    main()
