"""Keep places tidy: what dead runs left goes, and artefacts that are older than what is to be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parbake import records
from parbake.bakefile import Bakefile
from parbake.core.emulation import sweep
from parbake.core.events import Events
from parbake.core.workspace import WORK, cache_folder, parts_of, remove_leftovers, remove_tree
from parbake.images.build import build
from parbake.records.store import leases_of
from parbake.workflows.identity import opened


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was removed, by region; and the content keys whose things were spared, with who works on them."""

    removed: Mapping[str, tuple[str, ...]]
    spared: Mapping[str, str]


def clean_aws(bakefile_path: Path, events: Events, overrides: Mapping[str, str] | None = None) -> Cleaned:
    """Remove what runs of this Bakefile left in AWS, and what is past its time of any other, by region.

    What a machine works on that shares the Bakefile's store is spared; without a store, a run that is under way on
    another machine loses it. Fast snapshot restores whose time is over are turned off, and volumes that a dead node has
    left raised are taken back. ``overrides`` replace keys of the Bakefile. Raises AwsError.
    """
    from parbake import aws  # loads only where AWS is asked
    from parbake.aws.leftovers import LeftoverFilter, remove

    spared: set[str] = set()
    with opened(bakefile_path, overrides) as bakefile:
        busy = leases_of(bakefile)
        home = aws.client("ec2", bakefile.aws.region or "").region
        regions = dict.fromkeys((home, *bakefile.aws.copy_to))
        wanted = LeftoverFilter(name=bakefile.name, packer=bakefile.traits.runs_packer, busy=busy, spare=spared.add)
        removed = {region: remove(wanted, region, events) for region in regions}
        ended = end_fast_restores(bakefile, events, tuple(regions))
        off = {region: tuple(f"fast-restore:{each}" for each in found) for region, found in ended.items()}
        back = take_back_raised(bakefile, events, tuple(regions))
        gone = {
            region: (*removed.get(region, ()), *off.get(region, ()), *(f"boost:{each}" for each in found))
            for region, found in back.items()
        }
        return Cleaned(gone, {key: f"{busy[key].host} bakes {busy[key].what}" for key in sorted(spared)})


def end_fast_restores(bakefile: Bakefile, events: Events, regions: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Turn fast snapshot restore off where its time is over; return the snapshots, by region. Raises AwsError."""
    from parbake.aws.ebs import fast_restore

    ended = {region: fast_restore.end(region, bakefile.name) for region in regions}
    for region, snapshots in ended.items():
        for snapshot in snapshots:
            events.note(f"{region}: fast snapshot restore of {snapshot} is off: its time is up")
    return ended


def take_back_raised(bakefile: Bakefile, events: Events, regions: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Take back volumes that are raised after their nodes' start, there and where targets boost. Raises AwsError."""
    from parbake.aws.ebs import raised

    targets = [each.region for each in bakefile.rollout if each.remedy == "boost" and each.region]
    return {region: raised.take_back(region, events) for region in dict.fromkeys((*regions, *targets))}


def watch_what_ends(bakefile_path: Path, events: Events) -> None:
    """Do both at each turn of a watch, where the Bakefile has such times or such targets. Raises AwsError."""
    with opened(bakefile_path) as bakefile:
        if any(each.remedy == "boost" for each in bakefile.rollout):
            take_back_raised(bakefile, events, (bakefile.aws.region or "",))
        wanted = bakefile.aws.fast_snapshot_restore
        if wanted and wanted.for_:
            end_fast_restores(bakefile, events, sorted({zone[:-1] for zone in wanted.zones}))


def clean(output: Path, *, caches: bool = False) -> tuple[Path, ...]:
    """Remove what dead runs left in the output and cache folders, also disks that wait for their verification.

    With ``caches`` all goes that can be made again.
    """
    cache = cache_folder()
    sweep()
    removed = [*records.sweep(output, kept=True)]
    for folder in parts_of(cache):
        removed += remove_leftovers(folder, kept=True)
    if caches and cache.is_dir():
        if (cache / "images").is_dir():
            build.clear(cache)
        for entry in sorted(cache.iterdir()):
            if not in_work(entry):
                remove_tree(entry)
                removed.append(entry)
    return tuple(removed)


def in_work(entry: Path) -> bool:
    """Whether a living run has a work folder in this part of the cache."""
    return any(entry.glob(f"{WORK}/*.*.*")) or any(entry.glob(f"*/{WORK}/*.*.*")) or any(entry.glob("*.*.*"))
