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
    """How often a run begins. It plans all cells; what the store has is not baked again."""
    jitter: Duration | None = None
    """Begin up to so much later, at random: several fleets then do not ask the same registry at once."""
    overlap: Literal["skip", "queue"] = "skip"
    """What happens when the run before is still under way: none begins, or one waits for its end."""
    catch_up: Duration = Field(default=_CATCH_UP, json_schema_extra={"default": "10m"})
    """A run that was missed while no engine ran begins late, if not later than that; of several, the last one."""
    prune: Duration | None = None
    """How often old artefacts are removed, as the Bakefiles' `retention` says: from the store, and from EC2 where they
    are published. Without: never."""
