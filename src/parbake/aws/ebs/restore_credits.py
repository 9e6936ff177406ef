"""Wait until fast snapshot restore has credits: they start at zero, and a volume that is made without one is slow.

Sources: Amazon EBS user guide, "Monitor fast snapshot restore" (the metric FastSnapshotRestoreCreditsBalance, each
minute, by snapshot and zone); CloudWatch API reference, GetMetricData (500 queries at most).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from parbake import aws
from parbake.aws.costs.restore_credits import bucket, refill
from parbake.aws.ebs.fast_restore import Pairs
from parbake.core.errors import AwsNoAccess, DeadlineExceeded
from parbake.core.events import Events
from parbake.core.model import Snapshot

_METRIC = "FastSnapshotRestoreCreditsBalance"
_PERIOD = 60
_RECENT = timedelta(minutes=15)
_LATE = 600.0  # seconds until CloudWatch shows a metric that is new
_MOST_QUERIES = 500
type Balances = Mapping[tuple[str, str], float]


def balances(pairs: Pairs, region: str) -> Balances:
    """Return the credits by snapshot and zone, of those that CloudWatch shows. Raises AwsNoAccess, AwsError."""
    ordered = sorted(pairs)[:_MOST_QUERIES]
    now = datetime.now(UTC)
    answer = aws.client("cloudwatch", region).get_metric_data(
        MetricDataQueries=[_query(number, *pair) for number, pair in enumerate(ordered)],
        StartTime=now - _RECENT,
        EndTime=now,
        ScanBy="TimestampDescending",
    )
    newest = {int(each["Id"][1:]): each["Values"][0] for each in answer["MetricDataResults"] if each["Values"]}
    return {ordered[number]: float(value) for number, value in newest.items()}


def _query(number: int, snapshot: str, zone: str) -> dict[str, Any]:
    names = {"SnapshotId": snapshot, "AvailabilityZone": zone}
    metric = {
        "Namespace": "AWS/EBS",
        "MetricName": _METRIC,
        "Dimensions": [{"Name": name, "Value": value} for name, value in names.items()],
    }
    return {"Id": f"m{number}", "MetricStat": {"Metric": metric, "Period": _PERIOD, "Stat": "Average"}}


def wait(pairs: Pairs, region: str, snapshots: Sequence[Snapshot], wanted: int, events: Events) -> None:
    """Wait until each snapshot has so many credits in each zone (at most a bucket), and tell how many there are.

    Where CloudWatch shows nothing, it ends when they must be there; where it may not be asked, at once, with a warning.
    Raises AwsError.
    """
    sizes = {each.id: each.size for each in snapshots}
    need = {pair: min(wanted, bucket(sizes.get(pair[0], 0))) for pair in pairs}
    if not need:
        return
    slowest = min(refill(sizes.get(name, 0)) for name, _ in pairs)
    told: list[str] = []

    def look() -> aws.Observation:
        found = balances(pairs, region)
        state = ", ".join(
            f"{found.get(pair, 0):.1f} of {bucket(sizes.get(pair[0], 0))} in {pair[1]}" for pair in sorted(pairs)
        )
        if not told:
            told.append(state)
            events.note(f"credits of fast snapshot restore: {state}; {slowest:.1f} more an hour")
        return aws.Observation(all(found.get(pair, 0) >= wish for pair, wish in need.items()), state)

    try:
        aws.wait(
            f"credits of fast snapshot restore in {region}",
            look,
            seconds=_LATE + max(need.values()) / slowest * 3600,
            events=events,
            longest_pause=_PERIOD,
        )
    except AwsNoAccess:
        events.warn(
            "this role may not read the credits of fast snapshot restore (cloudwatch:GetMetricData, see `parbake "
            "iam`): they start at zero, so that the first nodes may load their volumes lazily"
        )
    except DeadlineExceeded as error:
        events.warn(f"{error.message}: the rollout goes on, and nodes may load their volumes lazily")
