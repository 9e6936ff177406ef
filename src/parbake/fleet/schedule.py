"""The ``schedule`` of a fleet's file: when runs begin by themselves, and what is removed in between."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from parbake.bakefile.sections import Section
from parbake.bakefile.values import Duration

_CATCH_UP = 600.0


class Schedule(Section):
    """When runs begin by themselves. The engine knows of it from `parbake fleet apply`."""

    every: Duration
    """How often a run starts. It plans all cells, and bakes those that the store does not have."""
    jitter: Duration | None = None
    """Start up to this much later, at random, so that several fleets do not ask one registry at once."""
    overlap: Literal["skip", "queue"] = "skip"
    """What happens if the previous run is still under way: skip this one, or start it afterwards."""
    catch_up: Duration = Field(default=_CATCH_UP, json_schema_extra={"default": "10m"})
    """How late a run that was missed while no engine ran may still start; of several, the last one does."""
    prune: Duration | None = None
    """How often old artefacts are removed, as the Bakefiles' `retention` says: from the store, and from EC2 where they
    are published. Without: never."""
