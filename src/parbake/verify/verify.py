"""Verification: boot an artefact without a network, check every image in its store, start each, and time it."""

from __future__ import annotations

import re
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from parbake.core.errors import BadBase, ContainerdError, DeadlineExceeded, MachineError
from parbake.core.model import HydrateFigures, Image, ImageVerdict, Plan, Platform, Startup, Verdict
from parbake.core.timestamps import timestamp
from parbake.core.workspace import cache_folder
from parbake.machine import base as default_base
from parbake.machine.vm import boots
from parbake.verify import within
from parbake.verify.booted import BootedNode, Kind, identify
from parbake.verify.company import cautions, start_all
from parbake.verify.starter import Started, Starter
from parbake.verify.store import Seen, judge, look

if TYPE_CHECKING:
    from parbake.core.events import Events

_IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")
_MEMORY = 2048  # MiB
_HYDRATE_STATE = "/run/parbake/hydrate.json"

NO_SANDBOX = (
    "the artefact holds no sandbox (pause) image {sandbox}: it was verified with parbake's own; on a node that has "
    "none either, no pod starts before it is pulled"
)
DOCKER = (
    "Docker runs this node: it knows no pinned images, so that the kubelet may collect them when the disk fills up, "
    "and its pause image was not checked"
)
OTHER_SANDBOX = (
    "the runtime makes sandboxes from {sandbox}, which is not in its store (the plan brings {planned}): no pod starts "
    "without a registry"
)


@dataclass(frozen=True, slots=True)
class ImageToVerify:
    """An image to verify.

    ``reference`` is what the user calls it, ``name`` what the store must call it, ``expected`` what the plan says of it
    (None without a plan), ``startup`` how to start it (None: look it up only).
    """

    reference: str
    name: str
    expected: Image | None
    startup: Startup | None


def images_of(plan: Plan) -> tuple[ImageToVerify, ...]:
    """Return what a plan promises: its whole images are started, all else is only looked up. Pure."""
    found = []
    for image in plan.images:
        first, *further = image.names
        startup = None if image.part_of else image.startup or Startup()
        found.append(ImageToVerify(str(image.reference), first, image, startup))
        found += [ImageToVerify(name, name, image, None) for name in further]
    if plan.sandbox is not None:
        found.append(ImageToVerify(str(plan.sandbox.reference), plan.sandbox.names[0], plan.sandbox, None))
    return tuple(found)


def images_in(records: dict[str, str], sandbox: str) -> tuple[ImageToVerify, ...]:
    """Return the images of a store (name to target); each target but the sandbox's is started once. Pure.

    Names that are image ids (``sha256:...``) are the CRI plugin's own.
    """
    names = sorted((name for name in records if not _IMAGE_ID.fullmatch(name)), key=lambda name: ("@" in name, name))
    started = {records.get(sandbox, "")}
    found = []
    for name in names:
        found.append(ImageToVerify(name, name, None, None if records[name] in started else Startup()))
        started.add(records[name])
    return tuple(found)


def sandbox_action(
    *, present: bool, kind: Kind, planned: Image | None, seen: bool
) -> Literal["none", "name", "warn", "refuse"]:
    """Decide what to do about the runtime's sandbox image. Pure.

    ``present``: the runtime has what it is configured with. A volume is made for nodes that are configured with the
    plan's, if it is there (``seen``): name it as this base's. What is missing otherwise is a warning when the plan
    never promised one, and a failure when it promised another than the machine image's runtime asks for.
    """
    if present:
        return "none"
    if kind == "volume" and planned is not None and seen:
        return "name"
    return "warn" if planned is None else "refuse"


def conclude(seen: Seen, image: ImageToVerify, started: Started | None) -> ImageVerdict:
    """Put what was seen of one image together. Pure."""
    problems = judge(seen, image.expected)
    return ImageVerdict(
        reference=image.reference,
        digest=seen.target.digest if seen.target else "",
        pinned=seen.pinned,
        unpacked=seen.unpacked,
        startup=image.startup if started else None,
        shown=started.shown if started else "",
        ran_seconds=_rounded(started.ran_seconds if started else None),
        start_seconds=_rounded(started.seconds if started else None),
        sandbox_seconds=_rounded(started.sandbox_seconds if started else None),
        problems=(*problems, *(started.problems if started else ())),
        output=started.output if started else "",
    )


class Verification:
    """An artefact that has been booted to be verified; use with ``with``.

    ``verdict`` looks at every image and starts it; the machine stays up for what may follow (``pull.compare_pull``).
    ``reads`` is a file for what a machine image reads of its disk (``vm.reads``). ``base`` is the image of a node that
    a volume is attached to (None: the default base, from ``cache``). What is for another architecture than this
    machine's is booted in emulation.
    Entering raises MachineError when the machine does not come up, BadBase when the file is not an artefact,
    EnvironmentProblem when QEMU or another program is missing.
    """

    def __init__(
        self,
        artefact: Path,
        plan: Plan | None,
        *,
        events: Events,
        folder: Path,
        cache: Path | None = None,
        memory: int = _MEMORY,
        reads: Path | None = None,
        base: Path | None = None,
    ) -> None:
        self.artefact, self.plan, self.events, self.folder = artefact, plan, events, folder
        if plan is not None:
            self.kind: Kind = plan.artefact.kind
            image_format: str = plan.artefact.format
        else:
            self.kind, image_format = identify(artefact)
        self.base = base if self.kind == "volume" else None
        self.platform = Platform(architecture=plan.platform.architecture) if plan else Platform.host()
        self.node = BootedNode(
            artefact,
            self.kind,
            image_format,
            folder=folder / "machine",
            base=self.base or partial(default_base.ensure, cache or cache_folder(), events, platform=self.platform),
            memory=memory,
            architecture=self.platform.architecture,
            default_base=plan is not None and plan.base.kind == "debian",
            reads=reads,
            tell=events.note,
        )
        self.starter: Starter
        self._imported: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            machine = self.node.machine
            resumes, what = self.node.resumes, f"{self.artefact.name} without a network ({machine.accelerator})"
            text = f"Resume the machine that booted before, for {what}" if resumes else f"Boot {what}"
            if machine.accelerator == "tcg":
                text += f": without KVM it usually takes {'some twenty seconds' if resumes else 'a minute'}"
            with self.events.stage("boot", text):
                stack.enter_context(self.node)
            if self.node.is_docker:
                self._stack = stack.pop_all()
                return self
            self.starter = Starter(
                machine.guest, self.node.cri, stretch=machine.stretch, pause=self.node.settings.sandbox
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def verdict(self) -> Verdict:
        """Check and start every image; what is wrong is in the verdict, whatever the images do."""
        images: list[ImageVerdict] = []
        problems: tuple[str, ...] = ()
        warnings: tuple[str, ...] = ()
        seen: list[tuple[ImageToVerify, Seen]] = []
        started: dict[str, Started] = {}
        try:
            problems, warnings = self.provide_sandbox()
            if self.node.is_docker:
                images += within.prove_docker(self.node.machine, self.plan, self.events)
            else:
                seen.extend((image, self._look(image)) for image in self._images())
                there = [(image.name, image.startup) for image, found in seen if found.target and image.startup]
                started.update(start_all(self.starter, there, self.events))  # what was seen before a failure counts
        except MachineError as error:
            problems = (*problems, self.node.fault_text(error))
        except (ContainerdError, DeadlineExceeded) as error:
            problems = (*problems, error.message)
        images += [conclude(found, image, started.get(image.name)) for image, found in seen]
        if not images and not problems:
            problems = ("there is no image in the runtime's store (namespace k8s.io)",)
        return Verdict(
            passed=not problems and not any(image.problems for image in images),
            accelerator=self.node.machine.accelerator,
            emulator=self.emulator,
            boot_seconds=round(self.node.boot_seconds, 3),
            resumed_seconds=self.node.resumed_seconds,
            runtime=self.node.runtime,
            base=self.base.name if self.base else "",
            images=tuple(images),
            problems=problems,
            warnings=(*warnings, *cautions(images)),
            hydrate=self._hydrated(),
            verified_at=timestamp(),
        )

    @property
    def emulator(self) -> str:
        """What plays a machine of another architecture than this one's; empty for the same."""
        return self.node.machine.board.qemu if self.platform.architecture != Platform.host().architecture else ""

    def _hydrated(self) -> HydrateFigures | None:
        """Return what the machine image's hydrate service wrote down; None without one, or without an answer."""
        with suppress(MachineError, ValueError):
            return HydrateFigures.model_validate_json(self.node.machine.guest.read(_HYDRATE_STATE))
        return None

    def _images(self) -> tuple[ImageToVerify, ...]:
        if self.plan is not None:
            return images_of(self.plan)
        found = self.node.client.images.list()
        records = {record.name: record.target.digest for record in found if record.name not in self._imported}
        return images_in(records, self.node.settings.sandbox)

    def _look(self, image: ImageToVerify) -> Seen:
        expected = image.expected
        platform = expected.platform if expected else self.platform
        wanted = expected.manifest.digest if expected else ""
        return look(self.node.client, self.node.cri, image.name, platform=platform, wanted=wanted)

    def provide_sandbox(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Make sure that pods can be started; return problems and warnings."""
        if self.node.is_docker:
            return (), (DOCKER,)
        node, planned = self.node, self.plan.sandbox if self.plan else None
        record = node.client.images.get(planned.names[0]) if planned else None
        action = sandbox_action(present=node.has_sandbox(), kind=self.kind, planned=planned, seen=record is not None)
        if action == "none":
            return (), ()
        if action == "name" and record is not None:
            node.name_sandbox(record.target)
            return (), ()
        node.import_sandbox(self.folder / "pause")
        self._imported = {node.settings.sandbox}
        words = {"sandbox": node.settings.sandbox, "planned": planned.reference if planned else ""}
        if action == "warn":
            return (), (NO_SANDBOX.format(**words),)
        return (OTHER_SANDBOX.format(**words),), ()


def verify(
    artefact: Path,
    plan: Plan | None,
    *,
    events: Events,
    folder: Path,
    cache: Path | None = None,
    memory: int = _MEMORY,
    base: Path | None = None,
) -> Verdict:
    """Boot an artefact (which is not changed) without a network and prove every image in it; return the verdict.

    ``plan`` None checks what the store holds, without digests to expect. ``folder`` is for this run's files, ``cache``
    holds the default base, to which a volume is attached unless ``base`` is the image of a node to take instead;
    ``memory`` is the machine's, in MiB.
    A bad image, a machine image that does not boot and an artefact for which there are no machines (accelerator
    ``none``) are verdicts that did not pass. Raises BadBase unless the file is an artefact, and what says that this
    machine cannot verify: EnvironmentProblem, CommandFailed, MachineError for a volume's own base, DiskFull.
    """
    if plan is not None and not boots(plan.platform):
        reason = f"the artefact is for {plan.platform}, which parbake cannot boot: nothing was booted"
        return Verdict(passed=False, accelerator="none", problems=(reason,), verified_at=timestamp())
    verification = Verification(artefact, plan, events=events, folder=folder, cache=cache, memory=memory, base=base)
    try:
        with verification:
            return verification.verdict()
    except (MachineError, ContainerdError, BadBase, DeadlineExceeded) as error:
        if verification.kind == "volume":
            raise
        return Verdict(
            passed=False,
            accelerator=verification.node.machine.accelerator,
            emulator=verification.emulator,
            problems=(error.message,),
            verified_at=timestamp(),
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def damaged(problem: str) -> Verdict:
    """Return the verdict on an artefact that is not worth booting."""
    return Verdict(passed=False, accelerator="none", intact=False, problems=(problem,), verified_at=timestamp())
