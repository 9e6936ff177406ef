"""Artefacts that nothing has booted: the canary of a rollout's first target proves them (``verify: canary``).

The record says so only then, so that whatever asks for a verified artefact waits for it: other targets, later waves of
a fleet, exports. A run that is killed before it could write that finds the canary open on the target, and looks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parbake import records
from parbake.bakefile import Bakefile
from parbake.bakefile.targets import Target
from parbake.core.errors import AwsNoAccess, InputError
from parbake.core.events import Events
from parbake.core.model import Verdict
from parbake.core.timestamps import timestamp
from parbake.records import Record, genuine
from parbake.records.store import session_store
from parbake.workflows.verify import write_verdict


@dataclass(frozen=True, slots=True)
class CanaryProof:
    """What a rollout hands out that its first target's canary is to prove: artefacts, each with its record."""

    bakefile: Bakefile
    unproven: tuple[tuple[Path, Record], ...]
    events: Events

    def passed(self, target: str, says: str) -> None:
        """Write into the records, here and in the store, and on what lies in EC2, that pods used the artefacts."""
        verdict = Verdict(passed=True, accelerator="canary", canary=f"{target}: {says}", verified_at=timestamp())
        signer, shared = genuine.open_signer(self.bakefile), session_store(self.bakefile, self.events)
        for artefact, record in self.unproven:
            self._tag(record, verdict.verified_at)
            with records.in_use(artefact.parent, record.artefact):
                proven = write_verdict(artefact, record, verdict, signer=signer)
                if shared:
                    shared.put(proven, again=True)
            self.events.note(f"{record.artefact} is proven by the canary of {target}")

    def _tag(self, record: Record, at: str) -> None:
        if not record.published:
            return
        from parbake import aws  # loads only where AWS is asked

        for region, there in record.published.items():
            ids = [each for each in (there.image, *(each.id for each in there.snapshots)) if each]
            try:
                aws.client("ec2", region).create_tags(Resources=ids, Tags=aws.as_list({aws.VERIFIED: at}))
            except AwsNoAccess as error:
                self.events.warn(
                    f"{record.artefact} in {region} gets no tag {aws.VERIFIED}, without which no other target takes an "
                    f"unsigned record: {error.message} (`parbake iam` prints what that needs)"
                )


def to_prove(
    bakefile: Bakefile, located: Sequence[tuple[Path, Record]], targets: Sequence[Target], *, follow: bool
) -> tuple[tuple[Path, Record], ...]:
    """Return what the first target's canary has to prove; nothing where all of it is proven, or machines prove it.

    Raises InputError where that target's canary cannot, or where others are to be written before it has.
    """
    unproven = tuple((artefact, record) for artefact, record in located if not record.verified)
    if bakefile.verify.by != "canary" or not unproven or any(record.verdict for _, record in unproven):
        return ()
    name, first = unproven[0][1].artefact, targets[0]
    hint = "`--to NAME` names one whose `canary` has a `min_hit_rate`; or prove it on a machine: `parbake verify`"
    if first.canary is None or first.canary.min_hit_rate is None:
        raise InputError(f"{name} is not proven yet, and {first.name} has no canary that could prove it", hint=hint)
    if not follow and len(targets) > 1:
        raise InputError(
            f"{name} is not proven yet: {targets[1].name} gets it once the canary of {first.name} has",
            hint=f"add --to {first.name}, or leave out --no-follow",
        )
    if bakefile.trust and bakefile.sign is None:
        raise InputError(
            f"what the canary of {first.name} says of {name} could not be signed",
            hint="write `sign` in the Bakefile, beside `trust`",
        )
    return unproven
