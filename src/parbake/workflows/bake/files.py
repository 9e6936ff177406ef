"""The steps of a bake to a file on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from parbake import records
from parbake.builders import Disk, ParentVolume, Publication
from parbake.core import access, interrupts
from parbake.core.model import Verdict
from parbake.core.workspace import remove_tree
from parbake.records.held import state
from parbake.workflows.bake import ancestry
from parbake.workflows.bake.describe import Attachments, Clock, describe_disk
from parbake.workflows.bake.disks import build_disk, find_base, need_room
from parbake.workflows.bake.rehearsal import failed_in_rehearsal, need_rights, rehearsal_decides, rehearse, with_trace
from parbake.workflows.plan import Bake, BakeResult, existing
from parbake.workflows.verify import examine, is_to_be_verified, seen_in_rehearsal, work_on, write_verdict


@contextmanager
def file_steps(bake: Bake) -> Iterator[FileSteps]:
    """Open a work folder beside the artefact for the steps to it."""
    verifying = is_to_be_verified(bake)  # what this machine cannot do is told first
    with work_on(bake.output, bake.plan.key[:12], bake.events, keep=bake.options.keep_workspace) as work:
        yield FileSteps(bake, work, verifying=verifying)


class FileSteps:
    """Builds a disk, or goes on with a file that an earlier run has made: an artefact, or one that waits to be one."""

    def __init__(self, bake: Bake, work: Path, *, verifying: bool) -> None:
        self.bake, self.work, self.verifying = bake, work, verifying
        self.base: Path | None = None
        self.clock = Clock()
        self.attachments: Callable[[], Attachments] = dict
        self.sha256 = ""

    def build(self) -> Disk | BakeResult:
        """Return the file of an earlier run, unless its images start otherwise now, or a new disk."""
        bake = self.bake
        if (earlier := bake.earlier or self._waiting()) and not self._is_stale(earlier):
            if self.verifying:
                records.need_signer(earlier.artefact, bake.run.signer)
            return earlier
        need_rights(bake.plan, bake.options)
        need_room(bake.output, bake.plan)
        self.base = find_base(bake.run, bake.plan)  # the default one is made once: no part of this bake's time
        self.clock = Clock()
        self.attachments = bake.run.registry.find_attachments(bake.plan.all_images)  # beside the bake, for its record
        plan, disk = build_disk(bake.run, bake.plan, self.base, self._folder("bake"), parent=self._parent())
        self.bake = replace(bake, plan=plan)
        return disk

    def _waiting(self) -> BakeResult | None:
        """Return the disk that a run was killed with before it had a verdict."""
        bake = self.bake
        if bake.options.force:
            return None
        folder = records.waiting(bake.output, bake.plan.key)
        found = existing(folder, bake.plan, bake.events, trust=bake.run.trusted, mend=True)
        if found:
            bake.events.note(f"going on with the disk that an earlier run has built at {found.record.finished_at}")
        return found and replace(found, changed=True)

    def _is_stale(self, earlier: BakeResult) -> bool:
        """Whether it has to be rehearsed and laid out anew, since an image failed in its rehearsal."""
        record = earlier.record
        return self.verifying and not record.verdict and failed_in_rehearsal(self.bake, record.trace)

    def _parent(self) -> ParentVolume | None:
        """Find the earlier artefact to start from, unless the user wants none."""
        run, options = self.bake.run, self.bake.options
        if options.force or options.from_scratch:
            return None
        verify, rehearsed = options.verify, bool(options.rehearse)
        return ancestry.parent_of(
            self.bake.plan, self.bake.output, run.cache, verify=verify, rehearse=rehearsed, trust=run.trusted
        )

    def _folder(self, name: str) -> Path:
        folder = self.work / name
        folder.mkdir()
        return folder

    def rehearse(self, made: Disk | BakeResult) -> BakeResult:
        """Let a new disk wait for its verdict, with its record; an earlier file gets the trace that was asked for."""
        bake, work = self.bake, self.work / "bake"
        if isinstance(made, BakeResult):
            return with_trace(bake, made)
        disk = rehearse(bake, made, work)
        record, blocks = describe_disk(bake, disk, self.base, self.clock, self.attachments())
        if not self.verifying:
            interrupts.hold()  # it appears at once
        kept = records.keep(
            disk.path, record, bake.output, self.work,
            blocks=blocks, trace=disk.trace, signer=bake.run.signer, durable=self.verifying,
        )  # fmt: skip
        if not bake.options.keep_workspace:
            remove_tree(work)  # a verification needs its room
        return BakeResult(kept, record, changed=True, state=state(kept))

    def verify(self, made: BakeResult) -> Verdict | None:
        """Boot it without a network and start its images, unless the rehearsal has decided already."""
        bake, record = self.bake, made.record
        if not self.verifying:
            return None
        if made.state and failed_in_rehearsal(bake, record.trace):
            return seen_in_rehearsal(record.trace, bake.plan)
        if record.verdict and record.verdict.accelerator == "rehearsal" and rehearsal_decides(bake):
            return record.verdict
        base = bake.run.bakefile.verify.base
        verdict, self.sha256 = examine(
            made.artefact, record, bake.events, work=self._folder("verify"), base=base, known=made.state
        )
        return verdict

    def publish(self, made: BakeResult, verdict: Verdict | None) -> Publication:  # noqa: ARG002
        """Send nothing: a file stays on this machine."""
        return Publication(verdict=verdict)

    def record(self, made: BakeResult, published: Publication) -> BakeResult:
        """Let it appear with its record, or write the verdict into the record of what has its name already."""
        bake, record, signer, verdict = self.bake, made.record, self.bake.run.signer, published.verdict
        interrupts.hold()
        if made.artefact.parent == bake.output:
            if verdict:
                record = write_verdict(made.artefact, record, verdict, self.sha256, signer)
            return replace(made, record=record)
        if verdict:
            record = record.model_copy(update={"verdict": verdict, "sha256": record.sha256 or self.sha256})
        artefact = records.publish_artefact(made.artefact, record, bake.output, self.work, signer=signer)
        readers = bake.run.bakefile.readable_by
        access.give(bake.output, records.everything(artefact), readers)  # first: it changes what is remembered
        ancestry.remember(artefact, record, bake.run.cache)
        return BakeResult(artefact, record, changed=True, state=state(artefact))
