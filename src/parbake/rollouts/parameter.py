"""Parameters of Systems Manager: the value is an id, and the parameter's own history is the way back.

Facts: AWS Systems Manager user guide, "Using AMI IDs in parameters": with the data type ``aws:ec2:image`` the service
checks the id first, and the new version appears only then. Launch templates and Karpenter read such parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, override

from parbake.aws import Client, client
from parbake.bakefile.targets import SsmTarget
from parbake.core.errors import AwsError, AwsNotFound, InputError, TargetMissing, TargetMoved
from parbake.rollouts.protocol import (
    OWNER,
    Change,
    History,
    Offer,
    Rollout,
    RolloutProgress,
    TargetState,
    TargetStatus,
    already_back,
    names_in,
)

_BACK = f"{OWNER}: back from version "
_FROM = f"{OWNER}: "
_KEPT = "; its way back is version "


@dataclass(frozen=True, slots=True)
class ParameterVersion:
    """One version of a parameter."""

    version: int
    value: str
    description: str = ""

    @property
    def held(self) -> TargetState:
        """What it holds."""
        by_parbake = self.description.startswith(_FROM) and not self.description.startswith(_BACK)
        names = names_in(self.description.removeprefix(_FROM).partition(_KEPT)[0]) if by_parbake else ()
        if self.value.startswith("ami-"):
            return TargetState(images=[self.value], artefacts=names)
        if self.value.startswith("snap-"):
            return TargetState(snapshot=self.value, artefacts=names)
        return TargetState(label=self.value or "nothing", artefacts=names)


def decide(history: Sequence[ParameterVersion], offer: Offer, where: str) -> Change:
    """Decide the parameter's value, from its versions (oldest first, none: it is to be made). Pure."""
    if offer.image and offer.snapshot:
        raise InputError(f"{where} holds one id, and there are two", hint="give either the machine image or the volume")
    value = offer.image or offer.snapshot
    before = history[-1].held if history else TargetState(label="nothing")
    if history and history[-1].value == value:
        return Change(where, before, offer.held)
    kept = offer.way_back(before, "", f"{_KEPT}{way.version}" if (way := previous(history)) else None)
    payload = {
        "value": value,
        "description": f"{_FROM}{offer.name}{kept}",
        "version": len(history) and history[-1].version,
    }
    return Change(where, before, offer.held, f"-{before.image or before.snapshot or before.label}\n+{value}", payload)


def decide_rollback(history: Sequence[ParameterVersion], where: str) -> Change:
    """Decide how the parameter returns to the value before. Pure; raises InputError when it never had another."""
    last = history[-1]
    if last.description.startswith(_BACK):
        return already_back(where, last.held)
    other = previous(history)
    if other is None:
        raise InputError(
            f"{where} never had another value", hint="roll out a record of the artefact that you want back"
        )
    payload = {
        "value": other.value,
        "description": f"{_BACK}{last.version} to {other.version}",
        "version": last.version,
    }
    return Change(where, last.held, other.held, f"-{last.value}\n+{other.value}", payload)


def previous(history: Sequence[ParameterVersion]) -> ParameterVersion | None:
    """Return the version that the last one says, or else the newest with another value than it has."""
    if not history:
        return None
    kept = history[-1].description.partition(_KEPT)[2]
    named = next((each for each in history if str(each.version) == kept), None)
    return named or next((each for each in reversed(history) if each.value != history[-1].value), None)


def put(ssm: Client, where: str, /, **arguments: Any) -> None:
    """Put a parameter; raises TargetMoved for one that was made since it was looked for, or is not shown yet."""
    try:
        ssm.put_parameter(**arguments)
    except AwsError as error:
        if error.code != "ParameterAlreadyExists":
            raise
        raise TargetMoved(f"{where}: it was made in the meantime") from error


class Parameter(Rollout):
    """One parameter in one region."""

    def __init__(self, target: SsmTarget, region: str) -> None:
        self.name = target.parameter
        self.ssm = client("ssm", region)
        self.where = f"parameter {self.name}"

    @override
    def plan(self, offer: Offer) -> Change:
        return decide(self._history(), offer, self.where)

    @override
    def plan_rollback(self) -> Change:
        history = self._history()
        if not history:
            raise InputError(f"there is no {self.where}", hint="check its name and the target's `region`")
        return decide_rollback(history, self.where)

    @override
    def write(self, change: Change) -> None:
        """Put the value, if the parameter is still at the version that was read."""
        payload = change.payload
        history = self._history()
        if (history[-1].version if history else 0) != payload["version"]:
            raise TargetMoved(f"{self.where}: it has version {history[-1].version} now, not {payload['version']}")
        arguments: dict[str, Any] = {
            "Name": self.name,
            "Value": payload["value"],
            "Description": payload["description"],
        }
        if not history:
            image = payload["value"].startswith("ami-")
            arguments |= {"Type": "String", "DataType": "aws:ec2:image" if image else "text"}
        put(self.ssm, self.where, **arguments, Overwrite=bool(history))

    @override
    def follow(self, wanted: TargetState) -> RolloutProgress:
        """Look whether the service has taken the value; who reads it is not known."""
        try:
            value = self.ssm.get_parameter(Name=self.name)["Parameter"]["Value"]
        except AwsNotFound:
            value = ""
        if value in {wanted.image, wanted.snapshot, wanted.label} - {""}:
            return RolloutProgress(0, 0, done=True)
        return RolloutProgress(
            0, 0, False, (f"Systems Manager has not taken the id yet (it has {value or 'nothing'})",)
        )

    @override
    def status(self) -> TargetStatus:
        history = self._history()
        if not history:
            raise TargetMissing(f"there is no {self.where}")
        last, before = history[-1], previous(history)
        held = before.held if before else None
        returned = last.description.startswith(_BACK)  # a rollback leaves the value that was there before it
        return TargetStatus(self.where, last.held, History(left=held) if returned else History(held))

    def _history(self) -> list[ParameterVersion]:
        try:
            found = list(self.ssm.pages("get_parameter_history", "Parameters", Name=self.name))
        except AwsNotFound:
            return []
        entries = [ParameterVersion(int(each["Version"]), each["Value"], each.get("Description", "")) for each in found]
        return sorted(entries, key=lambda each: each.version)
