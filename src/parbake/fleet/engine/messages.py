"""What is said to a run or a rollout that is under way: to which one, and only once.

Seals are bound to the name of a workflow, which its later runs and rollouts share, and to no kind: without more, an old
approval would approve the next generation, and a reason for a pause could be sent again as one to go back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

from temporalio import workflow
from temporalio.client import WorkflowExecutionDescription

if TYPE_CHECKING:
    from parbake.fleet.engine.tasks import Baked, Progress


def _once() -> str:
    return uuid4().hex[:16]


@dataclass(frozen=True)
class Told:
    """Something that is said: ``what`` it is, ``about`` which run and generation, and a word that no other one has."""

    what: str
    about: str
    text: str = ""
    once: str = field(default_factory=_once)


class Heard:
    """What a workflow has heard; later parts of it are told."""

    def __init__(self, once: Iterable[str]) -> None:
        self.once = list(once)

    def is_new(self, told: Told, what: str, generation: str = "") -> bool:
        """Whether something is said to this very run and generation, and for the first time."""
        about = _about(workflow.info().first_execution_run_id, generation)
        return (told.what, told.about) == (what, about) and told.once not in self.once

    def takes(self, told: Told, what: str, generation: str = "") -> bool:
        """Whether something ``is_new``; from then on it is not."""
        if new := self.is_new(told, what, generation):
            self.once.append(told.once)
        return new


def asked(handle_run: str) -> str:
    """Return the word that a query asks a run with, and that its answer must have."""
    return f"{handle_run}/{_once()}"


def this_run() -> str:
    """Return the word for the result of this run, which its later parts share."""
    return workflow.info().first_execution_run_id


def is_of(run: str | None, result: Baked | Progress) -> bool:
    """Whether a result is that of a run: results are sealed for the workflow's id, which other runs have had."""
    return bool(run) and result.run == run


def echoed(word: str) -> str:
    """Return the word for an answer of this run: nothing where another run was asked."""
    return word if word.startswith(f"{workflow.info().run_id}/") else ""


def first_run(described: WorkflowExecutionDescription) -> str:
    """Return the run that is looked at, whose later parts share it."""
    return described.raw_description.workflow_execution_info.first_run_id or described.run_id


async def about(described: WorkflowExecutionDescription) -> str:
    """Return what is said now is about: the run that is under way, and the generation of a rollout."""
    generation = str((await described.memo()).get("generation", ""))
    return _about(first_run(described), generation)


def _about(run: str, generation: str) -> str:
    return f"{run}/{generation}"
