"""What a bake writes down when it is done: the record of what was made, of what, and how long it took."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from parbake import __version__
from parbake.builders import Disk, Publication
from parbake.core.blocks import BlockList
from parbake.core.reference import Reference
from parbake.core.signing import Attached
from parbake.core.timestamps import timestamp
from parbake.core.workspace import cache_folder
from parbake.machine import disk
from parbake.records import Blocks, Record
from parbake.workflows.plan import Bake

if TYPE_CHECKING:
    from parbake.coldstart.trace import Trace


@dataclass(frozen=True, slots=True)
class Clock:
    """When a bake began: as RFC 3339, and on the monotonic clock in seconds."""

    started: str = field(default_factory=timestamp)
    monotonic: float = field(default_factory=time.monotonic)


type Attachments = dict[Reference, tuple[Attached, ...]]


def describe_disk(
    bake: Bake, disk_made: Disk, base_path: Path | None, clock: Clock, attached: Attachments
) -> tuple[Record, BlockList | None]:
    """Write down what was made here, of what, and how long it took.

    A raw artefact is named by the blocks that are not zeros: most of it is holes, which a plain digest would read.
    """
    path, events, blocks, sha256 = disk_made.path, bake.events, None, ""
    with events.stage("digest", "Digest"):
        if bake.plan.artefact.format == "raw":
            blocks = disk.block_list(path, events, disk_made.hashes, algorithm="blake3")
        else:
            sha256 = disk.sha256_file(path, events)
        base_digest = disk.describe(base_path, cache_folder(), events).digest if base_path else None
    status = path.stat()
    made = Publication(size=status.st_size, blocks=blocks)
    record = make_record(bake, clock, made, disk_made, disk_made.trace, attached)
    facts = {"allocated": status.st_blocks * 512, "sha256": sha256, "base_digest": base_digest}
    return record.model_copy(update=facts), blocks


def make_record(
    bake: Bake, clock: Clock, made: Publication, disk: Disk | None, trace: Trace | None, attached: Attachments
) -> Record:
    """Return the record of an artefact that is finished now; ``disk`` is what it was made of, where that was here."""
    plan, blocks = bake.plan, made.blocks
    record = Record(
        artefact=plan.artefact_name,
        key=plan.key,
        blocks=blocks and Blocks(algorithm=blocks.algorithm, count=len(blocks.blocks), digest=blocks.digest()),
        size=made.size,
        allocated=0,
        builder=bake.run.bakefile.builder,
        parbake=__version__,
        started_at=clock.started,
        finished_at=timestamp(),
        seconds=round(time.monotonic() - clock.monotonic, 3),
        plan=plan,
        timings={name: round(seconds, 3) for name, seconds in bake.events.timings.items()},
        sealed=disk.sealed if disk else (),
        parent=disk.parent if disk else "",
        published=dict(made.published),
        verdict=made.verdict,
        attached=attached,
    )
    if trace is None:
        return record
    from parbake.coldstart.trace import summary  # loads only where something was rehearsed

    return record.model_copy(update={"trace": summary(trace, file=record.trace_name)})
