"""Workflows still do what those of released versions did: a history that began under one goes on under this one."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from parbake import __version__
from parbake.fleet.engine import tasks
from parbake.fleet.engine.sealing import converter
from parbake.fleet.engine.tasks import Baked, BakeRequest
from parbake.fleet.engine.waves import Rollout
from parbake.fleet.engine.workflows import Bake, Fleet
from standins.fleet_histories import FOLDER, KEY

HISTORIES = sorted(FOLDER.glob("*/*.json"))


def replay(path: Path, *workflows: type) -> None:
    text = path.read_text()
    begins = WorkflowHistory.from_json("x", text).events[0].workflow_execution_started_event_attributes
    history = WorkflowHistory.from_json(begins.workflow_id, text)  # seals are bound to it
    replayer = Replayer(workflows=workflows, namespace="default", data_converter=converter((KEY,)))
    asyncio.run(replayer.replay_workflow(history))


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recorded_history_goes_on(path: Path) -> None:
    replay(path, Fleet, Bake, Rollout)


def test_this_version_has_a_history_of_each_workflow() -> None:
    """Of their other paths, the tests on the real engine replay what they have done."""
    assert {path.stem for path in HISTORIES if path.parent.name == __version__} == {"bake", "fleet", "rollout"}


def test_histories_are_short() -> None:
    for path in HISTORIES:
        events = WorkflowHistory.from_json("x", path.read_text()).events
        size = sum(event.ByteSize() for event in events)
        if path.stem == "bake":
            assert len(events) <= 20
            assert size <= 8 << 10


@workflow.defn(name="Bake", sandboxed=False)
class Changed:
    """A bake that asks for something else first."""

    @workflow.run
    async def run(self, request: BakeRequest) -> Baked:
        await workflow.sleep(timedelta(seconds=1))
        baked: Baked = await workflow.execute_activity(
            "bake", request, result_type=Baked, task_queue=tasks.BAKE, start_to_close_timeout=timedelta(hours=1)
        )
        return baked


def test_an_incompatible_change_is_found() -> None:
    with pytest.raises(NondeterminismError):
        replay(FOLDER / __version__ / "bake.json", Changed, Fleet)
