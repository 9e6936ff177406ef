"""Groups of nodes that start from a numbered version of a launch template: what Auto Scaling groups and EKS's share.

A rollout makes a new version, writes the one before into the group's tags, and lets the service bring it to the nodes;
how it does that is the subclass's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, override

from parbake.aws.images import architecture_of
from parbake.core.errors import InputError, TargetMoved
from parbake.core.families import BOTTLEROCKET, FAMILIES, family_of_ami
from parbake.rollouts import nodesettings, userdata
from parbake.rollouts.protocol import (
    Change,
    Offer,
    Rollout,
    RolloutProgress,
    TargetState,
    TargetStatus,
    already_back,
    show,
    unlocked,
)
from parbake.rollouts.templates import (
    CURRENT,
    LEFT,
    PREVIOUS,
    Templates,
    Version,
    artefacts_of,
    describe,
    history_of,
    new_data,
    readable,
    user_data,
)

_NOT_BOTTLEROCKETS = "its nodes run {name}, which mounts only volumes in its own layout (`builder: ec2`)"


@dataclass(frozen=True, slots=True)
class GroupState:
    """What a group is at one time: as its service describes it, its tags, and the version that it holds or is to hold.

    ``under_way`` is what brings that version to the nodes now, if anything does.
    """

    group: Mapping[str, Any]
    tags: Mapping[str, str]
    version: Version
    under_way: Mapping[str, Any] | None = None


class LaunchTemplateGroup(Rollout, ABC):
    """A group of nodes that starts from a launch template."""

    device: str
    disk: Mapping[str, int]
    where: str
    templates: Templates
    never_took: ClassVar[str]
    """The caution when the group does not hold the last rollout's version."""
    no_freeze: ClassVar[tuple[str, str]]
    """Why its nodes cannot be frozen, and what to do instead."""

    @abstractmethod
    def read(self) -> GroupState:
        """Look at the group; raises InputError when there is none, or when it has no launch template."""

    @override
    @abstractmethod
    def follow(self, wanted: TargetState) -> RolloutProgress:
        """Look once how far the nodes are."""

    def progress(self, wanted: TargetState) -> RolloutProgress:
        """Look how far the nodes are, and change nothing; ``follow`` may finish what a rollout began."""
        return self.follow(wanted)

    @override
    @abstractmethod
    def write(self, change: Change) -> None:
        """Bring what was decided; raises TargetMoved when the group holds something else by now."""

    @abstractmethod
    def back_to(self, before: Version) -> dict[str, Any]:
        """Return what a payload says for a way back to a version."""

    def unchanged(self, state: GroupState, before: TargetState, after: TargetState) -> Change:
        """Decide for a group that holds the version already: nothing."""
        del state
        return Change(self.where, before, after)

    def refusals(self, state: GroupState, offer: Offer) -> tuple[str, ...]:
        """Return what speaks against a rollout."""
        del state, offer
        return ()

    def cautions(self, state: GroupState) -> tuple[str, ...]:
        """Return what to know about a rollout."""
        del state
        return ()

    @override
    def plan(self, offer: Offer) -> Change:
        state = self.read()
        now, before = state.version, self._holds(state)
        changes = new_data(now.data, offer, device=self.device, disk=self.disk)
        after = offer.held_over(before)
        if not changes:
            return self.unchanged(state, before, after)
        wanted = {**now.data, **changes}
        diff = show(readable(now.data), readable(wanted), f"{self.where}: launch template {now}")
        previous = offer.way_back(before, str(now), state.tags.get(PREVIOUS))
        payload = {"source": now, "changes": changes, "description": describe(offer), "tags": {PREVIOUS: previous}}
        refusals = (*self.refusals(state, offer), *self._of_another_architecture(before, offer))
        refusals += self._of_another_family(after, offer)
        text = user_data(wanted) or ""
        settings = nodesettings.read(text)
        refusals += tuple(filter(None, (settings.against_snapshotter, settings.against_storage())))
        if "UserData" in changes:
            refusals += tuple(userdata.too_large(text, userdata.ROOM))
        refusals += tuple(userdata.unreadable(text))
        mapped = {each.get("DeviceName"): each.get("Ebs", {}) for each in now.data.get("BlockDeviceMappings", [])}
        cautions = (*self.cautions(state), *unlocked(self.device, mapped.get(self.device, {}), offer))
        return Change(self.where, before, after, diff, payload, refusals, cautions)

    @override
    def plan_rollback(self) -> Change:
        state = self.read()
        now, holds = state.version, self._holds(state)
        history = history_of(state.tags)
        text = history.way_back(self.where)
        if not text and history.left == str(now):  # the run that wrote so ended too early: the group holds it still
            text = history.current
        if not text:
            return already_back(self.where, holds, history.left)
        before = self.templates.numbered(text)
        if str(before) == str(now):
            return Change(self.where, holds, holds, cautions=(self.never_took,))
        name = f"launch template {now} -> {before}"
        diff = show(readable(now.data), readable(before.data), f"{self.where}: {name}") or name
        payload = {"source": now, "tags": {LEFT: str(now)}, **self.back_to(before)}
        return Change(self.where, holds, before.held(self.device), diff, payload)

    @override
    def status(self) -> TargetStatus:
        state = self.read()
        holds = self._holds(state)
        history = history_of(state.tags).states(lambda text: self.templates.numbered(text).held(self.device))
        return TargetStatus(f"{self.where}, launch template {state.version}", holds, history, self.progress(holds))

    @override
    def freeze(self, *, frozen: bool) -> tuple[str, ...]:
        """Refuse: the service cannot pause what it has started, only end it."""
        del frozen
        why, instead = self.no_freeze
        raise InputError(f"{self.where}: {why}", hint=instead)

    def still(self, state: GroupState, change: Change) -> Version:
        """Return the version that a change was decided on; raises TargetMoved when the group holds another by now."""
        source: Version = change.payload["source"]
        if str(state.version) != str(source):
            raise TargetMoved(f"{self.where}: it holds {state.version} now, not {source}")
        return source

    def _of_another_architecture(self, before: TargetState, offer: Offer) -> tuple[str, ...]:
        """Return what speaks against an image whose architecture is not that of the one before."""
        described = self.templates.image(before.image) if offer.image else {}
        now = architecture_of(str(described.get("Architecture", "")))
        if not now or now in offer.architectures:
            return ()
        theirs = " and ".join(offer.architectures)
        return (f"its nodes run {now} ({before.image}), and {offer.name} is for {theirs}",)

    def _of_another_family(self, after: TargetState, offer: Offer) -> tuple[str, ...]:
        """Return what speaks against a volume that nodes of one family alone can take, or cannot take."""
        if not offer.snapshot or not (offer.family or offer.mount):
            return ()
        found = []
        name = str(self.templates.image(after.image).get("Name", ""))
        if not offer.family:
            return (_NOT_BOTTLEROCKETS.format(name=name),) if family_of_ami(name) == BOTTLEROCKET else ()
        own = FAMILIES[offer.family]
        if name and family_of_ami(name) != own:
            found.append(f"the volume is {offer.family}'s own, and its nodes run {name} ({after.image})")
        if self.device != own.data:
            found.append(f"{own} looks for its data volume on {own.data}, and the target says {self.device}")
        return tuple(found)

    def _holds(self, state: GroupState) -> TargetState:
        return state.version.held(self.device, artefacts_of(state.tags, state.version))


def tags_of(change: Change, version: Version) -> tuple[dict[str, str], list[str]]:
    """Return the tags that a group gets with a version, and the keys of those that it loses."""
    written = {CURRENT: f"{version} {change.after.name}".strip(), **change.payload["tags"]}
    return written, sorted({PREVIOUS, LEFT} - set(written))
