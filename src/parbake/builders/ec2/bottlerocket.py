"""Bottlerocket: its own containerd fills its data volume, and Systems Manager carries the script there.

Its user data is settings and no script, and it has no shell. The control container runs the agent of Systems Manager;
from there ``apiclient exec admin sheltie`` runs a program on the host. What is run is ``node/bottlerocket.sh``, step by
step, with the images' part of ``node/guest.sh``. Sources: Bottlerocket's documentation, "Host containers", and its
``apiclient`` (exec mode), ``host-ctr``; AWS's sample ``bottlerocket-images-cache`` (the same way to a snapshot);
Systems Manager API reference, SendCommand and GetCommandInvocation (24,000 characters of output come back).
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from parbake import aws
from parbake.builders.ec2.errors import ended
from parbake.builders.guest import Console, Mode, image_calls, sections
from parbake.core.errors import AwsError, BakeFailed, DeadlineExceeded, InputError
from parbake.core.events import Events
from parbake.core.families import BOTTLEROCKET
from parbake.core.model import Family, Image, Plan, RegistryOptions, Startup
from parbake.core.run import Deadline
from parbake.verify import within

FAMILY: Family = "Bottlerocket"
DEVICE = BOTTLEROCKET.data
# No cluster is named, so that the kubelet has none to join.
USER_DATA = b"[settings.host-containers.admin]\nenabled = true\n\n[settings.host-containers.control]\nenabled = true\n"
# Of guest.sh: what it says and logs with (the beginning, without a name), and what it does with images.
_OF_GUESTS = {"", "images"}
_DOCUMENT = "AWS-RunShellScript"
_POLL = 5.0  # seconds
_AGENT_LIMIT = 900.0  # seconds from the launch until the agent has to answer
_DELIVERY = 300  # seconds for a command to reach an agent that answers
_STOP_LIMIT = 900.0  # seconds for a shutdown
_SHORT = 600.0  # seconds for a step that pulls nothing
_NUMBERS = 1000  # lines that one step may say
_OVER = {"Success", "Failed", "Cancelled", "TimedOut"}
_AGENT_HINT = (
    "Systems Manager is the only way to Bottlerocket: the role of `aws.instance_profile` needs what `parbake iam` "
    "prints (or AmazonSSMManagedInstanceCore), and the subnet a way to ssm, ssmmessages and ec2messages, and to the "
    "registry of Bottlerocket's host containers"
)
_LATE_HINT = "raise `time_limit` in the Bakefile if it only needs longer"


def refuse(plan: Plan, registries: Mapping[str, RegistryOptions], profile: str) -> None:
    """Refuse what Bottlerocket cannot do or parbake has no way to. Raises InputError."""
    if plan.artefact.kind != "volume":
        raise InputError(
            "Bottlerocket does not boot a modified AMI",
            hint="write `artefact: {kind: volume}`: the images go into its data volume",
        )
    if not profile:
        raise InputError(
            "Bottlerocket can only be reached through Systems Manager, and the instance has no role for it",
            hint="write `aws: {instance_profile: NAME}`; `parbake iam` prints the policy of its role",
        )
    special = [host for host, each in registries.items() if each.ca or each.plain_http]
    if special:
        raise InputError(
            f"{special[0]}: Bottlerocket pulls images only over TLS from a publicly trusted authority",
            hint="push the images to ECR, and name them there",
        )


def steps(plan: Plan, run: str, mode: Mode, limit: float) -> Iterator[tuple[str, float, str]]:
    """Yield the steps of a bake or proof: what each is, how long it may take (seconds), and its script."""
    number = 0
    guest = [line for section, line in sections("guest.sh") if section in _OF_GUESTS]
    own = list(sections("bottlerocket.sh"))
    before = [line for section, line in own if section != "main"]
    main = [line for section, line in own if section == "main"]

    def script(step: str, *body: str, last: bool = False) -> str:
        nonlocal number
        values = {
            "RUN": run,
            "MODE": mode,
            "STEP": step,
            "NUMBER": str(number),
            "LAST": str(int(last)),
            "LIMIT": str(math.ceil(limit)),
            "PLATFORM": str(plan.platform),
            "KEEP_LAYERS": str(int(plan.keep_layers)),
        }
        number += _NUMBERS
        head = [f"PARBAKE_{name}={shlex.quote(value)}" for name, value in values.items()]
        return "\n".join([*head, *guest, *before, *body, *main]) + "\n"

    yield "reach the host", _SHORT, script("prepare")
    if mode == "bake":
        for image, call in zip(plan.all_images, image_calls(plan, in_registries=True), strict=True):
            yield f"pull {image.reference}", limit, script("images", "images() {", call, "}")
        yield "seal", _SHORT, script("finish", last=True)
        return
    for image in plan.all_images:
        seconds, last = within.longest([image.startup or Startup()]) + _SHORT, image == plan.all_images[-1]
        yield f"start {image.reference}", seconds, script("subjects", *_subject(image, plan), last=last)


def _subject(image: Image, plan: Plan) -> list[str]:
    """Return a function that proves an image, and says what of its ``startup`` is not looked at."""
    startup, up = image.startup or Startup(), "running"
    seconds, said = math.ceil(startup.watch), ""
    if startup.up.kind == "exit":
        up, seconds = "exit", math.ceil(startup.timeout)
    elif startup.up.kind == "mounted":
        up = "mounted"
    elif startup.up.kind == "running":
        seconds = max(seconds, math.ceil(startup.up.seconds))
    else:
        said = f"its startup asks for {startup.up.kind}: on Bottlerocket it only has to run for {seconds} s"
    options = _options(startup)
    command = [*startup.command, *startup.args]  # in the place of the image's own
    if startup.up.kind == "mounted":
        command = [startup.up.path]
    reason = ""
    if startup.args and not startup.command:
        reason = "has arguments for the image's own entrypoint"  # which ctr would leave out
    elif startup.files:
        reason = "has files"  # which nothing could put there: the host has no shell
    elif not all(command) or any("\n" in word for word in (*options, *command)):
        reason = "has an empty argument, or one of several lines"
    if reason:
        said = f"its startup {reason}, so it is not started on Bottlerocket: only the store was checked"
    if reason or image == plan.sandbox:
        up = "-"
    lines = ["\n".join(options), "\n".join(command)]
    call = shlex.join(["subject", image.target.digest, up, str(seconds), *lines, *image.names])
    warning = [shlex.join(["say", "warn", f"{image.reference}: {said}"])] if said and image != plan.sandbox else []
    return ["subjects() {", call, *warning, "}"]


def _options(startup: Startup) -> list[str]:
    """Return what ``ctr run`` is told of a startup."""
    options = [word for key, value in startup.env.items() for word in ("--env", f"{key}={value}")]
    options += ["--user", startup.user] if startup.user else []
    options += ["--cwd", startup.workdir] if startup.workdir else []
    options += ["--read-only"] if startup.read_only else []
    for path in startup.writable:
        options += ["--mount", f"type=tmpfs,src=tmpfs,dst={path},options=mode=1777"]
    return options


@dataclass(frozen=True, slots=True)
class SsmRunner:
    """Runs scripts on instances of Bottlerocket; ``look`` describes an instance (None: not known yet)."""

    ec2: aws.Client
    events: Events
    look: Callable[[str], dict[str, Any] | None]

    def follow(self, identity: str, plan: Plan, console: Console, mode: Mode, limit: float) -> str:
        """Do a bake or a proof on an instance; return what was said last. What the script says goes to ``console``.

        A step that fails is the last. Raises what ``refusals.ended`` makes of an instance that is taken away,
        DeadlineExceeded (the agent, a step), AwsError.
        """
        self._wait_for_agent(identity)
        deadline, words = Deadline(limit, f"the bake on {identity}"), ""
        for what, seconds, script in steps(plan, console.run, mode, limit):
            self.events.note(f"guest: {what}")
            words = self._run(identity, script, what, min(seconds, max(deadline.left, 30.0)))
            before = console.stage
            console.read(words)
            if console.over or console.stage == before:  # a step that says nothing has not begun
                break
        return words

    def stop(self, identity: str) -> None:
        """Stop an instance, so that its volume holds all that was written."""
        self.ec2.stop_instances(InstanceIds=[identity])

        def look() -> aws.Observation:
            state = (self.look(identity) or {"State": {"Name": "unknown"}})["State"]["Name"]
            return aws.Observation(state == "stopped", state, failed=state if state == "terminated" else "")

        hint = "run the same command again"
        aws.wait(f"Stop {identity}", look, seconds=_STOP_LIMIT, events=self.events, hint=hint)

    def _wait_for_agent(self, identity: str) -> None:
        ssm = aws.client("ssm", self.ec2.region)

        def look() -> aws.Observation:
            self._see_that_it_runs(identity)
            asked = [{"Key": "InstanceIds", "Values": [identity]}]
            found = list(ssm.pages("describe_instance_information", "InstanceInformationList", Filters=asked))
            state = found[0]["PingStatus"] if found else "no agent"
            return aws.Observation(state == "Online", state)

        what = f"Wait for the agent of Systems Manager on {identity}"
        aws.wait(what, look, seconds=_AGENT_LIMIT, events=self.events, hint=_AGENT_HINT)

    def _run(self, identity: str, script: str, what: str, limit: float) -> str:
        """Run a script and return what it said, and at the end what it complained of. Raises DeadlineExceeded."""
        ssm = aws.client("ssm", self.ec2.region)
        sent = ssm.send_command(
            InstanceIds=[identity],
            DocumentName=_DOCUMENT,
            Comment=f"parbake: {what}"[:100],
            TimeoutSeconds=_DELIVERY,
            Parameters={"commands": [script], "executionTimeout": [str(math.ceil(limit))]},
        )
        command = {"CommandId": sent["Command"]["CommandId"], "InstanceId": identity}

        def look() -> aws.Observation:
            self._see_that_it_runs(identity)
            try:
                answer = ssm.get_command_invocation(**command)
            except AwsError as error:
                if error.code != "InvocationDoesNotExist":
                    raise
                return aws.Observation(False, "not known yet")  # eventually consistent
            return aws.Observation(answer["Status"] in _OVER, answer["Status"], value=answer)

        title = f"On {identity}: {what}"
        patience = limit + _DELIVERY + 60.0
        answer = aws.wait(title, look, seconds=patience, events=self.events, hint=_LATE_HINT, longest_pause=_POLL)
        if answer["Status"] == "TimedOut":
            raise DeadlineExceeded(f"{title}: {answer['StatusDetails']} after {limit:.0f} s", hint=_LATE_HINT)
        return f"{answer['StandardOutputContent']}\n{answer['StandardErrorContent']}".rstrip() + "\n"

    def _see_that_it_runs(self, identity: str) -> None:
        """Raise what has become of an instance that runs no more."""
        instance = self.look(identity)
        if instance and instance["State"]["Name"] not in {"pending", "running"}:
            reason = instance.get("StateReason", {}).get("Code", "")
            raise ended(identity, reason) or BakeFailed(f"{identity} switched itself off", hint=_LATE_HINT)
