"""Fast snapshot restore: volumes of a snapshot are as fast at their first read as later, in zones, for a price an hour.

What is enabled for a while carries the time of its end as a tag, written before anything is enabled: whoever cleans up
next turns it off, also when the run that enabled it is dead. A time that is over stays on the snapshot, so that a bake
which finds it does not begin anew. Sources: EC2 API reference, EnableFastSnapshotRestores, DescribeFastSnapshotRestores
(its states), DisableFastSnapshotRestores; EBS user guide, "Fast snapshot restore" (60 minutes a TiB until it counts).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import batched

from parbake import aws
from parbake.aws.costs.prices import load_prices
from parbake.aws.tags import as_dict, as_list, mine
from parbake.bakefile import FastRestoreSection
from parbake.core.errors import AwsError
from parbake.core.events import Events
from parbake.core.model import TIB, Snapshot
from parbake.core.timestamps import read_timestamp, timestamp

UNTIL_TAG = "parbake:fast-until"
"""The tag of a snapshot that says when its fast restore is to be turned off."""
_ON = ("enabling", "optimizing", "enabled")
_SECONDS_PER_TIB = 3600.0
_MOST_VALUES = 200  # of a filter
type Pairs = frozenset[tuple[str, str]]


def zones_in(wanted: FastRestoreSection | None, region: str) -> tuple[str, ...]:
    """Return the zones of a region among those that the Bakefile names."""
    return tuple(zone for zone in wanted.zones if zone[:-1] == region) if wanted else ()


def minutes(snapshots: Iterable[Snapshot]) -> int:
    """Return about how many minutes it takes until it counts."""
    return max((round(each.size / TIB * _SECONDS_PER_TIB / 60) for each in snapshots), default=0) or 1


def enable(
    wanted: FastRestoreSection | None,
    region: str,
    snapshots: Sequence[Snapshot],
    events: Events,
    *,
    again: bool = False,
) -> Pairs:
    """Make sure that it is enabled in the zones of a region; return the snapshots and zones where AWS has accepted it.

    What AWS refuses is a warning. A time that was set before counts, and where it is over nothing is enabled;
    ``again`` sets a new one. Raises AwsError.
    """
    zones, names = zones_in(wanted, region), [each.id for each in snapshots]
    if not wanted or not zones or not names:
        return frozenset()
    ec2, until = aws.client("ec2", region), ""
    if wanted.for_:
        until = timestamp(datetime.now(UTC) + timedelta(seconds=wanted.for_))
        if not again:
            set_before = [
                time
                for each in ec2.describe_snapshots(SnapshotIds=names)["Snapshots"]
                if (time := as_dict(each).get(UNTIL_TAG))
            ]
            until = max(set_before, default=until)
            if _is_over(until):
                return frozenset()
        ec2.create_tags(Resources=names, Tags=as_list({UNTIL_TAG: until}))
    answer = ec2.enable_fast_snapshot_restores(AvailabilityZones=list(zones), SourceSnapshotIds=names)
    for refused in answer.get("Unsuccessful", ()):
        for error in refused.get("FastSnapshotRestoreStateErrors") or [{}]:
            why = error.get("Error", {}).get("Message", "AWS refused it")
            events.warn(f"fast snapshot restore of {refused.get('SnapshotId')}: {why}")
    done = frozenset((each["SnapshotId"], each["AvailabilityZone"]) for each in answer.get("Successful", ()))
    if done:
        prices = load_prices()
        cost = f"{len(done) * prices.fsr_hour.value:.2f} {prices.currency} an hour until {until or 'it is disabled'}"
        events.note(f"fast snapshot restore of {', '.join(names)} in {', '.join(zones)}: {cost}")
    return done


def wait(pairs: Pairs, region: str, snapshots: Sequence[Snapshot], events: Events) -> None:
    """Wait until it counts where it was enabled. Raises AwsError (turned off meanwhile), DeadlineExceeded."""
    if not pairs:
        return
    ec2, size = aws.client("ec2", region), max(each.size for each in snapshots)

    def look() -> aws.Observation:
        seen = _states(ec2, [name for name, _ in pairs], ())
        states = [seen.get(pair, "not known yet") for pair in pairs]
        failed = "it was disabled in the meantime" if {"disabling", "disabled"} & set(states) else ""
        return aws.Observation(
            all(state == "enabled" for state in states), ", ".join(sorted(set(states))), failed=failed
        )

    aws.wait(
        f"fast snapshot restore in {region}",
        look,
        seconds=1800 + 2 * size / TIB * _SECONDS_PER_TIB,
        events=events,
        hint="run the same command again: AWS continues in the meantime",
    )


def end(region: str, name: str) -> tuple[str, ...]:
    """Turn off what is past its time, of the snapshots of a Bakefile's name; return their ids. Raises AwsError."""
    ec2 = aws.client("ec2", region)
    filters = [*mine(name=name), {"Name": "tag-key", "Values": [UNTIL_TAG]}]
    found = ec2.pages("describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=filters)
    return disable(ec2, [str(each["SnapshotId"]) for each in found if _is_over(as_dict(each).get(UNTIL_TAG, ""))])


def disable(ec2: aws.Client, snapshots: Sequence[str]) -> tuple[str, ...]:
    """Make sure that it is off, in every zone; return the snapshots where it was on. Raises AwsError."""
    zones: dict[str, list[str]] = {}
    for snapshot, zone in sorted(_states(ec2, snapshots, _ON)):
        zones.setdefault(snapshot, []).append(zone)
    for snapshot, names in zones.items():
        answer = ec2.disable_fast_snapshot_restores(AvailabilityZones=names, SourceSnapshotIds=[snapshot])
        if answer.get("Unsuccessful"):
            raise AwsError(
                f"fast snapshot restore of {snapshot} stays on: {answer['Unsuccessful']}",
                hint="turn it off in the console (it costs by the hour), and run the same command again",
            )
    return tuple(zones)


def _states(ec2: aws.Client, snapshots: Sequence[str], states: Sequence[str]) -> dict[tuple[str, str], str]:
    """Return the state by snapshot and zone, of those in some states (none: in any)."""
    found = {}
    for names in batched(snapshots, _MOST_VALUES):
        filters = [{"Name": "snapshot-id", "Values": list(names)}]
        filters += [{"Name": "state", "Values": list(states)}] if states else []
        for each in ec2.pages("describe_fast_snapshot_restores", "FastSnapshotRestores", Filters=filters):
            found[str(each["SnapshotId"]), str(each["AvailabilityZone"])] = str(each["State"])
    return found


def _is_over(until: str) -> bool:
    end = read_timestamp(until)
    return end is not None and end <= datetime.now(UTC)
