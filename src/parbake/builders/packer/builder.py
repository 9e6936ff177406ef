"""The Packer builder: writes the template with the plan's own values, runs ``packer``, and reads its manifest.

Packer checks nothing of what it makes, so the AMI is launched once, as the EC2 builder does, to prove its images. What
becomes of it then (copies, shares, deprecation) is that builder's work too: Packer tags its copies last, so that
whoever runs it would have to be allowed to change and to tag what is not parbake's.

What Packer makes on the way carries parbake's tags, and so does the AMI: a run that finds the AMI of its key takes it.
Packer is asked to end (SIGTERM) and given time for its own clean-up; should it be killed with parbake, the instance
shuts itself down and is removed by that, and ``run_tags`` name the rest.
Sources: Packer's commands init, validate and build; its manifest post-processor (builds, ``last_run_uuid``); the Amazon
plugin's artifact, whose id is ``region:ami`` for each region, separated by commas.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, override

from parbake import aws
from parbake.aws.tags import ARTEFACT
from parbake.bakefile import Bakefile
from parbake.builders import Ingredients, Publication, RemoteBuilder, ec2, packer
from parbake.builders.ec2.image import Amis
from parbake.core import run
from parbake.core.errors import AwsNotFound, CommandFailed, EnvironmentProblem, ParbakeError
from parbake.core.events import Events
from parbake.core.model import Plan, Published, Verdict
from parbake.core.workspace import room_for

_MANIFEST = "manifest.json"
_CHECK_SECONDS = 600.0
# Beyond the guest's own limit: the instance's start, and the snapshot, for which the template waits up to four hours.
_AROUND_SECONDS = 5 * 3600.0
# Packer stops and removes what it made, and waits for that.
_CLEANUP_SECONDS = 900.0
_LOOK_SECONDS = 0.5
_STEP = re.compile(r"==> [\w.-]+: (.+)|    [\w.-]+: (parbake: .+)")
_PART = re.compile(r"([a-z]{2,}(?:-[a-z0-9]+)+):(ami-[0-9a-f]+)")
_UNREADABLE = "see the output of packer above; `packer build` in the exported folder shows more"
_WRAPPED = "is PACKER_CONFIG or a wrapper of packer in the way?"
_INSTALL = "install it from developer.hashicorp.com/packer/install (Debian has no package), or write `builder: ec2`"


class PackerBuilder(RemoteBuilder):
    """Runs Packer where it is installed; ``fresh`` bakes what exists already, ``verify`` launches what came of it."""

    def __init__(self, bakefile: Bakefile, *, verify: bool = True, fresh: bool = False) -> None:
        self._bakefile, self._verify, self._fresh = bakefile, verify, fresh

    @override
    @contextmanager
    def opened(self, plan: Plan, ingredients: Ingredients) -> Iterator[_Run]:
        """Open the steps to the plan's AMI, also in the regions to copy to. Packer cleans up after itself.

        They raise EnvironmentProblem (no packer), CommandFailed with the end of what Packer said, DeadlineExceeded, and
        what AWS answers as AwsError, AwsNoAccess, AwsLimit.
        """
        if self._verify:
            ec2.refuse_unprovable(plan, self._bakefile.aws, ingredients)
        region = aws.client("ec2", self._bakefile.aws.region or "").region
        yield _Run(self._bakefile, plan, ingredients, region, verifies=self._verify, fresh=self._fresh)


class _Run:
    """One run's work on one plan."""

    def __init__(
        self, bakefile: Bakefile, plan: Plan, ingredients: Ingredients, region: str, *, verifies: bool, fresh: bool
    ) -> None:
        self.bakefile, self.plan, self.ingredients, self.region = bakefile, plan, ingredients, region
        self.verifies, self.fresh = verifies, fresh
        run_id = os.urandom(4).hex()
        self.stamp = aws.Stamp(plan.key, run_id, plan.name, extra=bakefile.aws.tags)
        self.name = f"{plan.name}-{plan.key[:12]}" + (f"-{run_id}" if fresh else "")

    def build(self) -> Mapping[str, Any]:
        """Return the AMI of an earlier run, or let Packer make one."""
        found = "" if self.fresh else _made_before(self.plan, self.region)
        if found:
            self.ingredients.events.note(f"{found} exists already")
        else:
            _need_packer()
            found = self._bake()
        return _describe(self.region, found)

    def verify(self, made: Mapping[str, Any]) -> Verdict | None:
        """Launch it once, unless that is not asked for."""
        if not self.verifies:
            return None
        return ec2.prove(made, self.plan, self.bakefile.aws, self.ingredients, fresh=self.fresh)

    def publish(self, made: Mapping[str, Any], verdict: Verdict | None) -> Publication:
        """Copy and share it; what failed is kept where it is."""
        amis = Amis(self.bakefile.aws, self.stamp, self.name, self.ingredients.events, fresh=self.fresh)
        if verdict and not verdict.passed:
            published = {self.region: amis.published(made)}
        else:
            published = amis.spread(self.region, made, verified=verdict.verified_at if verdict else "")
        return Publication(published, size=_size(published), verdict=verdict)

    def _bake(self) -> str:
        """Let Packer make the AMI of one region; return its id."""
        plan, region, work, events = self.plan, self.region, self.ingredients.work, self.ingredients.events
        folder = work / "template"
        template = packer.folder(self._alone, plan.all_images, size=plan.size)
        for warning in template.warnings:
            events.warn(warning)
        values = self._values(folder)
        _write(folder, {**template.files, packer.VALUES: packer.values_text(values)})
        with events.stage("packer-init", "Let Packer fetch its plugins, and check the template"):
            _call(["packer", "init", "."], folder)
            _call(["packer", "validate", "."], folder)
        limit = float(values["TIME_LIMIT_MINUTES"]) * 60 + _AROUND_SECONDS
        with events.stage("packer-build", f"Let Packer make {values['AMI_NAME']}"):
            _build(folder, work / "packer.log", limit, events)
        try:
            text = (folder / _MANIFEST).read_text()
        except FileNotFoundError as error:
            raise ParbakeError("packer succeeded, but wrote no manifest", hint=_WRAPPED) from error
        made = artefacts(text, key=plan.key)
        if region not in made:
            raise ParbakeError(f"packer made an AMI in {', '.join(made)}, and not in {region}", hint=_WRAPPED)
        return made[region]

    @property
    def _alone(self) -> Bakefile:
        """The Bakefile without what becomes of an AMI."""
        left = {"copy_to": (), "share_with": (), "deprecate_after": None, "fast_snapshot_restore": None}
        return self.bakefile.model_copy(update={"aws": self.bakefile.aws.model_copy(update=left)})

    def _values(self, folder: Path) -> dict[str, Any]:
        plan = self.plan
        base = _describe(self.region, plan.base.identity)
        tags = self.stamp.tags("image", kind=ARTEFACT, name=self.name)
        values = packer.variables(self._alone, plan.all_images, size=plan.size)
        values.pop("SOURCE_AMI_PARAMETER", None)
        return {
            **values,
            "AMI_NAME": self.name,
            "REGION": self.region,
            "SOURCE_AMI": plan.base.identity,
            "SOURCE_AMI_OWNERS": [base["OwnerId"]],
            "ROOT_DEVICE": base.get("RootDeviceName") or values["ROOT_DEVICE"],
            "TAGS": tags,
            "RUN_TAGS": self.stamp.tags("packer"),
            "KEY": plan.key,
            "MANIFEST": str(folder / _MANIFEST),
        }


def _need_packer() -> None:
    if run.find("packer") is None:
        raise EnvironmentProblem("packer is not installed", hint=_INSTALL)


def _environment() -> dict[str, str]:
    """Return the user's environment, in which Packer and its plugins look for credentials and settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PARBAKE_")}
    return {**kept, "CHECKPOINT_DISABLE": "1", "PACKER_NO_COLOR": "1"}


def _call(command: list[str], folder: Path) -> None:
    run.run(command, cwd=folder, env=_environment(), timeout=_CHECK_SECONDS)


def _build(folder: Path, log: Path, seconds: float, events: Events) -> None:
    """Run ``packer build``, tell its steps, and give it time to clean up when it is stopped."""
    log.touch()
    deadline = run.Deadline(seconds, "packer build")
    with run.Process(["packer", "build", "-color=false", str(folder)], log=log, env=_environment()) as process:
        try:
            with log.open(errors="replace") as lines:
                while process.alive:
                    _tell(lines, events)
                    deadline.sleep(_LOOK_SECONDS)
                _tell(lines, events)
        except BaseException:
            events.note("waiting for Packer to clean up")
            process.stop(grace=_CLEANUP_SECONDS)
            raise
    if process.code:
        raise CommandFailed(
            f"packer build ended with code {process.code}\n{process.tail}", code=process.code, output=process.tail,
            hint="Packer has cleaned up; fix what it reports, and run the same command again",
        )  # fmt: skip


def _tell(lines: Iterator[str], events: Events) -> None:
    for line in lines:
        if match := _STEP.match(line):
            events.note((match.group(1) or match.group(2)).strip())


def _made_before(plan: Plan, region: str) -> str:
    """Return the available AMI of a plan's key, the newest; empty: there is none."""
    filters = [*aws.mine(key=plan.key, managed=ARTEFACT), {"Name": "state", "Values": ["available"]}]
    images = aws.client("ec2", region).pages("describe_images", "Images", Owners=["self"], Filters=filters)
    newest = max(images, key=lambda image: str(image.get("CreationDate", "")), default=None)
    return str(newest["ImageId"]) if newest else ""


def _describe(region: str, image: str) -> Mapping[str, Any]:
    images = aws.client("ec2", region).describe_images(ImageIds=[image])["Images"]
    if not images:
        raise AwsNotFound(f"there is no AMI {image} in {region}")
    described: Mapping[str, Any] = images[0]
    return described


def _size(published: Mapping[str, Published]) -> int:
    first = next(iter(published.values()))
    return max((snapshot.size for snapshot in first.snapshots), default=0)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        with room_for(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def artefacts(text: str, *, key: str = "") -> dict[str, str]:
    """Return the AMI of each region that the last run made; raises ParbakeError when the text does not say.

    ``text`` is what the manifest post-processor wrote. With ``key``, a build that carries another key (an earlier one
    in the same file) is not it. Pure.
    """
    try:
        document: Any = json.loads(text)
        builds = [
            build
            for build in document["builds"]
            if build.get("packer_run_uuid") == document["last_run_uuid"]
            and (not key or (build.get("custom_data") or {}).get("key") == key)
        ]
        found = {region: ami for build in builds for region, ami in _parts(str(build["artifact_id"]))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ParbakeError(f"Packer's manifest cannot be read: {error!r}", hint=_UNREADABLE) from error
    if not found:
        raise ParbakeError("Packer's manifest names no AMI of its last run", hint=_UNREADABLE)
    return found


def _parts(artifact: str) -> list[tuple[str, str]]:
    matches = [_PART.fullmatch(part) for part in artifact.split(",")]
    if not all(matches):
        raise ValueError(artifact)
    return [(match.group(1), match.group(2)) for match in matches if match]
