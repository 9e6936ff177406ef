"""What ``remedy: auto`` means for a rollout: chosen by the bake's trace and by what was measured, with both bills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from parbake.bakefile import Bakefile
from parbake.bakefile.targets import GitopsTarget, KarpenterTarget, RemedyName, Target
from parbake.core.errors import InputError
from parbake.records import Record
from parbake.rollouts import TargetState, userdata
from parbake.rollouts.nodeclass import NodeClass
from parbake.workflows.rollout.offers import hydrate_part, mount_part
from parbake.workflows.trace import situation

if TYPE_CHECKING:
    from parbake.aws.costs import Advice

_WORDS: dict[str, RemedyName] = {
    "nothing": "nothing", "hydrate-prefetch": "hydrate", "rate": "rate", "gp3": "gp3", "fsr": "fsr",
}  # fmt: skip
"""What targets call the remedies of ``parbake.aws.costs``. A boost is not chosen for anybody: EBS has not shown it."""


@dataclass(frozen=True, slots=True)
class RemedyChoice:
    """What was chosen for a target, and what it is instead of; ``bills`` are of a month, by remedy, in ``currency``."""

    remedy: RemedyName
    bills: Mapping[str, float]
    currency: str
    because: str
    before: str = ""

    def instead_of(self, held: TargetState, device: str) -> RemedyChoice:
        """Return the choice beside the remedy that a target has held."""
        return RemedyChoice(self.remedy, self.bills, self.currency, self.because, _held(held, device))

    def __str__(self) -> str:
        now = f"{self.remedy}, {self.bills[self.remedy]:,.2f} {self.currency} a month with the nodes that wait"
        if self.before in self.bills and self.before != self.remedy:
            now += f", instead of {self.before} with {self.bills[self.before]:,.2f}"
        return f"{now}: {self.because}"


def choose_remedy(
    target: Target, located: Sequence[tuple[Path, Record]], bakefile: Bakefile
) -> tuple[Target, RemedyChoice | None]:
    """Return a target with the remedy that ``auto`` means for it; as it is where it says another.

    Raises InputError where no start was traced, and for files of figures that say nothing known.
    """
    options = target.options
    if not isinstance(options, KarpenterTarget | GitopsTarget) or options.remedy != "auto":
        return target, None
    from parbake.aws import costs

    record = next((record for _, record in located if record.plan.artefact.kind == "volume"), located[0][1])
    starts, fast = options.starts, bakefile.aws.fast_snapshot_restore
    at = situation(
        record,
        volume=0,
        hot=None,
        launches=starts.launches,
        burst=starts.burst,
        boot=starts.boot,
        lifetime=starts.lifetime / 3600,
        zones=len(fast.zones) if fast else 3,
    )
    measured, prices = costs.read_measured(starts.measured), costs.load_prices(node_hour=starts.node_hour)
    at, speeds, pulls = measured.applied(at, costs.SPEEDS["mild"], costs.known_pulls())
    advice = costs.advise(at, speeds, prices, pulls, only=_possible(target, located, bakefile))
    bills: dict[str, float] = {
        _WORDS[each.name]: each.total for each in costs.advise(at, speeds, prices, pulls, only=_WORDS).remedies
    }
    chosen = _WORDS[advice.best.name]
    choice = RemedyChoice(chosen, bills, prices.currency, _because(advice, measured.basis))
    new = options.model_copy(update={"remedy": chosen})
    return target.model_copy(update={target.kind: new}), choice


def _because(advice: Advice, basis: str) -> str:
    return f"a start takes {advice.best.seconds:.1f} s more than from memory; chosen from {basis}"


def _possible(target: Target, located: Sequence[tuple[Path, Record]], bakefile: Bakefile) -> list[str]:
    """Return what can be done for a target: with what is rolled out, and with what the target can hold."""
    options = target.options
    found, volumes = ["nothing"], [each for _, each in located if each.plan.artefact.kind == "volume"]
    takes_parts = not any(place.family for each in volumes for place in each.published.values())
    with suppress(InputError):  # machine images of several kinds: nothing that user data could load
        parts = {"hydrate": hydrate_part(located), "mount": mount_part([each for _, each in located], target)}
        fits = not userdata.too_large(userdata.with_parts("", parts), userdata.ROOM)
        found += ["hydrate-prefetch"] * bool(takes_parts and parts["hydrate"] and fits)
    values = isinstance(options, GitopsTarget) and bool(options.image_at or options.snapshot_at)
    if volumes and not values:
        found += ["rate", "gp3"]
    fast = bakefile.aws.fast_snapshot_restore
    return [*found, "fsr"] if volumes and fast and fast.at == "rollout" else found


def _held(state: TargetState, device: str) -> str:
    """Return the remedy that a node class shows; of fast snapshot restore it shows nothing."""
    disks = NodeClass({"spec": state.spec}).disks
    found = next((disk.remedy for disk in disks if disk.device == device), "nothing")
    if state.spec.get("hydrate"):
        return "boost" if found == "gp3" else "hydrate"
    return found
