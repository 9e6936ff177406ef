"""What a bake starts from: an earlier volume, with the layers that need not be fetched again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from parbake import records
from parbake.builders import ParentVolume, earlier
from parbake.core.blocks import BlockList
from parbake.core.errors import DiskFull, EnvironmentProblem, InputError, VerificationFailed
from parbake.core.model import Plan
from parbake.core.workspace import cache_folder
from parbake.machine.disk import Memory
from parbake.records import Record, genuine


def parent_of(
    plan: Plan, output: Path, cache: Path, *, verify: bool, rehearse: bool, trust: Sequence[Path] = ()
) -> ParentVolume | None:
    """Find an earlier artefact that holds most of what a plan needs and whose record fits it.

    Where ``trust`` names keys, one of them has signed it.

    A bake that will be proven (``verify``) starts only from what was proven. The builder compares each of its bytes
    with the list of its blocks, before it uses any; a bake that neither proves nor lays out (``rehearse``) what it
    makes may do without where nobody has written to the file since ``remember``.
    """
    known = records.find(output)
    if (found := _newest_fitting(plan, output, known, verify=verify, trust=trust)) is None:
        return None
    record, blocks = found
    artefact = output / record.artefact
    if not artefact.is_file() or artefact.stat().st_size != record.size:
        return None
    memory = None if verify or rehearse else Memory(artefact, blocks.digest(), cache)
    saves = seconds_saved(plan, record, [each for _, each in known])
    return ParentVolume(record.artefact, artefact, blocks, memory, saves)


def shipped_parent(
    plan: Plan, output: Path, work: Path, *, verify: bool, rehearse: bool, trust: Sequence[Path] = ()
) -> ParentVolume | None:
    """Find an earlier volume that lies in a cloud, and whose disk is kept here; move that into a work folder.

    As ``parent_of``, but for the disk: it is this bake's own, and will not be there for another.
    """
    if (found := _newest_fitting(plan, output, records.find(output), verify=verify, trust=trust)) is None:
        return None
    (record, blocks), cache, path = found, cache_folder(), work / "parent.raw"
    if not earlier.take(path, plan, blocks.digest(), cache) or path.stat().st_size != record.size:
        return None
    memory = None if verify or rehearse else Memory(path, blocks.digest(), cache)
    return ParentVolume(record.artefact, path, blocks, memory, spent=True)


def _newest_fitting(
    plan: Plan, output: Path, known: Sequence[tuple[Path, Record]], *, verify: bool, trust: Sequence[Path]
) -> tuple[Record, BlockList] | None:
    from parbake.machine.vm import boots  # loads only where something is baked

    proven = verify and boots(plan.platform)
    fitting = [record for path, record in known if _fits(path, record, proven=proven)]
    if trust:
        fitting = [record for record in fitting if _is_signed(output, record, trust)]
    if (found := ancestor(plan, fitting)) is None:
        return None
    blocks = records.blocks_of(output / found.artefact, found)
    return (found, blocks) if blocks else None


def seconds_saved(plan: Plan, parent: Record, found: Sequence[Record]) -> float | None:
    """Return how long it would take to write what a plan and its parent have in common, None where nobody knows. Pure.

    As fast as the newest of the records ``found`` (oldest first) with the plan's name that started from nothing.
    """
    whole = [
        record for record in found
        if record.plan.name == plan.name and not record.parent and record.timings.get("fill")
    ]  # fmt: skip
    if not whole:
        return None
    last, has = whole[-1], _layers(parent.plan)
    seconds = last.timings["fill"] + last.timings.get("format", 0.0)
    shared = sum(size for chain, size in _layers(plan).items() if chain in has)
    return shared * seconds / max(1, sum(_layers(last.plan).values()))


def _layers(plan: Plan) -> dict[str, int]:
    """Return the compressed bytes of a plan's layers by chain ID."""
    return {layer.chain_id: layer.size for image in plan.all_images for layer in image.layers}


def _is_signed(output: Path, record: Record, trust: Sequence[Path]) -> bool:
    try:
        return genuine.need(output / record.artefact, trust) == record
    except (VerificationFailed, InputError):
        return False


def _fits(path: Path, record: Record, *, proven: bool) -> bool:
    """Whether a record says the same of its artefact in all its words, and nothing bad."""
    plan, verdict = record.plan, record.verdict
    return (
        path.name == record.file_name
        and (record.artefact, record.key) == (plan.artefact_name, plan.key)
        and (verdict.passed if verdict else not proven)
    )


def ancestor(plan: Plan, found: Sequence[Record]) -> Record | None:
    """Return which artefact a bake of ``plan`` may start from, of those found (oldest first): what shares most with it.

    Only ext4 volumes of the same name and platform, on which nothing else was kept, with at least half of what would
    travel; of those that share as much, the newest. Its size becomes the new one's: it may be somewhat smaller.
    """
    if plan.artefact.mounted or plan.keep_layers:
        return None
    wanted = _layers(plan)
    best: tuple[int, Record] | None = None
    for record in found:
        old = record.plan
        least = plan.size if plan.size_is_fixed else plan.size * 4 // 5
        alike = (old.name, old.platform, old.artefact, old.keep_layers) == (
            plan.name, plan.platform, plan.artefact, plan.keep_layers,
        )  # fmt: skip
        fits = old.size == least if plan.size_is_fixed else least <= old.size <= plan.size * 2
        if not alike or not fits or record.blocks is None:
            continue
        has = _layers(old)
        shared = sum(size for chain, size in wanted.items() if chain in has)
        if shared * 2 >= sum(wanted.values()) and (best is None or shared >= best[0]):
            best = shared, record
    return best and best[1]


def remember(artefact: Path, record: Record, cache: Path) -> None:
    """Note that an artefact has the bytes of its record as it is now: nobody else has written to it yet."""
    if record.blocks:
        with suppress(OSError, DiskFull, EnvironmentProblem):  # it spares time, nothing more
            Memory(artefact, record.blocks.digest, cache).remember()
