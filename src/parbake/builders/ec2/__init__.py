"""The EC2 builder: an instance of the base AMI bakes by itself and stops; the AMI of it is launched once to prove it.

A volume's bake fills the instance's second disk; the snapshot of that is proven on an instance of the same base.

Nothing can get into the builder: no key pair, no inbound rule, no agent; it reports on its serial console. The
exception is Bottlerocket, whose agent takes commands (``bottlerocket.py``). Everything carries the content key: the
next run resumes a killed one from what is there. Whatever is temporary is removed at the end, however it ends. An
older AMI is never touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, override

from parbake import aws
from parbake.aws.leftovers import LeftoverFilter, remove, terminate
from parbake.bakefile import AwsSection
from parbake.bakefile.bases import AmiSource
from parbake.builders import Ingredients, Publication, RemoteBuilder
from parbake.builders.ec2 import bottlerocket
from parbake.builders.ec2.errors import SpotReclaimed
from parbake.builders.ec2.image import Amis
from parbake.builders.ec2.launch import DataVolume, Launcher, LaunchSpec
from parbake.builders.ec2.volume import Volumes, data_device, refuse
from parbake.builders.guest import Console, Mode, hosts, logs_in, user_data
from parbake.core.errors import AwsError, BakeFailed, DeadlineExceeded, InputError, ParbakeError
from parbake.core.model import GIB, Family, Plan, RegistryOptions, Verdict
from parbake.core.timestamps import timestamp
from parbake.verify import within
from parbake.verify.company import cautions

_LOGINS = {"docker", "environment"}  # of a registry's `credentials`
_VERIFY_LIMIT = 1800.0  # seconds; each image's own time limit comes on top


class Ec2Builder(RemoteBuilder):
    """Bakes on an instance. ``limit`` is the guest's own, in seconds; ``fresh`` bakes what exists already."""

    def __init__(
        self,
        settings: AwsSection,
        registries: Mapping[str, RegistryOptions],
        *,
        limit: float,
        verify: bool = True,
        fresh: bool = False,
    ) -> None:
        self._settings, self._registries = settings, registries
        self._limit, self._verify, self._fresh = limit, verify, fresh

    @override
    @contextmanager
    def opened(self, plan: Plan, ingredients: Ingredients) -> Iterator[_Run]:
        """Open the steps to the plan's AMI or snapshot.

        They raise BakeFailed with the guest's own log, AwsLimit, AwsNoAccess, AwsNotFound, DeadlineExceeded.
        Raises InputError for what no instance can bake.
        """
        _need_registries(plan, self._settings, self._registries)
        refuse(plan, self._settings)
        for host in hosts(plan):
            if self._registries.get(host, RegistryOptions()).mirrors:
                ingredients.events.warn(f"{host}: instances pull from the registry itself, not from its mirrors")
        run = _Run(
            self._settings, self._registries, plan, ingredients, self._limit, fresh=self._fresh, verifies=self._verify
        )
        if self._verify:
            run.proof("")  # what cannot be asked for is refused before anything is made
        try:
            yield run
        finally:
            run.clean(images=run.done)


def prove(
    image: Mapping[str, Any], plan: Plan, settings: AwsSection, ingredients: Ingredients, *, fresh: bool = False
) -> Verdict:
    """Launch an AMI of a plan once that somebody else has made, and start its images; nothing temporary stays.

    One that was proven is not launched again, unless ``fresh``. Raises what the EC2 builder raises.
    """
    run = _Run(settings, {}, plan, ingredients, _VERIFY_LIMIT, fresh=fresh)
    try:
        return run.prove(image)
    finally:
        run.clean(images=False)


def refuse_unprovable(plan: Plan, settings: AwsSection, ingredients: Ingredients) -> None:
    """Raise InputError for a plan with more images than can be asked for."""
    _Run(settings, {}, plan, ingredients, _VERIFY_LIMIT, fresh=False).proof("")


def _need_registries(plan: Plan, settings: AwsSection, registries: Mapping[str, RegistryOptions]) -> None:
    """Refuse what no instance could pull, before one is paid for."""
    local = [image.reference for image in plan.all_images if image.layout]
    if local:
        raise InputError(
            f"{local[0]} is not in a registry, so no instance can pull it",
            hint="give it a name in a registry (ECR), so that it is pushed; or bake with `builder: ebs`",
        )
    with_login = [host for host in hosts(plan) if registries.get(host, RegistryOptions()).credentials in _LOGINS]
    if with_login:
        raise InputError(
            f"{with_login[0]} needs this machine's login, and parbake gives instances no secrets",
            hint="push the images to ECR, where its role logs in; or let this machine pull: `builder: ebs`",
        )
    private = [host for host in hosts(plan) if logs_in(host, registries)]
    if private and not settings.instance_profile:
        raise InputError(
            f"{private[0]} is private, and the instance has no role to log in with",
            hint="write `aws: {instance_profile: NAME}`; `parbake iam` prints the policy of its role",
        )


@dataclass
class _Run:
    """One run's work on one plan."""

    settings: AwsSection
    registries: Mapping[str, RegistryOptions]
    plan: Plan
    ingredients: Ingredients
    limit: float
    fresh: bool
    verifies: bool = True
    done: bool = False

    def __post_init__(self) -> None:
        self.token = self.ingredients.claim.run
        self.ec2 = aws.client("ec2", self.settings.region or "")
        self.region = self.ec2.region
        self.events = self.ingredients.events
        self.launcher = Launcher(self.ec2, self.settings, self.plan.platform, self.events)
        self._stamped()

    def _stamped(self) -> None:
        hours = (self.limit * 2 + 6 * 3600) / 3600
        began = self.ingredients.claim.began
        self.stamp = aws.Stamp(self.plan.key, self.token, self.plan.name, hours, self.settings.tags, began)
        name = f"{self.plan.name}-{self.plan.key[:12]}" + (f"-{self.token}" if self.fresh else "")
        common = (self.settings, self.stamp, name, self.events)
        volume = self.plan.artefact.kind == "volume"
        family: Family = bottlerocket.FAMILY if self.own_volume else ""
        self.results: Amis | Volumes = (
            Volumes(*common, data_device(self.source), family) if volume else Amis(*common, fresh=self.fresh)
        )

    @cached_property
    def source(self) -> aws.SourceImage:
        """The AMI that bakes (and, with a volume, proves). Raises InputError for one that cannot."""
        found = aws.find_source(AmiSource(id=self.plan.base.identity), self.plan.platform, self.region)
        if found.is_bottlerocket:
            bottlerocket.refuse(self.plan, self.registries, self.settings.instance_profile or "")
        return found

    @cached_property
    def own_volume(self) -> bool:
        """Whether the volume is Bottlerocket's own data volume."""
        return self.plan.artefact.kind == "volume" and self.source.is_bottlerocket

    # -- bake

    def build(self) -> dict[str, Any]:
        """Make sure that the plan's AMI or snapshot is there; return its description."""
        what = "a snapshot" if self.plan.artefact.kind == "volume" else "an AMI"
        found = None if self.fresh else self.results.find(self.region)
        if found is None:
            with self.events.stage("guest", "Bake on an instance"):
                instance = self.baked_instance()
            with self.events.stage("image", f"Make {what} of it"):
                made = self.results.create(self.region, instance)
                return self.results.wait(self.region, made)
        with self.events.stage("image", f"Wait for {what} of an earlier run"):
            return self.results.wait(self.region, self.results.id_of(found))

    def baked_instance(self) -> str:
        """Return an instance that has baked and is stopped: that of an earlier run, or a new one."""
        on_demand = False
        while True:
            instance = None if self.fresh else self.launcher.find(self.plan.key, "builder")
            if instance and self.own_volume and instance["State"]["Name"].startswith("stop"):
                # It reports nothing by itself, so nobody knows how far it is.
                terminate(self.ec2, [instance], self.events)
                instance = None
            if instance:
                self.token = aws.as_dict(instance)[aws.RUN]
                self._stamped()
                self.events.note(f"resuming with {instance['InstanceId']} of an earlier run")
            else:
                launched = self._launched(on_demand=on_demand)
                if launched is None:
                    continue
                instance = launched
            identity, console = instance["InstanceId"], Console(self.token)
            try:
                tail = self.follow(identity, console, "bake", self.limit)
                for warning in console.warnings:
                    self.events.warn(f"guest: {warning}")
                console.judge(self.plan.all_images, tail)
                if self.own_volume:
                    self.ssm.stop(identity)
                return str(identity)
            except SpotReclaimed as error:
                if on_demand or self.settings.purchase != "spot-first":
                    raise
                self.events.warn(f"{error.message}: retrying on demand")
                on_demand = True
                remove(self._leftovers(self.region), self.region, self.events)
                self.launcher = Launcher(self.ec2, self.settings, self.plan.platform, self.events)

    def _launched(self, *, on_demand: bool) -> dict[str, Any] | None:
        """Launch an instance. None: look once more, since the run that was taken over has launched one.

        That has ended by now, or no list shows it yet; where none does in time, this becomes another run.
        """
        try:
            instance = self.launcher.launch(self._launch_spec(), on_demand=on_demand)
            if instance["State"]["Name"] not in {"shutting-down", "terminated"}:
                return instance
        except AwsError as error:
            if error.code != "IdempotentParameterMismatch":
                raise
            with suppress(DeadlineExceeded):
                aws.wait("The instance of the run before", self._look, seconds=aws.UNKNOWN_SECONDS, events=self.events)
                return None
        self.token = os.urandom(6).hex()
        self._stamped()
        return None

    def _look(self) -> aws.Observation:
        return aws.Observation(self.launcher.find(self.plan.key, "builder") is not None)

    @property
    def ssm(self) -> bottlerocket.SsmRunner:
        """What reaches instances of Bottlerocket."""
        return bottlerocket.SsmRunner(self.ec2, self.events, self.launcher.look)

    def follow(self, identity: str, console: Console, mode: Mode, limit: float) -> str:
        """Follow a bake or a proof to its end; return what was said last."""
        if self.own_volume:
            return self.ssm.follow(identity, self.plan, console, mode, limit)
        return self.launcher.follow(identity, console, limit)

    def _launch_spec(self) -> LaunchSpec:
        source, data_volume, data = self.source, None, bottlerocket.USER_DATA
        if isinstance(self.results, Volumes):
            data_volume = DataVolume(self.results.device, max(self.plan.size, source.size_of(self.results.device)))
        if not source.is_bottlerocket:
            data = user_data(self.plan, self.token, "bake", limit=self.limit, registries=self.registries)
        return LaunchSpec(
            role="builder",
            image=source.id,
            root_device=source.root_device,
            user_data=data,
            stamp=self.stamp,
            size=0 if data_volume else self.plan.size,
            profile=self.settings.instance_profile or "",
            data_volume=data_volume,
        )

    # -- verify

    def verify(self, made: Mapping[str, Any]) -> Verdict | None:
        """Prove it, unless that is not asked for."""
        return self.prove(made) if self.verifies else None

    def prove(self, made: Mapping[str, Any]) -> Verdict:
        """Launch the AMI, or the base with the volume, once; start the images without a pull; return the verdict."""
        known = aws.as_dict(made).get(aws.VERIFIED)
        if known and not self.fresh and not self.ingredients.prove_anew:
            return Verdict(passed=True, accelerator="ec2", verified_at=known)
        run = os.urandom(6).hex()
        stamp = aws.Stamp(self.plan.key, run, self.plan.name, self.stamp.hours, self.settings.tags)
        image, root_device, data_volume = self.results.id_of(made), str(made.get("RootDeviceName")), None
        if isinstance(self.results, Volumes):
            data_volume = DataVolume(self.results.device, int(made["VolumeSize"]) * GIB, image)
            image, root_device = self.source.id, self.source.root_device
        spec = LaunchSpec(
            role="verifier",
            image=image,
            root_device=root_device,
            user_data=self.proof(run),
            stamp=stamp,
            profile=(self.settings.instance_profile or "") if self.own_volume else "",
            data_volume=data_volume,
        )
        with self.events.stage("verify", "Launch it and start its images"):
            instance = self.launcher.launch(spec)
            console = Console(run)
            tail = self.follow(instance["InstanceId"], console, "verify", self._proof_limit)
            verdict = _verdict(self.plan, console, tail)
            terminate(self.ec2, [instance], self.events)
            self.launcher.launched.remove(instance)
        return verdict

    def proof(self, run: str) -> bytes:
        """Return the user data of a machine that proves the images; raises InputError where they are too many."""
        if self.own_volume:
            return bottlerocket.USER_DATA
        return user_data(self.plan, run, "verify", limit=self._proof_limit, registries={})

    @property
    def _proof_limit(self) -> float:
        return _VERIFY_LIMIT + within.longest(self.plan.startups.values())

    # -- publish

    def publish(self, made: Mapping[str, Any], verdict: Verdict | None) -> Publication:
        """Copy and share it; what failed is kept where it is: its record says so, and people want to look into it."""
        if verdict and not verdict.passed:
            self.results.promote(self.region, made, verified="")
            published = {self.region: self.results.published(made)}
        else:
            published = self.results.spread(self.region, made, verified=verdict.verified_at if verdict else "")
        self.done = True
        return Publication(published, size=self.plan.size, verdict=verdict)

    def clean(self, *, images: bool) -> None:
        """Remove what was temporary. What cannot be removed now stays tagged, for ``parbake clean --aws``.

        Without ``images``, AMIs that are being made stay as they are: the same command goes on with them.
        """
        for region in (self.region, *self.settings.copy_to):
            try:
                remove(self._leftovers(region, images=images), region, self.events)
            except ParbakeError as error:
                self.events.warn(f"could not remove everything in {region}: {error.message}; run `parbake clean --aws`")

    def _leftovers(self, region: str, *, images: bool = True) -> LeftoverFilter:
        if region != self.region:
            return LeftoverFilter(key=self.plan.key, images=images)
        here = self.launcher
        return LeftoverFilter(key=self.plan.key, images=images, instances=here.launched, groups=here.made_groups)


def _verdict(plan: Plan, console: Console, tail: str) -> Verdict:
    problems: tuple[str, ...] = ()
    try:
        console.judge(plan.images, tail, mode="verify")
    except BakeFailed as error:
        problems = (error.message,)
    images = tuple(
        within.proof(
            str(image.reference),
            image.target.digest,
            console.proved.get(image.names[0]),
            plan.startups.get(str(image.reference)),
        )
        for image in plan.all_images
    )
    return Verdict(
        passed=not problems and not any(each.problems for each in images),
        accelerator="ec2",
        runtime=next((str(said["runtime"]) for said in console.proved.values() if "runtime" in said), ""),
        images=images,
        problems=problems,
        warnings=(*console.warnings, *cautions(images)),
        verified_at=timestamp(),
    )
