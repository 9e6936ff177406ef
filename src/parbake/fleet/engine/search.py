"""What the engine's pages can be searched for: fleet, cell and state, where they are registered in the engine.

They are not sealed, as names are not. Where the engine lacks one, or does not say, it is not set: the workflow would be
stuck. Source: Temporal, "Search Attributes" (values of Keyword have at most 255 bytes).
"""

from __future__ import annotations

from collections.abc import Collection

from temporalio import workflow
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError

FLEET, CELL, STATE = "ParbakeFleet", "ParbakeCell", "ParbakeState"
NAMES = (FLEET, CELL, STATE)
HOW = "temporal operator search-attribute create " + " ".join(f"--name {name} --type Keyword" for name in NAMES)
"""The command that registers all of them."""
_KEYS = {name: SearchAttributeKey.for_keyword(name) for name in NAMES}
_MOST = 255


async def registered(client: Client) -> list[str]:
    """Return which of them the engine has, as keywords; none where it does not say."""
    try:
        found = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace=client.namespace)
        )
    except RPCError:
        return []
    return [name for name in NAMES if found.custom_attributes.get(name) == IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD]


class Shown:
    """What a workflow shows of itself: its names for good, and its state as that changes. Only what is ``known``."""

    def __init__(self, known: Collection[str], *, fleet: str, cell: str = "") -> None:
        self._known = known
        self._new = {FLEET: fleet, CELL: cell}
        self._state = ""

    def state(self, state: str) -> None:
        """Show a state, unless it is the one that is shown."""
        if state == self._state:
            return
        self._state = state
        told = {name: value for name, value in {**self._new, STATE: state}.items() if name in self._known and value}
        self._new = {}
        if told:
            workflow.upsert_search_attributes([_KEYS[name].value_set(value[:_MOST]) for name, value in told.items()])
