"""Fast snapshot restore for a rollout: it counts before anything is written, and each target waits for credits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from parbake.bakefile import Bakefile
from parbake.core.events import Events
from parbake.core.model import Snapshot
from parbake.records import Record

type Pairs = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Warming:
    """What a rollout of records does about cold snapshots, as the Bakefile says; ``on`` is where it was enabled."""

    bakefile: Bakefile
    records: Sequence[Record]
    events: Events
    on: dict[str, Pairs] = field(default_factory=dict)

    def begin(self, regions: Iterable[str], *, dry_run: bool) -> None:
        """Enable it where the Bakefile wants it for rollouts, and wait until it counts."""
        wanted = self.bakefile.aws.fast_snapshot_restore
        if not wanted or wanted.at != "rollout":
            return
        from parbake.aws.ebs import fast_restore

        for region in regions:
            snapshots = self._snapshots(region)
            if not snapshots or not fast_restore.zones_in(wanted, region):
                continue
            if dry_run:
                zones = ", ".join(fast_restore.zones_in(wanted, region))
                self.events.note(f"a rollout enables fast snapshot restore in {zones} and waits for it first")
                continue
            title = f"Fast snapshot restore, about {fast_restore.minutes(snapshots)} minutes"
            with self.events.stage(f"fast-{region}", title):
                self.on[region] = fast_restore.enable(wanted, region, snapshots, self.events, again=True)
                fast_restore.wait(self.on[region], region, snapshots, self.events)

    def pace(self, region: str) -> None:
        """Wait until there are as many credits in a region as the Bakefile wants before nodes are replaced."""
        wanted = self.bakefile.aws.fast_snapshot_restore
        if wanted and self.on.get(region):
            from parbake.aws.ebs import restore_credits

            with self.events.stage(f"credits-{region}", "Wait for credits of fast snapshot restore"):
                restore_credits.wait(self.on[region], region, self._snapshots(region), wanted.credits, self.events)

    def _snapshots(self, region: str) -> list[Snapshot]:
        return [each for record in self.records for each in record.published[region].snapshots]
