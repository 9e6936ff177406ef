"""What a bake writes down when it is done: the record of what was made, of what, and how long it took."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from parbake import __version__
from parbake.builders import Disk
from parbake.core.blocks import BlockList
from parbake.core.model import Plan, Published, Verdict
from parbake.core.reference import Reference
from parbake.core.signing import Attached
from parbake.core.timestamps import timestamp
from parbake.core.workspace import cache_folder
from parbake.machine import disk
from parbake.records import Blocks, Record
from parbake.workflows.plan import Session

if TYPE_CHECKING:
    from parbake.coldstart.trace import Trace


@dataclass(frozen=True, slots=True)
class Clock:
    """When a bake began: as RFC 3339, and on the monotonic clock in seconds."""

    started: str = field(default_factory=timestamp)
    monotonic: float = field(default_factory=time.monotonic)


def describe_disk(
    run: Session,
    plan: Plan,
    disk_made: Disk,
    base_path: Path | None,
    clock: Clock,
    attached: dict[Reference, tuple[Attached, ...]],
) -> tuple[Record, BlockList | None]:
    """Write down what was made here, of what, and how long it took.

    A raw artefact is named by the blocks that are not zeros: most of it is holes, which a plain digest would read.
    """
    path, events, blocks, sha256 = disk_made.path, run.events, None, ""
    with events.stage("digest", "Digest"):
        if plan.artefact.format == "raw":
            blocks = disk.block_list(path, events, disk_made.hashes, algorithm="blake3")
        else:
            sha256 = disk.sha256_file(path, events)
        base_digest = disk.describe(base_path, cache_folder(), events).digest if base_path else None
    status = path.stat()
    record = make_record(
        run,
        plan,
        clock,
        size=status.st_size,
        allocated=status.st_blocks * 512,
        sha256=sha256,
        blocks=blocks,
        base_digest=base_digest,
        sealed=disk_made.sealed,
        parent=disk_made.parent,
        trace=disk_made.trace,
        attached=attached,
    )
    return record, blocks


def make_record(
    run: Session,
    plan: Plan,
    clock: Clock,
    *,
    size: int,
    allocated: int = 0,
    sha256: str = "",
    blocks: BlockList | None = None,
    base_digest: str | None = None,
    sealed: tuple[str, ...] = (),
    parent: str = "",
    published: dict[str, Published] | None = None,
    verdict: Verdict | None = None,
    trace: Trace | None = None,
    attached: dict[Reference, tuple[Attached, ...]] | None = None,
) -> Record:
    """Return the record of an artefact that is finished now; see ``Record`` for what its fields mean."""
    record = Record(
        artefact=plan.artefact_name,
        key=plan.key,
        sha256=sha256,
        blocks=blocks and Blocks(algorithm=blocks.algorithm, count=len(blocks.blocks), digest=blocks.digest()),
        size=size,
        allocated=allocated,
        builder=run.bakefile.builder,
        parbake=__version__,
        started_at=clock.started,
        finished_at=timestamp(),
        seconds=round(time.monotonic() - clock.monotonic, 3),
        plan=plan,
        base_digest=base_digest,
        timings={name: round(seconds, 3) for name, seconds in run.events.timings.items()},
        sealed=sealed,
        parent=parent,
        published=published or {},
        verdict=verdict,
        attached=attached or {},
    )
    if trace is None:
        return record
    from parbake.coldstart.trace import summary  # loads only where something was rehearsed

    return record.model_copy(update={"trace": summary(trace, file=record.trace_name)})
