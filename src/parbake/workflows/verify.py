"""Proof: artefacts are compared with their records, booted without a network, and their images started.

The verdict goes into the record; rollouts take only what passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from parbake import records
from parbake.core.errors import InputError, VerificationFailed
from parbake.core.events import Events
from parbake.core.model import ImageVerdict, Plan, TraceSummary, Verdict
from parbake.core.printable import word
from parbake.core.signing import Signer
from parbake.core.timestamps import timestamp
from parbake.core.workspace import cache_folder, work_folder
from parbake.machine import disk
from parbake.records import Record, genuine
from parbake.records.held import NotAsRecorded, State, held
from parbake.workflows.startup import started_as

if TYPE_CHECKING:
    from parbake.bakefile import Bakefile
    from parbake.coldstart.trace import Trace
    from parbake.records.store import Shared
    from parbake.workflows.plan import Bake


def can_boot(plan: Plan, events: Events) -> bool:
    """Return whether an artefact of a plan can be verified; warn if its platform cannot be booted here.

    What is for another architecture than this machine's is booted in emulation. Raises EnvironmentProblem, before any
    work is done, when this machine lacks what that takes.
    """
    from parbake.machine.vm import accelerator, boots  # loads only where something is booted

    if boots(plan.platform):
        accelerator(plan.platform.architecture)
        return True
    events.warn(f"not verified: the artefact is for {plan.platform}, which parbake cannot boot")
    return False


def is_to_be_verified(bake: Bake) -> bool:
    """Whether a verification is asked for, left to do, and possible on this machine; see ``can_boot``."""
    done = bake.earlier is not None and bake.earlier.record.verified
    return bake.options.verify and not done and can_boot(bake.plan, bake.events)


def boot(events: Events, artefact: Path, plan: Plan, folder: Path, base: Path | None = None) -> Verdict:
    """Verify a disk by itself, without a record; a volume on a node's image where ``base`` is one."""
    from parbake.verify import verify

    return verify(artefact, plan, events=events, folder=folder, cache=cache_folder(), base=base)


def seen_in_rehearsal(trace: Trace | TraceSummary | None, plan: Plan) -> Verdict:
    """Return the verdict on a plan some of whose images failed in its rehearsal; no other was looked at."""
    assert trace
    images = (
        ImageVerdict(
            reference=name, startup=plan.startups.get(name), problems=(f"in the rehearsal, {trace.skipped[name]}",)
        )
        for name in trace.failed
    )
    return Verdict(passed=False, accelerator="rehearsal", images=tuple(images), verified_at=timestamp())


def examine(
    artefact: Path,
    record: Record | None,
    events: Events,
    *,
    work: Path,
    base: Path | None = None,
    known: State | None = None,
) -> tuple[Verdict, str]:
    """Verify an artefact, with its record or (a file without one) by what its store holds; return also its SHA-256.

    ``work`` is a folder of this run alone, on the same file system. A volume is attached to ``base``, a node's image
    (None: the default base). First its bytes are compared with its
    record, unless this run has made it and it is in the ``known`` state. The digest of the whole file is computed while
    the machine boots; it is empty for a file without a record, and for one that is damaged.
    """
    from parbake.verify import damaged, verify  # gRPC and its like take longer to load than doing nothing

    if record is None:
        return verify(artefact, None, events=events, folder=work, cache=cache_folder(), base=base), ""
    try:
        with (
            held(artefact, record, work, events, known=known) as bytes_,
            disk.sha256_beside(bytes_.path, events, known=record.sha256) as sha256,
        ):
            verdict = verify(bytes_.path, record.plan, events=events, folder=work, cache=cache_folder(), base=base)
            return verdict.model_copy(update={"intact": bytes_.compared or None}), sha256()
    except NotAsRecorded as error:
        return damaged(error.differs), ""


def write_verdict(
    artefact: Path, record: Record, verdict: Verdict, sha256: str = "", signer: Signer | None = None
) -> Record:
    """Put a verdict into the record of an artefact, and the digest of the whole file where it has none yet."""
    record = record.model_copy(update={"verdict": verdict, "sha256": record.sha256 or sha256})
    records.write(artefact.parent, record, signer)
    return record


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """How to verify again: on which ``base``, whose signatures to ``trust``, and where the verdict goes.

    Images start as the ``bakefile`` says (``startup.started_as``), and the record says so then. A good verdict is
    ``shared``, too.
    """

    base: Path | None = None
    keep_workspace: bool = False
    trust: Sequence[Path] = ()
    bakefile: Bakefile | None = None
    signer: Signer | None = None
    shared: Shared | None = None


def verify_again(
    selector: str, output: Path, events: Events, options: VerifyOptions | None = None
) -> tuple[Path, Verdict]:
    """Verify what a user names (see ``records.locate``), whatever its record says already; write the new verdict.

    Where nothing could be booted (there are no machines for its platform) the record keeps the verdict that it has, and
    so does a signed one without a ``signer``. Raises VerificationFailed, before anything is booted, when the record
    contradicts itself, or when none of the keys to trust has signed it.
    """
    options = options or VerifyOptions()
    trust, signer, shared = options.trust, options.signer, options.shared
    artefact, record = records.locate(selector, output, events)
    if record or trust:
        record = genuine.need(artefact, trust)
        plan = started_as(record.plan, options.bakefile, events, signed=bool(trust))
        record = record.model_copy(update={"plan": plan})
    if record and record.published and not artefact.is_file():
        there = next(iter(record.published.values()))
        raise InputError(
            f"{artefact.name} lies in a cloud, not on this machine",
            hint="`parbake bake` verifies it there, if that is still to be done; "
            f"or read it back: parbake fetch {there.snapshots[0].id} FILE, then parbake verify FILE",
        )
    if not artefact.is_file():
        raise InputError(f"{artefact} does not exist, although its record does", hint="bake it again")
    records.sweep(artefact.parent)
    with work_on(artefact.parent, "verify", events, keep=options.keep_workspace) as work:
        verdict, sha256 = examine(artefact, record, events, work=work, base=options.base)
    if record and (verdict.accelerator != "none" or verdict.intact is False):
        if signer is None and records.is_signed(artefact):
            events.warn(f"the record of {artefact.name} is signed and stays as it is: the Bakefile has no `sign`")
        else:
            record = write_verdict(artefact, record, verdict, sha256, signer)
            if shared and record.verified:
                with records.in_use(artefact.parent, record.artefact):
                    shared.put(record, again=True)
    return artefact, verdict


def judge(artefact: Path, verdict: Verdict | None) -> None:
    """Raise VerificationFailed unless the verdict is good."""
    if verdict is None or verdict.passed:
        return
    lines = list(map(word, verdict.problems))
    for image in verdict.images:
        lines += [word(f"{image.reference}: {problem}") for problem in image.problems]
        if image.problems and image.output:
            lines.append(f"{image.reference} wrote:\n{image.output}")
    hint = "correct the image or its `startup` in the Bakefile and bake again; the record keeps this verdict"
    if verdict.intact is False:
        hint = "bake it again: `parbake bake --force`"
    elif verdict.accelerator == "rehearsal":
        hint = (
            "correct the image or its `startup` in the Bakefile and bake again; if you expect it to start on a node, "
            "`parbake bake --no-rehearse` boots a machine for it"
        )
    elif verdict.accelerator == "none":
        hint = "try it on a node; its record stays as it was"
    raise VerificationFailed(
        f"{artefact.name} failed verification\n" + "\n".join(f"  {line}" for line in lines), hint=hint
    )


@contextmanager
def work_on(output: Path, name: str, events: Events, *, keep: bool) -> Iterator[Path]:
    """Make a work folder, and report its path if it stays."""
    with work_folder(output, name, keep=keep) as work:
        if keep:
            events.note(f"the work folder stays until `parbake clean`: {work}")
        yield work
