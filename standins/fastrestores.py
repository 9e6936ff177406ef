"""Fast snapshot restore as a state machine, for the stand-ins of EC2: each look moves it one step on.

Credits start at zero and come with each look at an enabled pair (EBS user guide, "Volume creation credits"); they are
told by CloudWatch. Not modelled: the time that it takes, quotas, what it does for volumes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

_NEXT = {"enabling": "optimizing", "optimizing": "enabled", "disabling": "disabled"}


@dataclass
class FastRestores:
    """States by snapshot and zone; AWS refuses zones in ``full``."""

    states: dict[tuple[str, str], str] = field(default_factory=dict)
    full: set[str] = field(default_factory=set)
    credits: dict[tuple[str, str], float] = field(default_factory=dict)
    gain: float = 0.75

    def enable(self, snapshots: Iterable[str], zones: Iterable[str]) -> dict[str, Any]:
        done, refused = [], []
        for snapshot in snapshots:
            for zone in zones:
                pair = {"SnapshotId": snapshot, "AvailabilityZone": zone}
                if zone in self.full:
                    error = {"Code": "FastSnapshotRestoreLimitExceeded", "Message": f"the quota of {zone} is reached"}
                    errors = [{"AvailabilityZone": zone, "Error": error}]
                    refused.append({"SnapshotId": snapshot, "FastSnapshotRestoreStateErrors": errors})
                    continue
                if self.states.get((snapshot, zone)) not in {"optimizing", "enabled"}:
                    self.states[snapshot, zone] = "enabling"
                done.append({**pair, "State": self.states[snapshot, zone]})
        return {"Successful": done, "Unsuccessful": refused}

    def metric_data(self, queries: Iterable[Any]) -> dict[str, Any]:
        """Answer GetMetricData: of pairs that are enabled, and of the one metric that is asked for."""
        found = []
        for query in queries:
            metric = query["MetricStat"]["Metric"]
            assert (metric["Namespace"], metric["MetricName"]) == ("AWS/EBS", "FastSnapshotRestoreCreditsBalance")
            names = {each["Name"]: each["Value"] for each in metric["Dimensions"]}
            pair = (names["SnapshotId"], names["AvailabilityZone"])
            known = self.states.get(pair) == "enabled"
            found.append({"Id": query["Id"], "Values": [self.credits.get(pair, 0.0)] if known else []})
            self.credits[pair] = self.credits.get(pair, 0.0) + self.gain * known
        return {"MetricDataResults": found}

    def look(self, snapshots: Iterable[str], states: Iterable[str] = ()) -> list[dict[str, Any]]:
        """Describe them; with ``states``, those in these alone."""
        wanted, named, found = set(states), set(snapshots), []
        for (snapshot, zone), state in self.states.items():
            if snapshot in named and (not wanted or state in wanted):
                found.append({"SnapshotId": snapshot, "AvailabilityZone": zone, "State": state})
            self.states[snapshot, zone] = _NEXT.get(state, state)
        return found

    def disable(self, snapshots: Iterable[str], zones: Iterable[str]) -> dict[str, Any]:
        named, there = set(snapshots), set(zones)
        done = []
        for pair in [each for each in self.states if each[0] in named and each[1] in there]:
            self.states[pair] = "disabling"
            done.append({"SnapshotId": pair[0], "AvailabilityZone": pair[1], "State": "disabling"})
        return {"Successful": done, "Unsuccessful": []}

    def on(self, snapshot: str) -> set[str]:
        """Return the zones where one is on."""
        return {zone for (name, zone), state in self.states.items() if name == snapshot and "disabl" not in state}
