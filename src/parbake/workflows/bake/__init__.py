"""The story: what parbake does, each act as a paragraph.

``bake = plan -> (exists? stop) -> build the disk -> rehearse, lay out -> verify -> publish and record``

Decide first, act later: ``parbake.workflows.plan`` only reads, up to the plan, and whether something is left to do is
decided here; ``make`` beside it acts, and loads only then. Acting converges: everything that is made has a name that
follows from the content key, so a bake that was killed is finished by running it again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from parbake import records
from parbake.core import access
from parbake.core.claim import Alone, Claim
from parbake.core.errors import DeadlineExceeded, EnvironmentProblem, InputError, Moved
from parbake.core.events import Events
from parbake.core.plan import cautions
from parbake.core.workspace import parts_of, remove_leftovers
from parbake.records import genuine
from parbake.workflows.bake.ahead import spare_worker
from parbake.workflows.bake.sharing import make_and_share, using
from parbake.workflows.plan import (
    Bake,
    BakeOptions,
    BakeResult,
    Session,
    ask_account,
    base_of,
    decide,
    existing,
    make_images,
    open_session,
    resolve,
)

if TYPE_CHECKING:
    from parbake.bakefile import Bakefile
    from parbake.builders import Publisher, RemoteBuilder
    from parbake.core.model import Plan


def bake(bakefile_path: Path, events: Events, options: BakeOptions | None = None) -> BakeResult:
    """Make sure that the artefact of this Bakefile exists and is verified; a no-op when it is.

    Raises VerificationFailed (the artefact stays, its record says why) when an image does not start from it; Moved
    where its content key is not the one that was expected.
    """
    options = options or BakeOptions()
    with (
        open_session(bakefile_path, events, options.overrides, turn=options.turn) as session,
        spare_worker(session.bakefile, force=options.force) as spare,
    ):
        run = replace(session, signer=genuine.open_signer(session.bakefile), spare=spare)  # a wrong key shows first
        if run.bakefile.verify.by == "canary":
            options = replace(options, verify=False)
        # Builds that were killed leave credentials there, and bakes what kept `clean --caches` from their images.
        for folder in parts_of(run.cache):
            remove_leftovers(folder)
        remote, publisher = clouds_of(run.bakefile, options)
        if remote:
            refuse_rehearsal(run.bakefile, options)
        plan = plan_bake(run, options)
        ensure = partial(ensure_artefact, Bake(run, plan, options, remote, publisher))
        return make_and_share(run, plan, ensure, force=options.force)


def clouds_of(bakefile: Bakefile, options: BakeOptions) -> tuple[RemoteBuilder | None, Publisher | None]:
    """Return what bakes in a cloud, and what sends a disk there; None for both where the artefact is a file."""
    if not bakefile.traits.in_ec2:
        return None, None
    from parbake.builders.choose import publisher_of, remote_builder_of

    remote = remote_builder_of(bakefile, verify=options.verify, fresh=options.force)
    return remote, publisher_of(bakefile, fresh=options.force)


def plan_bake(run: Session, options: BakeOptions) -> Plan:
    """Build the images that are missing, and plan the bake; what must fail is refused before anything is built."""
    known, onto = ask_account(run), base_of(run)
    images = make_images(run, resolve(run, ignore_built=options.rebuild), force=options.rebuild)
    plan = decide(run, images, onto)
    need_key(plan, options)
    for caution in (*cautions(plan), *known):
        run.events.warn(caution)
    return plan


def need_key(plan: Plan, options: BakeOptions) -> None:
    """Raise Moved unless a plan has the content key that was expected, if any was."""
    if options.expect_key and plan.key != options.expect_key:
        raise Moved(f"the content key of {plan.name} is {plan.key} now, not {options.expect_key}")


def refuse_rehearsal(bakefile: Bakefile, options: BakeOptions) -> None:
    """Raise InputError if a rehearsal was asked for, of a disk that is never on this machine."""
    if options.rehearse:
        raise InputError(
            f"--rehearse needs the disk on this machine, and `builder: {bakefile.builder}` bakes on an instance",
            hint="write `builder: ebs`, or bring a trace from a node: `parbake trace RECORD --trace FILE`",
        )


def ensure_artefact(bake: Bake, claim: Callable[[], Claim], *, force: bool) -> BakeResult:
    """Make sure that a plan's artefact exists here, or in a cloud, and is verified; ``force`` makes it anew.

    What a cloud gets is made with the ``claim`` of one machine alone.
    """
    bake = replace(bake, options=replace(bake.options, force=force))
    run, output, name = bake.run, bake.output, bake.plan.artefact_name
    earlier = find_earlier(bake, Events())  # what is wrong with it is told below
    if earlier and is_complete(earlier, bake.options):
        # Nothing is left to do, also where nothing can be written; but a run may have been killed just after that.
        with suppress(OSError, EnvironmentProblem, DeadlineExceeded):
            access.give(output, records.everything(output / name), run.bakefile.readable_by)
            records.sweep(output)
        return earlier
    from parbake.workflows.bake.disks import holding_layouts  # with all that fills, boots and sends disks
    from parbake.workflows.bake.make import make

    records.sweep(output)
    held = claim() if bake.remote or bake.publisher else Alone()
    with using(run, name), holding_layouts(run.cache, bake.plan):
        earlier = find_earlier(bake, run.events, mend=True)
        if earlier and is_complete(earlier, bake.options):
            return earlier  # another machine was first
        return make(replace(bake, earlier=earlier, claim=held))


def find_earlier(bake: Bake, events: Events, *, mend: bool = False) -> BakeResult | None:
    """Return what an earlier run has made of a plan, unless it is to be made anew; see ``plan.existing``."""
    if bake.options.force:
        return None
    return existing(bake.output, bake.plan, events, trust=bake.run.trusted, mend=mend)


def is_complete(earlier: BakeResult, options: BakeOptions) -> bool:
    """Whether an artefact that exists is all that was asked for."""
    record = earlier.record
    verified = record.verified or not options.verify
    rehearsed = record.trace is not None or not options.rehearse
    return verified and rehearsed and not options.trace
