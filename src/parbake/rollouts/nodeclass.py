"""Node classes of Karpenter: what one says, and what a rollout writes into it. Pure; clusters and files both use it.

Facts: karpenter.sh documentation "NodeClasses" (v0.32 to v1.14) and the CRDs of aws/karpenter-provider-aws. A term is
replaced whole, since one with ``id`` and more is refused or half ignored; the machine image and the snapshot change in
one write, since each change drifts every node.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

from parbake.aws.tags import BOOST
from parbake.bakefile.targets import FASTEST_RATE, GitopsTarget, KarpenterTarget
from parbake.core.errors import InputError
from parbake.core.families import AL2, ASSUMED, BOTTLEROCKET, BY_WORD, FAMILIES, NodeFamily, family_of
from parbake.core.model import GIB
from parbake.core.units import quantity
from parbake.core.yamltext import as_list, as_map
from parbake.rollouts import boost as boosts
from parbake.rollouts import nodesettings, userdata
from parbake.rollouts.protocol import (
    OWNER,
    Change,
    History,
    Offer,
    TargetState,
    already_back,
    gibibytes,
    history_text,
    read_history,
    show,
    unlocked,
)

ANNOTATION = f"{OWNER}/rollout"
"""What was held before: JSON on the node class itself, so that a rollback works from any machine."""

_RATE = "volumeInitializationRate"
_FIELDS = ("amiFamily", "amiSelectorTerms", "amiSelector", "blockDeviceMappings")


@dataclass(frozen=True, slots=True)
class AmiSelector:
    """How a node class chooses its machine image, where it is not by id: the term, and the image that it means now."""

    term: Mapping[str, Any]
    image: str
    name: str
    caution: str = ""


@dataclass(frozen=True, slots=True)
class MappedDisk:
    """A disk that nodes get: ``snapshot`` is what it is made from (empty: nothing), ``size`` in bytes (0: not said).

    ``remedy`` is what is done about its cold blocks, as far as a mapping says that.
    """

    device: str
    snapshot: str
    size: int
    is_root: bool
    remedy: Literal["nothing", "rate", "gp3"] = "nothing"


@dataclass(frozen=True, slots=True)
class NodeClass:
    """A node class, as its document says: an EC2NodeClass, or the AWSNodeTemplate of before.

    Documents come from clusters and files of others: what has another shape than Karpenter's counts as not there.
    """

    document: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.document.get('kind', 'EC2NodeClass')} {self._metadata.get('name', '')}".rstrip()

    @property
    def spec(self) -> Mapping[str, Any]:
        """What it says in Karpenter's own words."""
        return as_map(self.document.get("spec"))

    @property
    def _metadata(self) -> Mapping[str, Any]:
        return as_map(self.document.get("metadata"))

    @property
    def is_old(self) -> bool:
        """Whether it is of Karpenter before v0.32."""
        return self.document.get("kind") == "AWSNodeTemplate"

    @property
    def being_deleted_since(self) -> str:
        """When its deletion was asked for; empty: it was not."""
        return str(self._metadata.get("deletionTimestamp") or "")

    @property
    def history(self) -> History[TargetState]:
        """What it records of rollouts."""
        return read_history(as_map(self._metadata.get("annotations")).get(ANNOTATION, ""))

    @property
    def family(self) -> NodeFamily:
        """That of its images: by its alias, else as it says."""
        return family_of(self.spec)

    @property
    def terms(self) -> list[Mapping[str, Any]]:
        """The terms by which it chooses its images, in the words of v0.32 and later."""
        return [as_map(term) for term in as_list(self.spec.get("amiSelectorTerms"))]

    @property
    def older_selector(self) -> Mapping[str, Any]:
        """How a node class of before v0.32 chooses its images."""
        return as_map(self.spec.get("amiSelector"))

    @property
    def ids_before(self) -> list[str]:
        """The images that it names: ``aws-ids`` is the older spelling, ``aws::ids`` the newer."""
        older = self.older_selector
        listed = str(older.get("aws::ids") or older.get("aws-ids") or "")
        return [each.strip() for each in listed.split(",") if each.strip()]

    @property
    def ids(self) -> list[str]:
        """The images that it names by id."""
        return [*(str(term["id"]) for term in self.terms if term.get("id")), *self.ids_before]

    @property
    def mappings(self) -> list[Mapping[str, Any]]:
        """What it says of disks, in order."""
        return [as_map(each) for each in as_list(self.spec.get("blockDeviceMappings"))]

    @property
    def disks(self) -> list[MappedDisk]:
        """The disks that it maps, in order."""
        found = []
        for mapping in self.mappings:
            ebs = as_map(mapping.get("ebs"))
            device, snapshot = str(mapping.get("deviceName") or ""), str(ebs.get("snapshotID") or "")
            raised = ebs.get("throughput") or ebs.get("iops")
            remedy: Literal["nothing", "rate", "gp3"] = "rate" if ebs.get(_RATE) else "gp3" if raised else "nothing"
            size, is_root = quantity(ebs.get("volumeSize")), mapping.get("rootVolume") is True
            found.append(MappedDisk(device, snapshot, size, is_root, remedy))
        return found

    @property
    def user_data(self) -> str:
        """What its nodes run at boot besides what Karpenter adds."""
        return str(self.spec.get("userData") or "")

    @property
    def settings(self) -> nodesettings.NodeSettings:
        """What its user data tells the runtime and the kubelet."""
        return nodesettings.read(self.user_data)

    def follows(self, selector: AmiSelector) -> bool:
        """Whether it chooses its image in this way already."""
        return self.terms == [selector.term]

    def held(self, device: str, selector: AmiSelector | None = None) -> TargetState:
        """Return what it holds, of volumes the one under ``device``; the artefact's name where its note still fits."""
        spec, text, past = self.spec, self.user_data, self.history
        images = [selector.image] if selector and self.follows(selector) else self.ids
        snapshot = next((disk.snapshot for disk in self.disks if disk.device == device), "")
        parts = {name: userdata.part_of(text, name) for name in userdata.NAMES}
        ids = TargetState(images=images, snapshot=snapshot)
        recorded = (past.current, past.previous, past.left)
        known = next((each for each in recorded if each and each.same_ids(ids)), TargetState())
        return TargetState(
            images=ids.images,
            snapshot=snapshot,
            artefacts=known.artefacts,
            keys=known.keys,
            label="" if ids.images else self._label,
            spec={key: spec[key] for key in _FIELDS if key in spec}
            | {name: part for name, part in parts.items() if part}
            | ({BOOST: tag} if (tag := boosts.boosted(spec)) else {}),
        )

    @property
    def _label(self) -> str:
        """How it chooses its image where it names none."""
        terms = self.terms or ([self.older_selector] if self.older_selector else [])
        ways = (", ".join(f"{key} {value}" for key, value in term.items() if key != "owner") for term in terms)
        return " or ".join(ways) or f"the newest image of {self.spec.get('amiFamily', 'AL2')}"


def decide(
    node_class: NodeClass,
    offer: Offer,
    *,
    device: str,
    disk: Mapping[str, int | None],
    selector: AmiSelector | None = None,
    hydrate: bool = False,
    keep_store: bool = False,
    raised: bool = False,
    boost: bool = False,
) -> Change:
    """Decide what a node class becomes when it takes an offer.

    With ``hydrate`` the offer's hydrate part goes into its user data; without, one that is there is taken out. So does
    the part that mounts a volume, and goes where the offer has none for its volume; and with ``keep_store`` the part
    that keeps nodeadm from moving containerd's store to local disks. ``disk`` is what the volume's mapping says of its
    speed, in Karpenter's words; None takes out what an earlier remedy put there. ``raised``: that is as fast as its
    size allows, where ``disk`` says no other; with ``boost`` for the start alone, so that it has the tag by which nodes
    take it back. With ``selector`` its term is that, and where the term points to is changed by the caller. Raises
    InputError for an AWSNodeTemplate then, and for user data of no known kind.
    """
    after = copy.deepcopy(dict(node_class.spec))
    cautions: list[str] = []
    if offer.images:
        _take_image(node_class, after, offer, selector, cautions)
    cautions += _take_disks(after, offer, device, disk, raised=raised, boost=boost)
    beyond = _take_user_data(after, offer, cautions, hydrate=hydrate, keep_store=keep_store, boost=boost)
    refusals = [*_refusals(NodeClass({"spec": after}), offer, device), *beyond]
    cautions += _cautions(_family(after), offer)
    before = node_class.held(device, selector)
    wanted = offer.held_over(before)
    if selector and before.images != wanted.images and before.snapshot != wanted.snapshot:
        cautions.append(f"image and snapshot are two writes with the {selector.name}: nodes may be replaced twice")
    past = node_class.history
    previous = offer.way_back(before, before, past.previous)
    if selector and past.previous and past.current and past.current.same_ids(wanted):
        previous = past.previous  # a run was killed after it had written this, and before the image was promoted
    return _change(node_class, after, before, wanted, History(previous), refusals, cautions, selector)


def decide_rollback(node_class: NodeClass, *, device: str, selector: AmiSelector | None = None) -> Change:
    """Decide how a node class returns to what it held before the last rollout; raises InputError without one."""
    past, where, spec = node_class.history, str(node_class), node_class.spec
    now = node_class.held(device, selector)
    previous = past.way_back(where)
    if previous is None:
        back = past.current or TargetState()
        if selector and node_class.follows(selector) and back.images not in {(), now.images}:
            # A rollback was killed between its two writes.
            return _change(node_class, dict(spec), now, back, History(left=past.left), (), [], selector)
        return already_back(where, now, past.left)
    after = {key: value for key, value in spec.items() if key not in _FIELDS}
    after |= {key: value for key, value in previous.spec.items() if key != BOOST}
    boosts.retag(after, previous.spec.get(BOOST, ""))
    _put_parts(after, {name: after.pop(name, "") for name in userdata.NAMES})
    cautions = []
    if past.current and not past.current.same_ids(now):
        cautions.append(f"it was changed after the rollout, from {past.current} to {now}: that change goes too")
    left = now.model_copy(update={"spec": {key: value for key, value in now.spec.items() if key not in userdata.NAMES}})
    return _change(node_class, after, now, previous, History(left=left), (), cautions, selector)


class NodeClassOptions(TypedDict):
    """What a target says of how its node class takes an offer; the keyword arguments of ``decide``."""

    device: str
    disk: Mapping[str, int | None]
    hydrate: bool
    keep_store: bool
    raised: bool
    boost: bool


def options_of(target: KarpenterTarget | GitopsTarget) -> NodeClassOptions:
    """Return what a target says; of its volume's speed in Karpenter's words."""
    disk: dict[str, int | None] = dict(target.performance)
    raised = target.remedy in {"gp3", "boost"}
    if target.remedy == "rate":
        disk[_RATE] = target.initialization_rate or FASTEST_RATE
    elif target.remedy:
        disk[_RATE] = None
    if target.remedy and not raised and not target.performance:
        disk |= dict.fromkeys(boosts.SPEED)
    hydrate, boost = target.remedy in {"hydrate", "boost"}, target.remedy == "boost"
    return NodeClassOptions(
        device=target.device, disk=disk, raised=raised, boost=boost, hydrate=hydrate, keep_store=target.keep_store
    )


def _change(
    node_class: NodeClass,
    after: dict[str, Any],
    before: TargetState,
    wanted: TargetState,
    past: History[TargetState],
    refusals: Sequence[str],
    cautions: list[str],
    selector: AmiSelector | None,
) -> Change:
    spec, where = node_class.spec, str(node_class)
    now, then = ({key: each[key] for key in (*_FIELDS, "tags") if key in each} for each in (spec, after))
    if selector and wanted.images and NodeClass({"spec": after}).follows(selector):
        now, then = {**now, selector.name: selector.image}, {**then, selector.name: wanted.image}
    if spec.get("userData") != after.get("userData"):
        now = {**now, "userData": userdata.shown(node_class.user_data)}
        then = {**then, "userData": userdata.shown(after.get("userData") or "")}
    diff = show(now, then, where)
    if diff and (since := node_class.being_deleted_since):
        refusals = [*refusals, f"the node class is being deleted, since {since}: what is written would be lost with it"]
    if not diff:
        return Change(where, before, wanted, refusals=tuple(refusals), cautions=tuple(cautions))
    changed = {key: after.get(key) for key in (*_FIELDS, "tags", "userData") if spec.get(key) != after.get(key)}
    for name in {"amiSelector", "tags"} & set(changed):  # maps: a merge would keep the other keys
        changed[name] = {**dict.fromkeys(spec.get(name) or {}), **after[name]} if after.get(name) else None
    text = history_text(replace(past, current=wanted))
    payload = {"metadata": {"annotations": {ANNOTATION: text}}, **({"spec": changed} if changed else {})}
    return Change(where, before, wanted, diff, payload, tuple(refusals), tuple(cautions))


def _take_image(
    node_class: NodeClass, spec: dict[str, Any], offer: Offer, selector: AmiSelector | None, cautions: list[str]
) -> None:
    if selector and node_class.is_old:
        raise InputError(
            f"{node_class} cannot choose by the {selector.name}",
            hint="remove `tag` or `parameter`: it is given an id",
        )
    if node_class.is_old:
        now = spec.get("amiSelector") or {}
        known = [key for key in now if key in {"aws-ids", "aws::ids"}]
        if list(now) != known or set(node_class.ids) != set(offer.images):
            spec["amiSelector"] = {known[0] if known else "aws-ids": ",".join(offer.images)}
        cautions.append("Karpenter before v0.32 replaces no node for a new image: old nodes stay until they expire")
        return
    aliases = [term["alias"] for term in node_class.terms if term.get("alias")]
    if aliases and not spec.get("amiFamily"):  # without an alias, a family must be named
        family = aliases[0].partition("@")[0]
        spec["amiFamily"] = BY_WORD[family].name if family in BY_WORD else "Custom"
        cautions.append(
            f"the alias {aliases[0]} is replaced by {f'the {selector.name}' if selector else 'an id'}, "
            f"with amiFamily {spec['amiFamily']}"
        )
    if selector and selector.caution and not node_class.follows(selector):
        cautions.append(selector.caution)
    # Karpenter resolves one image for each architecture, so that the ids of two stand beside each other, in any order.
    wanted = [dict(selector.term)] if selector else [{"id": each} for each in offer.images]
    now = node_class.terms
    if len(now) != len(wanted) or any(term not in now for term in wanted):
        spec["amiSelectorTerms"] = wanted


def _take_disks(
    spec: dict[str, Any], offer: Offer, device: str, settings: Mapping[str, int | None], *, raised: bool, boost: bool
) -> list[str]:
    """Map the volume's snapshot, and see to it that no disk is smaller than what it is made from; return cautions."""
    family, disks = _family(spec), copy.deepcopy(list(spec.get("blockDeviceMappings") or []))
    root, defaults = family.root, family.disks
    too_large = offer.image_size > defaults.get(root, 0) * GIB and bool(defaults)
    if not disks and (offer.snapshot or too_large):  # what Karpenter would have given
        disks = [{"deviceName": name, "ebs": _disk(size)} for name, size in defaults.items()]
    if offer.image_size:
        for each in disks:
            if each.get("rootVolume") or (each.get("deviceName") == root and not _has_root(disks)):
                _at_least(each["ebs"], offer.image_size)
    cautions = []
    if offer.snapshot:
        if boosts.boosted(spec) and not boost:
            disks = [boosts.slow(each) if each.get("deviceName") == device else each for each in disks]
        cautions = _take_volume(disks, family, offer, device, settings, raised=raised)
        ebs = next(each["ebs"] for each in disks if each.get("deviceName") == device)
        boosts.retag(spec, boosts.tag_of(device, ebs) if boost else "")
    if disks:
        spec["blockDeviceMappings"] = disks
    return cautions


def _take_volume(
    disks: list[dict[str, Any]],
    family: NodeFamily,
    offer: Offer,
    device: str,
    settings: Mapping[str, int | None],
    *,
    raised: bool,
) -> list[str]:
    """Map the volume's snapshot under its device; return cautions."""
    cautions: list[str] = []
    mine = next((each for each in disks if each.get("deviceName") == device), None)
    was = gibibytes(quantity(as_map(as_map(mine).get("ebs")).get("volumeSize")))
    if mine is None:
        mine = {"deviceName": device, "ebs": {"volumeType": "gp3", "deleteOnTermination": True}}
        # First where Karpenter goes by the last one: it would take the volume for the node's ephemeral storage.
        disks.insert(0 if family.counts_the_last(disks) else len(disks), mine)
    ebs = mine.setdefault("ebs", {})
    ebs["snapshotID"] = offer.snapshot
    cautions += unlocked(device, ebs, offer)
    for follows_from_the_snapshot in ("encrypted", "kmsKeyID"):  # EC2 refuses a key without `encrypted`
        ebs.pop(follows_from_the_snapshot, None)
    _at_least(ebs, offer.snapshot_size or GIB)
    if family.counts_the_last(disks) and disks == [mine]:
        _at_least(ebs, ASSUMED * GIB)
        cautions.append(
            f"the node class maps no root disk, so Karpenter takes {device} for the nodes' ephemeral storage: it gets "
            f"the {ASSUMED} GiB that Karpenter assumed before; map the root disk, with `rootVolume: true`, to say it"
        )
    gib = gibibytes(quantity(ebs["volumeSize"]))
    gone = {key for key, value in settings.items() if value is None}
    if not boosts.of_a_remedy(ebs, was):  # somebody's own
        gone -= set(boosts.SPEED)
    for key in gone:
        ebs.pop(key, None)
    ebs |= boosts.raised(gib) if raised else {}
    ebs |= {key: value for key, value in settings.items() if value is not None}
    return cautions


def _disk(size: int) -> dict[str, Any]:
    return {"volumeSize": f"{size}Gi", "volumeType": "gp3", "encrypted": True, "deleteOnTermination": True}


def _at_least(ebs: dict[str, Any], size: int) -> None:
    if quantity(ebs.get("volumeSize")) < size:
        ebs["volumeSize"] = f"{gibibytes(size)}Gi"


def _has_root(disks: list[dict[str, Any]]) -> bool:
    return any(each.get("rootVolume") for each in disks)


def _take_user_data(
    spec: dict[str, Any], offer: Offer, cautions: list[str], *, hydrate: bool, keep_store: bool, boost: bool
) -> list[str]:
    """Put parbake's parts into the user data, or take old ones out; return what speaks against it."""
    family = _family(spec)
    if keep_store and not (family.nodeadm or family.is_custom):
        return [f"`keep_store` is for nodeadm, on Amazon Linux 2023, and the node class is of {family}"]
    parts = {"store": userdata.KEEP_STORE if keep_store else ""}
    if not hydrate or offer.hydrate:
        parts["hydrate"] = (offer.boost if boost else offer.hydrate) if hydrate else ""
    if offer.snapshot:  # a machine image alone leaves the volume that there is
        parts["mount"] = offer.mount if family.takes_parts else ""
    _put_parts(spec, parts)
    text = spec.get("userData") or ""
    if boost and offer.boost != offer.hydrate and userdata.too_large(text, userdata.ROOM):
        _put_parts(spec, {**parts, "hydrate": offer.hydrate})
        text = spec.get("userData") or ""
        cautions.append(boosts.NO_ROOM)
    if not family.takes_parts and userdata.part_of(text, "hydrate"):
        return [f"user data of {family} takes no hydrate part: use a bootstrap container (`parbake hydrate`)"]
    found = userdata.too_large(text, userdata.ROOM)
    if family.takes_parts:
        found += userdata.unreadable(text, by_karpenter=not family.is_custom)
    return found


def _put_parts(spec: dict[str, Any], parts: Mapping[str, str]) -> None:
    text = spec.get("userData") or ""
    new = userdata.with_parts(text, parts)
    if new != text:
        spec["userData"] = new
        if not new:
            del spec["userData"]


def _cautions(family: NodeFamily, offer: Offer) -> list[str]:
    if offer.snapshot and family == BOTTLEROCKET and not offer.family:
        return ["Bottlerocket takes only a data volume in its own layout: see that the snapshot is one"]
    if offer.family and family.is_custom:
        return [f"the volume is {offer.family}'s own: see that the AMI of this Custom family is {offer.family}"]
    return []


def _refusals(after: NodeClass, offer: Offer, device: str) -> list[str]:
    found = []
    family, settings = _family(after.spec), after.settings
    storage = settings.against_storage(str(after.spec.get("instanceStorePolicy") or ""), family)
    if storage and settings.disabled_mounts:
        storage += f"; the NodeConfig's disabledMounts do not name {nodesettings.CONTAINERD}"
    elif storage and family.nodeadm:
        storage += "; write `keep_store: true` in the target to keep it where it is, and the rest on the local disks"
    found += [each for each in (settings.against_snapshotter, storage) if each]
    if family == BOTTLEROCKET and offer.images:
        found.append("the node class is of Bottlerocket, which boots no machine image of another system")
    if not family.linux:
        found.append(f"the node class is of {family}, but the artefact is for Linux")
    elif offer.family and family and not family.is_custom and family.name != offer.family:
        found.append(f"the volume is {offer.family}'s own, and the node class is of {family}")
    own = family if family.data else FAMILIES[offer.family]
    if own.data and offer.snapshot and device != own.data:
        found.append(f"{own} looks for its data volume on {own.data}, and the target says {device}")
    roots = {disk.device for disk in after.disks if disk.is_root} or {family.root}
    volume = next((as_map(each.get("ebs")) for each in after.mappings if each.get("deviceName") == device), None)
    if offer.snapshot and volume is not None:
        gib = gibibytes(quantity(volume.get("volumeSize")))
        found += boosts.against(volume, gib, boost=bool(boosts.boosted(after.spec)))
    if offer.snapshot and device in roots:
        found.append(f"{device} is the root disk of {family or 'these nodes'}: a volume needs a device of its own")
    return found


def _family(spec: Mapping[str, Any]) -> NodeFamily:
    return family_of(spec, silent=AL2)
