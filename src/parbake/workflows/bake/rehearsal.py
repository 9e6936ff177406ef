"""The rehearsal in a bake: whether there is one, where, what it decides, and the trace that stands for it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from parbake.builders import Disk, RehearsalPlace
from parbake.core.errors import InputError, VerificationFailed
from parbake.core.model import Plan, TraceSummary
from parbake.core.run import need_root
from parbake.workflows.plan import Bake, BakeOptions, BakeResult

if TYPE_CHECKING:
    from parbake.coldstart.trace import Trace


def need_rights(plan: Plan, options: BakeOptions) -> None:
    """Raise EnvironmentProblem without root where something is mounted: for all but an ext4 volume.

    So does a rehearsal in a place that cannot be had; InputError for one that is none for the artefact.
    """
    if rehearses(plan, options) and options.rehearse_in:
        from parbake.builders import coldstart

        coldstart.place_of(plan, options.rehearse_in)
    if plan.artefact.mounted:
        need_root("baking")


def rehearses(plan: Plan, options: BakeOptions) -> bool:
    """Whether a bake rehearses what it builds. Pure."""
    usual = plan.artefact.kind == "volume" and options.verify
    return not options.trace and (usual if options.rehearse is None else options.rehearse)


def rehearsal_decides(bake: Bake) -> bool:
    """Whether what fails in a rehearsal fails the bake: unless a node of the user's own is there to tell. Pure."""
    return bake.options.verify and rehearses(bake.plan, bake.options) and bake.run.bakefile.verify.base is None


def failed_in_rehearsal(bake: Bake, trace: Trace | TraceSummary | None) -> bool:
    """Whether an image failed in a rehearsal that decides. Pure."""
    return trace is not None and bool(trace.failed) and rehearsal_decides(bake)


def rehearse(bake: Bake, disk: Disk, work: Path) -> Disk:
    """Rehearse a disk and lay it out before it is digested, or take the trace that the user has."""
    plan, options = bake.plan, bake.options
    if options.trace:
        return replace(disk, trace=trace_from(options.trace, disk.path, plan))
    if rehearses(plan, options):
        from parbake.builders import coldstart

        where, decides = _place(bake), rehearsal_decides(bake)
        return coldstart.prepare(
            disk, plan, work, events=bake.events, where=where, layout=options.layout, proven=decides
        )
    return disk


def with_trace(bake: Bake, earlier: BakeResult) -> BakeResult:
    """Give an artefact of an earlier run the start-up trace that was asked for."""
    from parbake.workflows.trace import add_trace, rehearse  # loads only where something is left to do, here and below

    run, options = bake.run, bake.options
    if options.trace:
        record = add_trace(earlier.artefact, earlier.record, options.trace, run.events, run.signer)
        return replace(earlier, record=record)
    if options.rehearse and earlier.record.trace is None:
        record = rehearse(earlier.artefact, earlier.record, run.events, run.signer, where=_place(bake))
        return replace(earlier, record=record)
    return earlier


def _place(bake: Bake) -> RehearsalPlace:
    """Return where a run rehearses: a volume is attached to the node on which it will be verified."""
    return RehearsalPlace(bake.options.rehearse_in, bake.run.bakefile.verify.base)


def trace_from(file: Path, artefact: Path | None, plan: Plan) -> Trace:
    """Read a trace that the user has; raises InputError where it is of another artefact."""
    from parbake.workflows.trace import recorded_elsewhere

    return recorded_elsewhere(file, artefact, plan)


def trace_beside(earlier: BakeResult | None) -> Trace | None:
    """Return the start-up trace of an artefact that exists, where it has one."""
    if earlier is None or earlier.record.trace is None:
        return None
    from parbake.workflows.trace import trace_of

    with suppress(InputError, VerificationFailed):  # it was removed by hand, or is another's
        return trace_of(earlier.artefact, earlier.record)
    return None
