"""Builders make an artefact from a plan, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from parbake.disk import BlockList, Memory
from parbake.events import Events
from parbake.model import Image, Plan, Published, Source, Verdict
from parbake.trace import Trace


@dataclass(frozen=True, slots=True)
class Parent:
    """An earlier volume of the same Bakefile to start from: its name, file, and the list of its blocks.

    ``memory`` may spare the comparison of the two (None: every byte is compared).
    """

    name: str
    path: Path
    blocks: BlockList
    memory: Memory | None = None


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a builder works with besides the plan.

    ``base`` is the base image on this machine (None: a volume); ``source`` opens the content of one image; ``work`` is
    a folder of this run, on the file system where the artefact will lie. ``hang_up`` ends what waits for a registry.
    ``prove`` verifies a disk, with its plan and a work folder, for builders that send it away (None: not now).
    ``parent`` has layers that need not be fetched again; a builder may do without it. ``ready`` gets a disk ready for
    cold starts, with its plan and a work folder: builders that send it away call it before.
    """

    base: Path | None
    source: Callable[[Image], Source]
    work: Path
    events: Events
    hang_up: Callable[[], None] = lambda: None
    prove: Callable[[Path, Plan, Path], Verdict] | None = None
    parent: Parent | None = None
    ready: Callable[[Baked, Plan, Path], Baked] = lambda baked, _plan, _work: baked


@dataclass(frozen=True, slots=True)
class Baked:
    """A finished artefact: a file, still in the work folder, or (``path`` is None) what is published in a cloud.

    ``sealed`` lists what was cleaned from the base. ``published`` is by region, that of the bake first; ``size`` is
    that of its disk in bytes, and ``verdict`` what its builder saw of it there, where it has looked; ``blocks`` is the
    list of the disk's blocks, where it was here. ``hashes`` are the BLAKE3 of blocks that the builder has hashed
    already, ``parent`` is the artefact that it has started from, ``trace`` what cold starts read of it, once known.
    """

    path: Path | None
    sealed: tuple[str, ...] = ()
    published: Mapping[str, Published] = field(default_factory=dict)
    verdict: Verdict | None = None
    size: int = 0
    blocks: BlockList | None = None
    hashes: Mapping[int, bytes] = field(default_factory=dict)
    parent: str = ""
    trace: Trace | None = None


class Builder(Protocol):
    """Makes an artefact. ``name`` goes into the record."""

    name: str

    def build(self, plan: Plan, ingredients: Ingredients) -> Baked:
        """Make the artefact of ``plan`` in the work folder; leave nothing else behind, also on failure."""
        ...
