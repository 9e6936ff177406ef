"""The story of a copy: what was baked into EC2 is made sure of in one more region, and shared there.

``copy = record -> (is it there?) -> copy, wait, share, mark -> the record says so``

A bake copies to the regions of its Bakefile one after the other. This is for places that others name, a fleet's file:
each is a piece of work of its own, so that a region that is slow keeps no other one waiting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from parbake import records
from parbake.bakefile import COPY_ROLES, Bakefile
from parbake.core import access, interrupts
from parbake.core.claim import Alone, Claim
from parbake.core.errors import InputError, VerificationFailed
from parbake.core.events import Events
from parbake.core.model import Published
from parbake.core.roles import Role
from parbake.records import Record, genuine
from parbake.records.store import Shared, claimed, session_store
from parbake.workflows.identity import opened

_HOURS = 12.0  # until what a copy that was cut off has left counts as left behind


@dataclass(frozen=True, slots=True)
class Where:
    """A region, the role that its copy belongs to (empty: the Bakefile's), and who else may launch what is there."""

    region: str
    role: str = ""
    share_with: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Copied:
    """What is in a region now; ``changed``: it was not, or not shared so."""

    artefact: str
    region: str
    there: Published
    changed: bool


def copy(
    bakefile_path: Path, selector: str, where: Where, events: Events, overrides: Mapping[str, str] | None = None
) -> Copied:
    """Make sure that an artefact of EC2 is in a region, and that others may launch it there.

    ``selector`` names it as for a rollout; ``overrides`` replace keys of the Bakefile. Raises InputError for what lies
    in no cloud and for a copy that is another account's, VerificationFailed for a record that says no or is not to be
    believed, and what AWS says.
    """
    given = dict(overrides or {})
    if where.role:
        given[COPY_ROLES] = " ".join(filter(None, (given.get(COPY_ROLES, ""), f"{where.region}={where.role}")))
    with opened(bakefile_path, given) as bakefile:
        shared = session_store(bakefile, events)
        if shared:
            shared.refresh()
        record = _record(bakefile, selector, events)
        _need_sense(bakefile, record, where)
        if _is_there(record, where):
            return Copied(record.artefact, where.region, record.published[where.region], changed=False)
        artefact, signer = bakefile.output / record.artefact, genuine.open_signer(bakefile)
        records.need_signer(artefact, signer)
        with _claim(shared, record, where.region, events) as claim:
            if shared:
                shared.refresh()  # another machine may have done it meanwhile
                record = _record(bakefile, record.artefact, Events())
            there = _made(bakefile, record, where, claim, events)

            def saying(found: Record) -> Record:
                # What is signed anew is what a trusted key had signed.
                found = genuine.need(artefact, bakefile.trust) if bakefile.trust else found
                return found.model_copy(update={"published": {**found.published, where.region: there}})

            interrupts.hold()
            with (
                access.readable(bakefile.output, records.everything(artefact), bakefile.readable_by),
                records.in_use(bakefile.output, record.artefact),
            ):
                if shared:
                    shared.amend(record.artefact, saying, signer)
                else:
                    records.write(bakefile.output, saying(record), signer)
    return Copied(record.artefact, where.region, there, changed=True)


def _record(bakefile: Bakefile, selector: str, events: Events) -> Record:
    hint = "name what parbake has baked"
    artefact, _ = records.locate_record(selector or bakefile.name, bakefile.output, events, hint=hint)
    record = genuine.need(artefact, bakefile.trust)
    if not record.published:
        raise InputError(
            f"{record.artefact} lies in no cloud, so there is nothing to copy",
            hint="bake it with `builder: ebs` (from here, no instance) or `builder: ec2`",
        )
    if record.verdict and not record.verdict.passed:
        raise VerificationFailed(
            f"{record.artefact} failed verification, and stays where it is", hint="correct it, and bake again"
        )
    return record


def _need_sense(bakefile: Bakefile, record: Record, where: Where) -> None:
    """Raise InputError for a role where nothing is copied, and for a copy that is another account's."""
    home = next(iter(record.published))
    if where.region == home and where.role and where.role != bakefile.aws.role:
        raise InputError(
            f"{record.artefact} was baked in {home} itself, where nothing is copied",
            hint="leave the role out there; `share_with` lets other accounts launch it",
        )
    there = record.published.get(where.region)
    if there and there.account and where.role and Role(where.role).account != there.account:
        raise InputError(
            f"{record.artefact}: what is in {where.region} belongs to {there.account}, not to the account of "
            f"{where.role}, and a region has one of each artefact",
            hint="name that account's role, or remove what is there with `parbake prune --aws`",
        )


def _is_there(record: Record, where: Where) -> bool:
    there = record.published.get(where.region)
    return there is not None and set(where.share_with) <= set(there.shared_with)


@contextmanager
def _claim(shared: Shared | None, record: Record, region: str, events: Events) -> Iterator[Claim]:
    """Hold the right to copy to a region, among all machines that share the store."""
    if shared is None:
        yield Alone()
        return
    from parbake.aws import guarded

    what = f"{record.artefact} in {region}"
    with claimed(shared.store, f"{record.key}.{region}", what, events) as held, guarded(held.need):
        yield held


def _made(bakefile: Bakefile, record: Record, where: Where, claim: Claim, events: Events) -> Published:
    from parbake import aws
    from parbake.builders.ec2.image import Amis
    from parbake.builders.ec2.volume import Volumes

    home, there = next(iter(record.published.items()))
    settings = bakefile.aws.model_copy(update={"share_with": _once((*bakefile.aws.share_with, *where.share_with))})
    stamp = aws.Stamp(record.key, claim.run, record.plan.name, _HOURS, settings.tags, claim.began)
    made = (settings, stamp, f"{record.plan.name}-{record.key[:12]}", events)
    results = Amis(*made) if there.image else Volumes(*made)
    if known := record.published.get(where.region):
        return results.share(known, where.region)
    verified = record.verdict.verified_at if record.verdict else ""
    return results.bring(there, home, where.region, verified=verified)


def _once(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
