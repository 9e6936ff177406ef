"""The Packer builder: writes the template with the plan's own values, runs ``packer``, and reads its manifest.

Packer checks nothing of what it makes, so the AMI is launched once, as the EC2 builder does, to prove its images.

What Packer makes on the way carries parbake's tags, and so does the AMI: a run that finds the AMI of its key takes it.
Packer is asked to end (SIGTERM) and given time for its own clean-up; should it be killed with parbake, the instance
shuts itself down and is removed by that, and ``run_tags`` name the rest.
Sources: Packer's commands init, validate and build; the Amazon plugin's artifact (see ``parbake.packer``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from parbake import aws, packer, run
from parbake.aws.tags import ARTEFACT, VERIFIED, as_list
from parbake.bakefile import Bakefile
from parbake.builders import Ingredients, Publication, ec2
from parbake.errors import AwsNotFound, CommandFailed, EnvironmentProblem, ParbakeError
from parbake.events import Events
from parbake.model import GIB, Plan, Published, Snapshot, Verdict
from parbake.workspace import room_for

_MANIFEST = "manifest.json"
_CHECK_SECONDS = 600.0
# Beyond the guest's own limit: the instance's start, and the snapshot, for which the template waits up to four hours.
_AROUND_SECONDS = 5 * 3600.0
# Packer stops and removes what it made, and waits for that.
_CLEANUP_SECONDS = 900.0
_LOOK_SECONDS = 0.5
_STEP = re.compile(r"==> [\w.-]+: (.+)|    [\w.-]+: (parbake: .+)")
_INSTALL = "install it from developer.hashicorp.com/packer/install (Debian has no package), or write `builder: ec2`"


class PackerBuilder:
    """Runs Packer where it is installed; ``fresh`` bakes what exists already, ``verify`` launches what came of it."""

    def __init__(self, bakefile: Bakefile, *, verify: bool = True, fresh: bool = False) -> None:
        self._bakefile, self._verify, self._fresh = bakefile, verify, fresh

    def bake_remotely(self, plan: Plan, ingredients: Ingredients) -> Publication:
        """Make sure that the plan's AMI exists, also in the regions to copy to, and is proven.

        Raises EnvironmentProblem (no packer), CommandFailed with the end of what Packer said, DeadlineExceeded, and
        what AWS answers as AwsFault, AwsNoAccess, AwsLimit.
        """
        if self._verify:
            ec2.refuse_unprovable(plan, self._bakefile.aws, ingredients)
        events, region = ingredients.events, aws.client("ec2", self._bakefile.aws.region or "").region
        regions = (region, *self._bakefile.aws.copy_to)
        found = {} if self._fresh else _made_before(plan, regions)
        if set(found) != set(regions):
            _need_packer()
            found = self._bake(plan, region, ingredients)
        else:
            events.note(f"{', '.join(found.values())} exists already")
        published = {each: _published(each, found[each]) for each in sorted(found, key=lambda each: each != region)}
        verdict = self._proven(plan, region, published, ingredients) if self._verify else None
        return Publication(published, size=_size(published), verdict=verdict)

    def _proven(self, plan: Plan, region: str, published: Mapping[str, Published], ingredients: Ingredients) -> Verdict:
        """Launch the AMI of the first region once, unless its tag says that it was; write the tag on all of them."""
        image = _describe(region, published[region].image)
        verdict = ec2.prove(image, plan, self._bakefile.aws, ingredients, fresh=self._fresh)
        if verdict.passed and aws.as_dict(image).get(VERIFIED) != verdict.verified_at:
            for place, there in published.items():
                ids = [there.image, *(each.id for each in there.snapshots)]
                aws.client("ec2", place).create_tags(Resources=ids, Tags=as_list({VERIFIED: verdict.verified_at}))
        return verdict

    def _bake(self, plan: Plan, region: str, ingredients: Ingredients) -> dict[str, str]:
        events, folder = ingredients.events, ingredients.work / "template"
        made = packer.folder(self._bakefile, plan.all_images, size=plan.size)
        for warning in made.warnings:
            events.warn(warning)
        values = self._values(plan, region, folder)
        _write(folder, {**made.files, packer.VALUES: packer.assignments(values)})
        with events.stage("packer-init", "Let Packer fetch its plugins, and check the template"):
            _call(["packer", "init", "."], folder)
            _call(["packer", "validate", "."], folder)
        limit = float(values["TIME_LIMIT_MINUTES"]) * 60 + _AROUND_SECONDS
        with events.stage("packer-build", f"Let Packer make {values['AMI_NAME']}"):
            _build(folder, ingredients.work / "packer.log", limit, events)
        try:
            text = (folder / _MANIFEST).read_text()
        except FileNotFoundError as error:
            raise ParbakeError(
                "packer ended well and wrote no manifest", hint="is PACKER_CONFIG or a wrapper of packer in the way?"
            ) from error
        return packer.artefacts(text, key=plan.key)

    def _values(self, plan: Plan, region: str, folder: Path) -> dict[str, Any]:
        settings, run_id = self._bakefile.aws, os.urandom(4).hex()
        name = f"{plan.name}-{plan.key[:12]}" + (f"-{run_id}" if self._fresh else "")
        base = _describe(region, plan.base.identity)
        stamp = aws.Stamp(plan.key, run_id, plan.name, extra=settings.tags)
        tags = stamp.tags("image", kind=ARTEFACT, name=name)
        values = packer.variables(self._bakefile, plan.all_images, size=plan.size)
        values.pop("SOURCE_AMI_PARAMETER", None)
        return {
            **values,
            "AMI_NAME": name,
            "REGION": region,
            "SOURCE_AMI": plan.base.identity,
            "SOURCE_AMI_OWNERS": [base["OwnerId"]],
            "ROOT_DEVICE": base.get("RootDeviceName") or values["ROOT_DEVICE"],
            "TAGS": tags,
            "RUN_TAGS": stamp.tags("packer"),
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
            events.note("waiting for Packer to remove what it made")
            process.stop(grace=_CLEANUP_SECONDS)
            raise
    if process.code:
        raise CommandFailed(
            f"packer build ended with code {process.code}\n{process.tail}", code=process.code, output=process.tail,
            hint="Packer has removed what it made; mend what it says, and run the same command again",
        )  # fmt: skip


def _tell(lines: Iterator[str], events: Events) -> None:
    for line in lines:
        if match := _STEP.match(line):
            events.note((match.group(1) or match.group(2)).strip())


def _made_before(plan: Plan, regions: tuple[str, ...]) -> dict[str, str]:
    """Return the available AMIs of a plan's key in regions, the newest of each."""
    found = {}
    for region in regions:
        filters = [*aws.mine(key=plan.key, managed=ARTEFACT), {"Name": "state", "Values": ["available"]}]
        images = list(aws.client("ec2", region).pages("describe_images", "Images", Owners=["self"], Filters=filters))
        if images:
            found[region] = str(max(images, key=lambda image: str(image.get("CreationDate", "")))["ImageId"])
    return found


def _describe(region: str, image: str) -> Mapping[str, Any]:
    images = aws.client("ec2", region).describe_images(ImageIds=[image])["Images"]
    if not images:
        raise AwsNotFound(f"there is no AMI {image} in {region}")
    described: Mapping[str, Any] = images[0]
    return described


def _published(region: str, image: str) -> Published:
    described = _describe(region, image)
    snapshots = tuple(
        Snapshot(
            id=each["Ebs"]["SnapshotId"],
            size=int(each["Ebs"].get("VolumeSize", 0)) * GIB,
            device=str(each.get("DeviceName", "")),
        )
        for each in described.get("BlockDeviceMappings", [])
        if each.get("Ebs", {}).get("SnapshotId")
    )
    return Published(image=image, snapshots=snapshots, account=str(described.get("OwnerId", "")))


def _size(published: Mapping[str, Published]) -> int:
    first = next(iter(published.values()))
    return max((snapshot.size for snapshot in first.snapshots), default=0)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        with room_for(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
