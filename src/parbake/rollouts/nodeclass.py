"""Node classes of Karpenter: what a rollout writes into one. Pure; the cluster and manifest files both use it.

Facts: karpenter.sh documentation "NodeClasses" (v0.32 to v1.14) and the CRDs of aws/karpenter-provider-aws. A term is
replaced whole, since one with ``id`` and more is refused or half ignored; the machine image and the snapshot change in
one write, since each change drifts every node.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from parbake.bakefile.targets import GitopsTarget, KarpenterTarget
from parbake.core.errors import InputError
from parbake.core.families import AL2, ASSUMED, BOTTLEROCKET, BY_WORD, FAMILIES, NodeFamily, family_of
from parbake.core.model import GIB
from parbake.core.units import quantity
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

_FIELDS = ("amiFamily", "amiSelectorTerms", "amiSelector", "blockDeviceMappings")


@dataclass(frozen=True, slots=True)
class AmiSelector:
    """How a node class chooses its machine image, where it is not by id: the term, and the image that it means now."""

    term: Mapping[str, Any]
    image: str
    name: str
    caution: str = ""


def decide(
    node_class: Mapping[str, Any],
    offer: Offer,
    *,
    device: str,
    disk: Mapping[str, int],
    selector: AmiSelector | None = None,
    hydrate: bool = False,
    keep_store: bool = False,
) -> Change:
    """Decide what a node class becomes when it takes an offer.

    With ``hydrate`` the offer's hydrate part goes into its user data; without, one that is there is taken out. So does
    the part that mounts a volume, and goes where the offer has none for its volume; and with ``keep_store`` the part
    that keeps nodeadm from moving containerd's store to local disks. ``disk`` is what the volume's mapping says of its
    speed, in Karpenter's words. With ``selector`` its term is that, and where the term points to is changed by the
    caller. Raises InputError for an AWSNodeTemplate then, and for user data of no known kind.
    """
    spec = node_class.get("spec") or {}
    after = copy.deepcopy(dict(spec))
    cautions: list[str] = []
    if offer.images:
        _take_image(node_class, after, offer, selector, cautions)
    cautions += _take_disks(after, offer, device, disk)
    beyond = _take_user_data(after, offer, hydrate=hydrate, keep_store=keep_store)
    refusals = [*_refusals(spec, after, offer, device), *beyond]
    cautions += _cautions(_family(after), offer)
    before = held(node_class, device, selector)
    wanted = offer.held_over(before)
    if selector and before.images != wanted.images and before.snapshot != wanted.snapshot:
        cautions.append(f"image and snapshot are two writes with the {selector.name}: nodes may be replaced twice")
    past = history(node_class)
    previous = offer.way_back(before, before, past.previous)
    if selector and past.previous and past.current and past.current.same_ids(wanted):
        previous = past.previous  # a run was killed after it had written this, and before the image was promoted
    return _change(node_class, after, before, wanted, History(previous), refusals, cautions, selector)


def decide_rollback(node_class: Mapping[str, Any], *, device: str, selector: AmiSelector | None = None) -> Change:
    """Decide how a node class returns to what it held before the last rollout; raises InputError without one."""
    past, where = history(node_class), described(node_class)
    now = held(node_class, device, selector)
    previous = past.way_back(where)
    if previous is None:
        back = past.current or TargetState()
        if selector and follows(node_class.get("spec") or {}, selector) and back.images not in {(), now.images}:
            # A rollback was killed between its two writes.
            return _change(node_class, dict(node_class["spec"]), now, back, History(left=past.left), (), [], selector)
        return already_back(where, now, past.left)
    after = {key: value for key, value in (node_class.get("spec") or {}).items() if key not in _FIELDS}
    after |= previous.spec
    _put_parts(after, {name: after.pop(name, "") for name in userdata.NAMES})
    cautions = []
    if past.current and not past.current.same_ids(now):
        cautions.append(f"it was changed after the rollout, from {past.current} to {now}: that change goes too")
    left = now.model_copy(update={"spec": {key: value for key, value in now.spec.items() if key not in userdata.NAMES}})
    return _change(node_class, after, now, previous, History(left=left), (), cautions, selector)


class NodeClassOptions(TypedDict):
    """What a target says of how its node class takes an offer; the keyword arguments of ``decide``."""

    device: str
    disk: Mapping[str, int]
    hydrate: bool
    keep_store: bool


def options_of(target: KarpenterTarget | GitopsTarget) -> NodeClassOptions:
    """Return what a target says; of its volume's speed in Karpenter's words."""
    rate = target.initialization_rate
    disk = {**target.performance, **({"volumeInitializationRate": rate} if rate else {})}
    return NodeClassOptions(device=target.device, disk=disk, hydrate=target.hydrate, keep_store=target.keep_store)


def follows(spec: Mapping[str, Any], selector: AmiSelector) -> bool:
    """Whether a node class chooses its image in this way already."""
    return list(spec.get("amiSelectorTerms") or []) == [selector.term]


def held(node_class: Mapping[str, Any], device: str, selector: AmiSelector | None = None) -> TargetState:
    """Return what a node class holds; the artefact's name where its note still fits."""
    spec = node_class.get("spec") or {}
    images = [selector.image] if selector and follows(spec, selector) else _ids(spec)
    snapshot = next(
        (each.get("ebs", {}).get("snapshotID", "") for each in _disks(spec) if each.get("deviceName") == device), ""
    )
    parts = {name: userdata.part_of(spec.get("userData") or "", name) for name in userdata.NAMES}
    past, ids = history(node_class), TargetState(images=images, snapshot=snapshot)
    recorded = (past.current, past.previous, past.left)
    known = next((each for each in recorded if each and each.same_ids(ids)), TargetState())
    return TargetState(
        images=ids.images,
        snapshot=snapshot,
        artefacts=known.artefacts,
        keys=known.keys,
        label="" if ids.images else _label(spec),
        spec={key: spec[key] for key in _FIELDS if key in spec} | {name: part for name, part in parts.items() if part},
    )


def history(node_class: Mapping[str, Any]) -> History[TargetState]:
    """Return what a node class records of rollouts."""
    return read_history(((node_class.get("metadata") or {}).get("annotations") or {}).get(ANNOTATION, ""))


def described(node_class: Mapping[str, Any]) -> str:
    """Name a node class for people."""
    return f"{node_class.get('kind', 'EC2NodeClass')} {node_class.get('metadata', {}).get('name', '')}".rstrip()


def _change(
    node_class: Mapping[str, Any],
    after: dict[str, Any],
    before: TargetState,
    wanted: TargetState,
    past: History[TargetState],
    refusals: Sequence[str],
    cautions: list[str],
    selector: AmiSelector | None,
) -> Change:
    spec, where = node_class.get("spec") or {}, described(node_class)
    now, then = ({key: each[key] for key in _FIELDS if key in each} for each in (spec, after))
    if selector and wanted.images and follows(after, selector):
        now, then = {**now, selector.name: selector.image}, {**then, selector.name: wanted.image}
    if spec.get("userData") != after.get("userData"):
        now = {**now, "userData": userdata.shown(spec.get("userData") or "")}
        then = {**then, "userData": userdata.shown(after.get("userData") or "")}
    diff = show(now, then, where)
    since = (node_class.get("metadata") or {}).get("deletionTimestamp")
    if diff and since:
        refusals = [*refusals, f"the node class is being deleted, since {since}: what is written would be lost with it"]
    if not diff:
        return Change(where, before, wanted, refusals=tuple(refusals), cautions=tuple(cautions))
    changed = {key: after.get(key) for key in (*_FIELDS, "userData") if spec.get(key) != after.get(key)}
    if "amiSelector" in changed:  # a map: a merge would keep the other keys
        gone = dict.fromkeys(spec.get("amiSelector") or {})
        changed["amiSelector"] = {**gone, **(after.get("amiSelector") or {})} or None
    text = history_text(replace(past, current=wanted))
    payload = {"metadata": {"annotations": {ANNOTATION: text}}, **({"spec": changed} if changed else {})}
    return Change(where, before, wanted, diff, payload, tuple(refusals), tuple(cautions))


def _is_old(node_class: Mapping[str, Any]) -> bool:
    return node_class.get("kind") == "AWSNodeTemplate"


def _take_image(
    node_class: Mapping[str, Any], spec: dict[str, Any], offer: Offer, selector: AmiSelector | None, cautions: list[str]
) -> None:
    if selector and _is_old(node_class):
        raise InputError(
            f"{described(node_class)} cannot choose by the {selector.name}",
            hint="remove `tag` or `parameter`: it is given an id",
        )
    if _is_old(node_class):
        # `aws-ids` is the older spelling, `aws::ids` the newer: what is there is understood.
        now = spec.get("amiSelector") or {}
        known = [key for key in now if key in {"aws-ids", "aws::ids"}]
        if list(now) != known or set(_ids(spec)) != set(offer.images):
            spec["amiSelector"] = {known[0] if known else "aws-ids": ",".join(offer.images)}
        cautions.append("Karpenter before v0.32 replaces no node for a new image: old nodes stay until they expire")
        return
    aliases = [term["alias"] for term in spec.get("amiSelectorTerms") or [] if term.get("alias")]
    if aliases and not spec.get("amiFamily"):  # without an alias, a family must be named
        family = aliases[0].partition("@")[0]
        spec["amiFamily"] = BY_WORD[family].name if family in BY_WORD else "Custom"
        cautions.append(
            f"the alias {aliases[0]} is replaced by {f'the {selector.name}' if selector else 'an id'}, "
            f"with amiFamily {spec['amiFamily']}"
        )
    if selector and selector.caution and not follows(spec, selector):
        cautions.append(selector.caution)
    # Karpenter resolves one image for each architecture, so that the ids of two stand beside each other, in any order.
    wanted = [dict(selector.term)] if selector else [{"id": each} for each in offer.images]
    now = list(spec.get("amiSelectorTerms") or [])
    if len(now) != len(wanted) or any(term not in now for term in wanted):
        spec["amiSelectorTerms"] = wanted


def _take_disks(spec: dict[str, Any], offer: Offer, device: str, settings: Mapping[str, int]) -> list[str]:
    """Map the volume's snapshot, and see to it that no disk is smaller than what it is made from; return cautions."""
    family, disks = _family(spec), copy.deepcopy(_disks(spec))
    root, defaults = family.root, family.disks
    too_large = offer.image_size > defaults.get(root, 0) * GIB and bool(defaults)
    if not disks and (offer.snapshot or too_large):  # what Karpenter would have given
        disks = [{"deviceName": name, "ebs": _disk(size)} for name, size in defaults.items()]
    if offer.image_size:
        for each in disks:
            if each.get("rootVolume") or (each.get("deviceName") == root and not _has_root(disks)):
                _at_least(each["ebs"], offer.image_size)
    cautions = _take_volume(disks, family, offer, device, settings) if offer.snapshot else []
    if disks:
        spec["blockDeviceMappings"] = disks
    return cautions


def _take_volume(
    disks: list[dict[str, Any]], family: NodeFamily, offer: Offer, device: str, settings: Mapping[str, int]
) -> list[str]:
    """Map the volume's snapshot under its device; return cautions."""
    cautions: list[str] = []
    mine = next((each for each in disks if each.get("deviceName") == device), None)
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
    ebs |= settings
    return cautions


def _disk(size: int) -> dict[str, Any]:
    return {"volumeSize": f"{size}Gi", "volumeType": "gp3", "encrypted": True, "deleteOnTermination": True}


def _at_least(ebs: dict[str, Any], size: int) -> None:
    if quantity(ebs.get("volumeSize")) < size:
        ebs["volumeSize"] = f"{gibibytes(size)}Gi"


def _has_root(disks: list[dict[str, Any]]) -> bool:
    return any(each.get("rootVolume") for each in disks)


def _take_user_data(spec: dict[str, Any], offer: Offer, *, hydrate: bool, keep_store: bool) -> list[str]:
    """Put parbake's parts into the user data, or take old ones out; return what speaks against it."""
    family = _family(spec)
    if keep_store and not (family.nodeadm or family.is_custom):
        return [f"`keep_store` is for nodeadm, on Amazon Linux 2023, and the node class is of {family}"]
    parts = {"store": userdata.KEEP_STORE if keep_store else ""}
    if not hydrate or offer.hydrate:
        parts["hydrate"] = offer.hydrate if hydrate else ""
    if offer.snapshot:  # a machine image alone leaves the volume that there is
        parts["mount"] = offer.mount if family.takes_parts else ""
    _put_parts(spec, parts)
    text = spec.get("userData") or ""
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


def _refusals(spec: Mapping[str, Any], after: Mapping[str, Any], offer: Offer, device: str) -> list[str]:
    found = []
    family = _family(after)
    settings = nodesettings.read(str(after.get("userData") or ""))
    storage = settings.against_storage(str(spec.get("instanceStorePolicy") or ""), family)
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
    roots = {each.get("deviceName") for each in _disks(after) if each.get("rootVolume")} or {family.root}
    if offer.snapshot and device in roots:
        found.append(f"{device} is the root disk of {family or 'these nodes'}: a volume needs a device of its own")
    return found


def _family(spec: Mapping[str, Any]) -> NodeFamily:
    return family_of(spec, silent=AL2)


def _ids(spec: Mapping[str, Any]) -> list[str]:
    older = spec.get("amiSelector") or {}
    listed = older.get("aws::ids") or older.get("aws-ids") or ""
    terms = [term["id"] for term in spec.get("amiSelectorTerms") or [] if term.get("id")]
    return [*terms, *(each.strip() for each in listed.split(",") if each.strip())]


def _label(spec: Mapping[str, Any]) -> str:
    """Say how a node class chooses its image where it names none."""
    terms = spec.get("amiSelectorTerms") or ([spec["amiSelector"]] if spec.get("amiSelector") else [])
    ways = (", ".join(f"{key} {value}" for key, value in term.items() if key != "owner") for term in terms)
    return " or ".join(ways) or f"the newest image of {spec.get('amiFamily', 'AL2')}"


def _disks(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(spec.get("blockDeviceMappings") or [])
