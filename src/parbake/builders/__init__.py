"""Builders make an artefact from a plan, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from parbake.events import Events
from parbake.model import Image, Plan, Source


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a builder works with besides the plan.

    ``base`` is the base image on this machine (None: a volume); ``source`` opens the content of one image; ``work`` is
    a folder of this run, on the file system where the artefact will lie. ``hang_up`` ends what waits for a registry.
    """

    base: Path | None
    source: Callable[[Image], Source]
    work: Path
    events: Events
    hang_up: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Baked:
    """A finished artefact, still in the work folder; ``sealed`` lists what was cleaned from the base."""

    path: Path
    sealed: tuple[str, ...] = ()


class Builder(Protocol):
    """Makes an artefact. ``name`` goes into the record."""

    name: str

    def build(self, plan: Plan, ingredients: Ingredients) -> Baked:
        """Make the artefact of ``plan`` in the work folder; leave nothing else behind, also on failure."""
        ...
