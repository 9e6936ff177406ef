"""Spot Ocean: the image of virtual node groups or of the cluster, then a roll in batches. A thin client of its REST.

Facts: Spot by NetApp, API documentation of Ocean for AWS (``/ocean/aws/k8s``); bearer token; bodies below one key, and
answers below ``response.items``. There is no rollback: the old image is put back and rolled. What was before is written
into the tags of the launch specification, which instances get too; so is that a roll is owed, from the image to the
roll, for a run that ends between the two.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, override

import urllib3

from parbake.bakefile.targets import OceanTarget
from parbake.core.errors import EnvironmentProblem, InputError, RolloutError, TargetMoved
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
    show,
)

API = "https://api.spotinst.io"
_SECONDS = 30.0
_ACTIVE, _BROKEN = {"STARTING", "IN_PROGRESS", "PENDING"}, {"FAILED", "STOPPED"}
_BRINGS = f"{OWNER}: "
_PREVIOUS, _LEFT, _OWED = f"{OWNER}:previous", f"{OWNER}:left", f"{OWNER}:owed-roll"


class Spot:
    """Spot's API, as one account; raises EnvironmentProblem without a token."""

    def __init__(self) -> None:
        token = os.environ.get("SPOTINST_TOKEN", "")
        if not token:
            raise EnvironmentProblem("SPOTINST_TOKEN is not set", hint="set it to a token of Spot with rights on Ocean")
        self._pool = urllib3.PoolManager(
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        )
        self.account = os.environ.get("SPOTINST_ACCOUNT", "")

    def ask(self, method: str, path: str, body: object = None) -> list[dict[str, Any]]:
        """Ask below ``/ocean/aws/k8s``, and return the items of the answer."""
        fields = f"?accountId={self.account}" if self.account else ""
        text = json.dumps(body).encode() if body is not None else None
        what = f"{method} {path} (Spot)"
        try:
            answer = self._pool.request(
                method, f"{API}/ocean/aws/k8s/{path}{fields}", body=text, timeout=_SECONDS, retries=urllib3.Retry(3)
            )
            response = json.loads(answer.data or b"{}").get("response", {})
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise RolloutError(f"{what}: no answer: {error}", hint="try again") from error
        if answer.status < 300:
            items: list[dict[str, Any]] = response.get("items", [])
            return items
        problems = "; ".join(f"{each.get('code')}: {each.get('message')}" for each in response.get("errors", []))
        message = f"{what}: {problems or answer.status}"
        if answer.status == 404 or "DOESNT_EXIST" in problems:
            raise InputError(message, hint="check the ids")
        if answer.status in {401, 403}:
            raise RolloutError(message, hint="check SPOTINST_TOKEN and SPOTINST_ACCOUNT")
        raise RolloutError(message)


class Ocean(Rollout):
    """The virtual node groups of one cluster, or the cluster's own launch specification where none are named."""

    def __init__(self, target: OceanTarget) -> None:
        self.target = target
        self.where = f"Ocean cluster {target.cluster}"
        self._ask = Spot().ask

    @override
    def plan(self, offer: Offer) -> Change:
        if offer.snapshot:
            raise InputError(f"{self.where} takes only machine images", hint="give the record of one")
        now = self._specifications()
        before = _held(now)
        then = {
            name: {
                "imageId": offer.image,
                "tags": _tagged(each, {_PREVIOUS: _way_back(each, offer), _OWED: offer.image}),
            }
            for name, each in now.items()
            if each.get("imageId") != offer.image
        }
        return self._change(now, then, before, offer.held)

    @override
    def plan_rollback(self) -> Change:
        now = self._specifications()
        before = _held(now)
        back = _history(now).way_back(self.where)
        if back is None:
            there = self._change(now, {}, before, before)
            return already_back(self.where, before) if there.empty else there
        found = {name: _tag(each, _PREVIOUS) for name, each in now.items()}
        then: dict[str, dict[str, Any]] = {
            name: {
                "imageId": found[name],
                "tags": _tagged(each, {_LEFT: str(each.get("imageId", "")), _OWED: found[name]}),
            }
            for name, each in now.items()
            if found[name]
        }
        return self._change(now, then, before, back)

    @override
    def write(self, change: Change) -> None:
        """Put the images, then roll what runs on them."""
        now = self._specifications()
        if {name: each.get("imageId") for name, each in now.items()} != change.payload["before"]:
            raise TargetMoved(f"{self.where}: its images were changed in the meantime")
        active = self._roll()
        if active and active.get("status") in _ACTIVE:
            raise TargetMoved(
                f"{self.where}: a roll is {active['status']}", hint="wait for it or stop it, and run the same again"
            )
        for name, body in change.payload["then"].items():
            self._put(name, body)
        roll: dict[str, Any] = {
            "batchSizePercentage": self.target.batch,
            "batchMinHealthyPercentage": self.target.healthy,
            "respectPdb": self.target.respect_pdb,
            "comment": f"{_BRINGS}{','.join(change.after.images)} instead of {','.join(change.before.images)}"[:255],
        }
        if self.target.groups:
            roll["launchSpecIds"] = list(self.target.groups)
        self._ask("POST", f"cluster/{self.target.cluster}/roll", {"roll": roll})
        for name, each in self._specifications().items():
            if _tag(each, _OWED):
                self._put(name, {"tags": [tag for tag in each["tags"] if tag["tagKey"] != _OWED]})

    @override
    def follow(self, wanted: TargetState) -> RolloutProgress:
        """Look at the last roll; Ocean counts in percent."""
        return judge(_held(self._specifications()), self._roll(), wanted)

    @override
    def status(self) -> TargetStatus:
        now = self._specifications()
        holds = _held(now)
        return TargetStatus(self.where, holds, _history(now), self.follow(holds))

    @override
    def freeze(self, *, frozen: bool) -> tuple[str, ...]:
        """Stop the roll that is under way; it cannot go on afterwards, but a rollout starts another."""
        roll = self._roll()
        if not frozen or not roll or roll.get("status") not in _ACTIVE:
            return ()
        path = f"cluster/{self.target.cluster}/roll/{roll['id']}"
        self._ask("PUT", path, {"roll": {"status": "STOPPED"}})
        return (f"roll {roll['id']}",)

    def _change(
        self, now: Mapping[str, Any], then: Mapping[str, Any], before: TargetState, after: TargetState
    ) -> Change:
        images = {name: each.get("imageId") for name, each in now.items()}
        payload = {"before": images, "then": then}
        diff = show(images, {**images, **{name: each["imageId"] for name, each in then.items()}}, self.where)
        if not diff and (why := self._owed(now)):
            diff = f"{self.where}: {why}: roll what runs"
        return Change(self.where, before, after, diff, payload)

    def _owed(self, now: Mapping[str, Any]) -> str:
        """Say why a roll is owed though all images are put, or nothing; a roll's comment names what it brings."""
        roll = self._roll() or {}
        brings = str(roll.get("comment") or "").removeprefix(_BRINGS).partition(" ")[0].split(",")
        holds = {str(each.get("imageId") or "") for each in now.values()} - {""}
        if holds and holds.issubset(brings) and roll.get("status") in _BROKEN:
            return f"its last roll is {roll['status']}"
        noted = {_tag(each, _OWED) for each in now.values() if _tag(each, _OWED) == each.get("imageId")} - {""}
        return "" if noted.issubset(brings) else "a run set the image and ended before the roll"

    def _specifications(self) -> dict[str, dict[str, Any]]:
        if self.target.groups:
            return {name: self._one("launchSpec", name) for name in self.target.groups}
        cluster = self._one("cluster", self.target.cluster)
        return {self.target.cluster: cluster.get("compute", {}).get("launchSpecification", {})}

    def _one(self, kind: str, name: str) -> dict[str, Any]:
        """Return one cluster or virtual node group; raises InputError that lists those there are."""
        try:
            return self._ask("GET", f"{kind}/{name}")[0]
        except InputError as error:
            there = ", ".join(str(each["id"]) for each in self._ask("GET", kind)) or "none"
            raise InputError(error.message, hint=f"there are: {there}") from error

    def _put(self, name: str, body: Mapping[str, Any]) -> None:
        if name == self.target.cluster:
            self._ask("PUT", f"cluster/{name}", {"cluster": {"compute": {"launchSpecification": body}}})
        else:
            self._ask("PUT", f"launchSpec/{name}", {"launchSpec": body})

    def _roll(self) -> dict[str, Any] | None:
        rolls = self._ask("GET", f"cluster/{self.target.cluster}/roll")
        return max(rolls, key=lambda each: str(each.get("createdAt", "")), default=None)


def every_specification() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what may launch a machine in the account, with its name: clusters and virtual node groups."""
    spot = Spot()
    for each in spot.ask("GET", "cluster"):
        yield f"Ocean cluster {each['id']}", each.get("compute", {}).get("launchSpecification", {})
    for each in spot.ask("GET", "launchSpec"):
        yield f"virtual node group {each['id']}", each


def judge(holds: TargetState, roll: Mapping[str, Any] | None, wanted: TargetState) -> RolloutProgress:
    """Say how far a roll is; pure. ``ready`` counts percent while it runs."""
    status = (roll or {}).get("status", "")
    percent = int((roll or {}).get("progress", {}).get("value", 0))
    if holds.images != wanted.images:
        return RolloutProgress(0, 100, False, (f"it holds {holds}",))
    if status in _ACTIVE:
        batch = f", batch {(roll or {}).get('currentBatch')} of {(roll or {}).get('numOfBatches')}"
        return RolloutProgress(percent, 100, False, (f"roll {status}{batch}",))
    if status in _BROKEN:
        return RolloutProgress(percent, 100, False, failed=f"the roll is {status} at {percent} %")
    return RolloutProgress(100, 100, done=True) if status else RolloutProgress(0, 0, done=True)


def _held(specifications: Mapping[str, Mapping[str, Any]]) -> TargetState:
    held = TargetState(images=[str(each.get("imageId") or "") for each in specifications.values()])
    return held if held.images else TargetState(label="no image of its own")


def _way_back(specification: Mapping[str, Any], offer: Offer) -> str:
    image = str(specification.get("imageId", ""))
    return offer.way_back(TargetState(images=[image]), image, _tag(specification, _PREVIOUS))


def _history(specifications: Mapping[str, Mapping[str, Any]]) -> History[TargetState]:
    tagged = ([_tag(each, key) for each in specifications.values()] for key in (_PREVIOUS, _LEFT))
    return History(*(TargetState(images=images) if any(images) else None for images in tagged))


def _tag(specification: Mapping[str, Any], key: str) -> str:
    return next((str(each["tagValue"]) for each in specification.get("tags") or [] if each["tagKey"] == key), "")


def _tagged(specification: Mapping[str, Any], tags: Mapping[str, str]) -> list[dict[str, str]]:
    kept = [each for each in specification.get("tags") or [] if each["tagKey"] not in {_PREVIOUS, _LEFT, _OWED}]
    return [*kept, *({"tagKey": key, "tagValue": value} for key, value in tags.items() if value)]
