"""Wait for the end of what was cancelled: the engine takes no second one of the same name before."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

from temporalio.client import WorkflowExecutionDescription, WorkflowFailureError, WorkflowHandle

from parbake.core.errors import EngineUnreachable

CANCELLED: Final = "was cancelled"
_AN_END: Final = 600.0
"""Seconds that commands which were told to end may take: a heartbeat, their grace, and a worker's death meanwhile."""


def is_cancelled(described: WorkflowExecutionDescription) -> bool:
    """Whether somebody has cancelled it, perhaps a moment ago: it may be under way."""
    return described.raw_description.workflow_extended_info.cancel_requested


async def until_ended(before: WorkflowHandle[Any, Any], kind: str) -> None:
    """Wait for the end of what was cancelled, of this ``kind``. Raises EngineUnreachable where that does not come."""
    try:
        with suppress(WorkflowFailureError):
            await asyncio.wait_for(before.result(), _AN_END)
    except TimeoutError:
        raise EngineUnreachable(
            f"the {kind} before {CANCELLED}, and has not ended within {_AN_END:.0f} s",
            hint="`parbake fleet status` shows what it waits for, `parbake fleet doctor` whether anybody works",
        ) from None
