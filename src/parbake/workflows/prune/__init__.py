"""The story of retention: what is published, what refers to it, what is decided, and only then what is done.

``prune_published = regions -> stock -> everything that refers to it -> decide -> act``

Every place that may refer to an artefact is read before anything is decided; one that cannot be read ends the run,
since an artefact would look unused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from parbake import records
from parbake.aws import acting_as
from parbake.aws.costs.prices import load_prices
from parbake.aws.ebs import fast_restore
from parbake.bakefile import Bakefile, RetentionSection
from parbake.bakefile.targets import KarpenterTarget, OceanTarget
from parbake.core.errors import InputError, TargetMissing
from parbake.core.events import Events
from parbake.core.model import GIB
from parbake.records.store import Lease, Shared, held, leases_of, needed, needs_of
from parbake.rollouts.choose import open_target
from parbake.workflows.identity import opened
from parbake.workflows.prune.decide import Decision, Item, RetentionRules, decide, freed, items_here, sparing
from parbake.workflows.prune.elsewhere import confirm
from parbake.workflows.prune.inventory import PublishedInventory
from parbake.workflows.prune.references import Use, by_node_class, by_status, ids_in, in_region, together


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was decided about published artefacts, in which regions, and what a GiB of snapshots costs a month.

    ``fast_ended`` are snapshots whose fast restore was turned off, as its time was over.
    """

    regions: tuple[str, ...]
    decisions: tuple[Decision, ...]
    gib_month: float
    currency: str
    fast_ended: tuple[str, ...] = ()

    @property
    def freed(self) -> int:
        """The bytes of what is removed: at most so much, since snapshots share blocks and hold no empty ones."""
        return freed(self.decisions)

    @property
    def saved(self) -> float:
        """What that costs a month, at most."""
        return self.freed / GIB * self.gib_month


def rules(
    retention: RetentionSection, keep: int | None = None, younger: float | None = None, grace: float | None = None
) -> RetentionRules:
    """Return a Bakefile's rules, or others where they are given; in days."""
    return RetentionRules(
        retention.keep if keep is None else keep,
        timedelta(days=retention.younger if younger is None else younger),
        timedelta(days=retention.grace if grace is None else grace),
    )


def prune_published(
    bakefile_path: Path,
    rules: RetentionRules,
    events: Events,
    *,
    dry_run: bool,
    overrides: Mapping[str, str] | None = None,
) -> Pruned:
    """Retire and remove published artefacts that nothing refers to, in every region; nothing with ``dry_run``.

    What a machine works on that shares the store is kept, and what rollouts of fleets need. ``overrides`` replace keys
    of the Bakefile. Raises what reading a place raises (AwsError, RolloutError, …): then nothing was removed.
    """
    with opened(bakefile_path, overrides) as bakefile:
        return _prune_published(bakefile, rules, events, dry_run=dry_run)


def _prune_published(bakefile: Bakefile, rules: RetentionRules, events: Events, *, dry_run: bool) -> Pruned:
    regions = regions_of(bakefile)
    inventories = [PublishedInventory(region) for region in regions]
    with (
        events.stage("inventory", f"Find what is published in {', '.join(regions)}"),
        ThreadPoolExecutor(max_workers=4) as pool,
    ):
        found = [item for items in pool.map(PublishedInventory.items, inventories) for item in items]
    items = sparing(found, busy_in(leases_of(bakefile)), needs_of(bakefile))
    with events.stage("used", "Find what refers to it"):
        used = together(_used(bakefile, regions))
    now, clients = datetime.now(UTC), {inventory.region: inventory.ec2 for inventory in inventories}
    with events.stage("elsewhere", "Ask EC2 who else uses what is to be removed"):
        decisions = confirm(decide(items, rules, now, used), clients.__getitem__, now, dry_run=dry_run)
    ended: list[str] = []
    if not dry_run:
        _act({inventory.region: inventory for inventory in inventories}, decisions, events)
        ended = [each for region in regions for each in fast_restore.end(region, bakefile.name)]
    prices = load_prices()
    return Pruned(regions, decisions, prices.snapshot_gib_month.value, prices.currency, tuple(ended))


def regions_of(bakefile: Bakefile) -> tuple[str, ...]:
    """Return the regions where artefacts may be: those of records, of the Bakefile, and of its targets."""
    known = {region for _, record in records.find(bakefile.output) for region in record.published}
    known |= {target.region for target in bakefile.rollout if target.region}
    known |= {region for region in (bakefile.aws.region, *bakefile.aws.copy_to) if region}
    if not known:
        raise InputError("no record is published anywhere, and no region is named", hint="write aws: {region: …}")
    return tuple(sorted(known))


def publishes(bakefile: Bakefile) -> bool:
    """Whether any artefact of a Bakefile is in EC2."""
    return any(record.published for _, record in records.find(bakefile.output))


def _used(bakefile: Bakefile, regions: Sequence[str]) -> Iterator[Use]:
    for region in regions:
        yield from in_region(region)
    yield from _in_other_roles(bakefile, regions)
    for target in bakefile.rollout:
        with suppress(TargetMissing):
            yield from by_status(open_target(target, target.region or bakefile.aws.region or "").status())
    options = [target.options for target in bakefile.rollout]
    for context in sorted({each.context for each in options if isinstance(each, KarpenterTarget)}):
        from parbake.rollouts.karpenter import every_node_class

        for node_class in every_node_class(context):
            yield from by_node_class(node_class, regions)
    if any(isinstance(each, OceanTarget) for each in options):
        from parbake.rollouts.ocean import every_specification

        for name, specification in every_specification():
            yield from ((identity, name) for identity in ids_in(specification))


def _in_other_roles(bakefile: Bakefile, regions: Sequence[str]) -> Iterator[Use]:
    """Yield what refers to images and snapshots where targets have roles of their own: in their accounts."""
    places = {
        (target.role, target.external_id, region)
        for target in bakefile.rollout
        if target.role and target.role != bakefile.aws.role
        for region in ((target.region,) if target.region else regions)
    }
    for role, external_id, region in sorted(places, key=str):
        with acting_as(role, external_id):
            found = list(in_region(region))  # inside: what is yielded goes on outside of the role
        yield from ((identity, f"{user} of {role.split(':')[4]}") for identity, user in found)


def _act(inventories: dict[str, PublishedInventory], decisions: Iterable[Decision], events: Events) -> None:
    acts = {
        "retire": PublishedInventory.retire,
        "restore": PublishedInventory.restore,
        "remove": PublishedInventory.remove,
    }
    todo = [each for each in decisions if each.action in acts]
    if not todo:
        return
    with events.stage("act", "Retire and remove"), events.task("artefacts", len(todo), unit="items") as task:
        for each in todo:
            item: Item = each.item
            acts[each.action](inventories[item.region], item)
            task.advance(1)


def busy_in(leases: Mapping[str, Lease]) -> dict[str, str]:
    """Return who works on each content key, in words."""
    return {key: f"{lease.host} is baking it" for key, lease in leases.items()}


def prune(
    output: Path, rules: RetentionRules, *, dry_run: bool = False, shared: Shared | None = None
) -> tuple[Decision, ...]:
    """Decide which artefacts here, and in the store, go; remove them unless ``dry_run``, and return the decisions.

    One that another parbake is working on stays, and one that a rollout of a fleet needs.
    """
    there = {record.artefact: record for record in shared.records()} if shared else {}
    there |= {record.artefact: record for _, record in records.find(output)}
    items = items_here(there.values())
    if shared:
        items = sparing(items, busy_in(held(shared.store)), needed(shared.store))
    decisions = decide(items, rules, datetime.now(UTC))
    if dry_run:
        return decisions
    busy = records.remove(output, [there[each.item.id] for each in decisions if each.action == "remove"])
    if shared:
        shared.remove(each.item.id for each in decisions if each.action == "remove" and each.item.id not in busy)
    kept = "another parbake is working on it"
    return tuple(Decision(each.item, "keep", kept) if each.item.id in busy else each for each in decisions)
