"""Node classes and kubelets against bakes: whether the node has the bake, and leaves it alone. Pure.

Sources: Karpenter's NodeClasses and NodePools (default disks, ``instanceStorePolicy``), KubeletConfiguration v1beta1
(image GC at 85 and 80 % by default; ``imagePullCredentialsVerificationPolicy`` of KEP-2535), nodeadm's NodeConfig.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from parbake.core.errors import BadReference
from parbake.core.families import BOTTLEROCKET, FAMILIES, NodeFamily
from parbake.core.model import GIB
from parbake.core.reference import Reference
from parbake.core.yamltext import Where, as_list, as_map
from parbake.images.workloads import Thing
from parbake.rollouts.nodeclass import MappedDisk, NodeClass
from parbake.rollouts.nodesettings import NodeSettings, of_config
from parbake.workflows.lint.bakes import Bake, gib
from parbake.workflows.lint.rules import Finding, finding

NODE_CLASSES = {"EC2NodeClass", "AWSNodeTemplate"}
# Where kubelet settings stand, in the objects that have some.
_KUBELETS: dict[str, Where] = {
    "EC2NodeClass": ("spec", "kubelet"),
    "NodePool": ("spec", "template", "spec", "kubelet"),
    "Provisioner": ("spec", "kubeletConfiguration"),
    "KubeletConfiguration": (),
}
_HIGH, _LOW = 85, 80
_MOUNTS = re.compile(r"parbake-mount\.sh|LABEL=parbake|by-label/parbake|mount\b[^\n]*/var/lib/(?:containerd|docker)")
_GROWS = re.compile(r"parbake-mount\.sh|growfs|resize2fs")
_POLICY, _ALLOW_LIST = "imagePullCredentialsVerificationPolicy", "preloadedImagesVerificationAllowlist"
ALLOW_LISTED = "NeverVerifyAllowlistedImages"
_PAUSE = "localhost/kubernetes/pause"


def check(thing: Thing, bakes: Iterable[Bake]) -> Iterator[Finding]:
    """Yield what is wrong with an object that describes nodes, or a part of them."""
    bakes = tuple(bakes)
    where = _KUBELETS.get(thing.kind)
    if where is not None:
        yield from _kubelet(thing, where, _at(thing.data, where), bakes, 0)
    if thing.kind == "NodeConfig":
        yield from _settings(thing, ("spec",), of_config(thing.data), bakes, FAMILIES["AL2023"])
    if thing.kind in NODE_CLASSES:
        yield from _node_class(thing, bakes)
    if thing.kind == "NodeClass" and str(thing.data.get("apiVersion")).startswith("eks.amazonaws.com/"):
        message = "EKS Auto Mode chooses its AMI, and takes no user data and no snapshot"
        yield finding("cannot-use-a-bake", thing, (), message)


def _node_class(thing: Thing, bakes: tuple[Bake, ...]) -> Iterator[Finding]:
    node_class = NodeClass(thing.data)
    family, settings = node_class.family, node_class.settings
    policy = str(node_class.spec.get("instanceStorePolicy") or "")
    if policy and (message := settings.against_storage(policy, family)):
        yield finding("instance-store", thing, ("spec", "instanceStorePolicy"), message)
    yield from _images(thing, node_class, bakes)
    yield from _disks(thing, node_class, bakes)
    if node_class.user_data:
        yield from _settings(thing, ("spec", "userData"), settings, bakes, family)


def _images(thing: Thing, node_class: NodeClass, bakes: tuple[Bake, ...]) -> Iterator[Finding]:
    spec, family, terms = node_class.spec, node_class.family, node_class.terms
    machines = [bake for bake in bakes if bake.kind == "machine-image"]
    families = {bake.family for bake in bakes if bake.family}
    if families and family and not family.is_custom and family not in families:
        names, theirs = ", ".join(bake.name for bake in bakes), min(map(str, families))
        message = f"the node class is for {family}, and {names} for {theirs}"
        at: Where = ("spec", "amiFamily") if "amiFamily" in spec else ("spec", "amiSelectorTerms")
        yield finding("ami-family", thing, at, message)
    if not machines or len(machines) < len(bakes):
        return  # nodes with a volume run any AMI of their family
    ours = {ami for bake in machines for ami in bake.amis}
    names = ", ".join(bake.name for bake in machines)
    for index, term in enumerate(terms):
        at = ("spec", "amiSelectorTerms", index)
        if term.get("alias"):
            yield finding("ami-differs", thing, at, f"alias: {term['alias']} is AWS's own AMI, not {names}")
        elif term.get("id") and ours and term["id"] not in ours:
            yield finding("ami-differs", thing, at, f"{term['id']} is not {names} ({', '.join(sorted(ours))})")
    chosen = node_class.ids_before
    if chosen and ours and not ours & {*chosen}:
        message = f"{','.join(chosen)} is not {names} ({', '.join(sorted(ours))})"
        yield finding("ami-differs", thing, ("spec", "amiSelector"), message)
    if not terms and not node_class.older_selector and node_class.is_old:
        yield finding("ami-differs", thing, ("spec",), f"no amiSelector: Karpenter takes AWS's own AMI, not {names}")


def _disks(thing: Thing, node_class: NodeClass, bakes: tuple[Bake, ...]) -> Iterator[Finding]:
    family = node_class.family
    sizes = {snapshot: size for bake in bakes for snapshot, size in bake.snapshots if size}
    for index, disk in enumerate(node_class.disks):
        at: Where = ("spec", "blockDeviceMappings", index)
        snapshot, given, device = disk.snapshot, disk.size, disk.device
        least = sizes.get(snapshot, 0)
        if given and given < least:
            message = f"{device} has {gib(given)}, and the snapshot {snapshot} {gib(least)}"
            yield finding("volume-too-small", thing, (*at, "ebs", "volumeSize"), message)
        if snapshot in sizes and family.data and device != family.data:
            message = f"{snapshot} is mapped under {device}, and {family} looks for its store on {family.data}"
            yield finding("device-differs", thing, (*at, "deviceName"), message)
        if snapshot and any(bake.kind == "volume" and not bake.family and snapshot in _ids(bake) for bake in bakes):
            yield from _mount(thing, at, node_class, disk, least)
    yield from _root(thing, node_class, bakes)
    yield from _share(thing, node_class, bakes)


def _mount(thing: Thing, at: Where, node_class: NodeClass, disk: MappedDisk, size: int) -> Iterator[Finding]:
    """Check that the node uses its volume, where that follows from the user data; ``size`` in bytes (0: unknown)."""
    family, text, device, given = node_class.family, node_class.user_data, disk.device, disk.size
    if not family.is_told:
        return
    if not _MOUNTS.search(text):
        message = f"no user data mounts {device}, and {family or 'such a node'} mounts no second disk by itself"
        yield finding("volume-not-mounted", thing, (*at, "ebs", "snapshotID"), message)
    elif size and given > size and not _GROWS.search(text):
        message = f"{device} has {gib(given)}, and the file system of the snapshot {gib(size)}: nothing grows it"
        yield finding("volume-not-grown", thing, (*at, "ebs", "volumeSize"), message)
    kubelet = _kubelet_of(node_class)
    if family.nodeadm and "imagefs.available" not in as_map(kubelet.get("evictionHard")):
        message = f"the runtime's store is on {device}, and the kubelet's evictionHard does not name imagefs.available"
        yield finding("imagefs-unguarded", thing, at, message)


def _kubelet_of(node_class: NodeClass) -> dict[str, Any]:
    return {**as_map(node_class.spec.get("kubelet")), **node_class.settings.kubelet}


def _ids(bake: Bake) -> set[str]:
    return {snapshot for snapshot, _ in bake.snapshots}


def _root(thing: Thing, node_class: NodeClass, bakes: tuple[Bake, ...]) -> Iterator[Finding]:
    """Check the root volume of a baked AMI, whose size is Karpenter's unless it is written."""
    machines = [bake for bake in bakes if bake.kind == "machine-image" and bake.size]
    if not machines or len(machines) < len(bakes):
        return
    family, disks = node_class.family, node_class.disks
    device = family.root
    least = min(bake.size for bake in machines)
    marked = any(disk.is_root for disk in disks)
    for index, disk in enumerate(disks):
        if disk.is_root if marked else disk.device == device:
            if disk.size and disk.size < least:
                at = ("spec", "blockDeviceMappings", index, "ebs", "volumeSize")
                message = f"{disk.device} has {gib(disk.size)}, and the baked AMI's root volume {gib(least)}"
                yield finding("volume-too-small", thing, at, message)
            return
    default = family.disks.get(device, 0) * GIB  # 0: those of the AMI
    if not disks and 0 < default < least:
        message = (
            f"no blockDeviceMappings: Karpenter makes {device} {gib(default)}, and the baked AMI needs {gib(least)}"
        )
        yield finding("volume-too-small", thing, ("spec",), message)


def _share(thing: Thing, node_class: NodeClass, bakes: tuple[Bake, ...]) -> Iterator[Finding]:
    """Check how much of its volume a bake fills: garbage collection then takes all that is not pinned."""
    low = _percent(_kubelet_of(node_class).get("imageGCLowThresholdPercent"), _LOW)
    grows = not node_class.family.is_told or bool(_GROWS.search(node_class.user_data))
    for bake in bakes:
        ours = _ids(bake)
        for index, disk in enumerate(node_class.disks):
            given = (disk.size if grows else 0) or bake.size
            if disk.snapshot in ours and bake.filled and given and bake.filled * 100 > given * low:
                at = ("spec", "blockDeviceMappings", index, "ebs")
                message = (
                    f"{bake.name} fills {bake.filled * 100 // given} % of {gib(given)}: image garbage collection frees "
                    f"down to {low} %, and takes what is pulled"
                )
                yield finding("image-gc", thing, at, message)


def _settings(
    thing: Thing, where: Where, settings: NodeSettings, bakes: tuple[Bake, ...], family: NodeFamily
) -> Iterator[Finding]:
    if message := settings.against_snapshotter:
        yield finding("snapshotter-differs", thing, where, message)
    if message := settings.against_storage(family=family):
        yield finding("instance-store", thing, where, message)
    yield from _pause(thing, where, settings, bakes, family)
    if settings.kubelet:
        yield from _kubelet(thing, where, settings.kubelet, bakes, 1)


def _pause(
    thing: Thing, where: Where, settings: NodeSettings, bakes: tuple[Bake, ...], family: NodeFamily
) -> Iterator[Finding]:
    wanted = settings.sandbox or (_PAUSE if family.nodeadm else "")
    for bake in bakes:
        if bake.kind != "volume" or not wanted or family == BOTTLEROCKET or bake.sandbox == "auto":
            continue
        if not bake.sandbox:
            message = f"{bake.name} carries no pause image, and takes the place of the store that has {wanted}"
            yield finding("pause-image", thing, where, message)
        elif bake.sandbox.partition(":")[0] != wanted.partition(":")[0] and bake.sandbox != wanted:
            message = f"the node's pause image is {wanted}, and {bake.name} carries {bake.sandbox}"
            yield finding("pause-image", thing, where, message)


def _kubelet(
    thing: Thing, where: Where, config: Mapping[str, Any], bakes: tuple[Bake, ...], inside: int
) -> Iterator[Finding]:
    """Check kubelet settings; ``inside`` a text (user data) there are no places for single keys."""

    def at(key: str) -> Where:
        return where if inside else (*where, key)

    high = _percent(config.get("imageGCHighThresholdPercent"), _HIGH)
    for bake in bakes:
        if bake.filled and bake.size and bake.filled * 100 >= bake.size * high:
            message = f"garbage collection starts at {high} %, and {bake.name} fills {bake.filled * 100 // bake.size} %"
            yield finding("image-gc", thing, at("imageGCHighThresholdPercent"), message)
    policy = config.get(_POLICY)
    key = at(_POLICY)
    if policy == "AlwaysVerify":
        message = (
            "AlwaysVerify: no pod gets a baked image without the registry, with credentials or without, and a pull "
            "takes its pin"
        )
        yield finding("credentials-verified", thing, key, message)
    elif policy == ALLOW_LISTED:
        yield from _allow_list(thing, at(_ALLOW_LIST), key, config, bakes)
    elif policy == "NeverVerifyPreloadedImages":
        yield finding(
            "baked-images-are-open", thing, key, "NeverVerifyPreloadedImages: pods need no credentials for them"
        )


def _allow_list(
    thing: Thing, where: Where, key: Where, config: Mapping[str, Any], bakes: tuple[Bake, ...]
) -> Iterator[Finding]:
    allowed = [str(each) for each in as_list(config.get(_ALLOW_LIST))]
    for entry in allowed:
        if problem := _refused(entry):
            yield finding("allow-list-refused", thing, where, f"the kubelet does not start: {entry!r} {problem}")
    outside = [name for name in _names(bakes) if not any(_allows(pattern, name) for pattern in allowed)]
    if outside:
        message = f"the allow list does not name {', '.join(outside)}: the registry is asked before a pod gets them"
        yield finding("credentials-verified", thing, key, message)


def allow_listed(thing: Thing) -> bool:
    """Whether an object tells kubelets to allow images by name."""
    where = _KUBELETS.get(thing.kind)
    found = dict(_at(thing.data, where)) if where is not None else {}
    if thing.kind == "NodeConfig":
        found |= of_config(thing.data).kubelet
    elif thing.kind in NODE_CLASSES:
        found |= NodeClass(thing.data).settings.kubelet
    return found.get(_POLICY) == ALLOW_LISTED


def _names(bakes: tuple[Bake, ...]) -> list[str]:
    return sorted({image.reference.name for bake in bakes for image in bake.images})


def _refused(entry: str) -> str:
    """Say why a kubelet refuses an entry of the allow list (``getAllowlistImagePattern``); empty: it takes it."""
    bare = entry.removesuffix("*") if entry.endswith("/*") else entry
    if entry != entry.strip() or not bare or "*" in bare or entry == "/*":
        return "is neither a name nor a prefix that ends with /*"
    if bare != entry:
        return ""
    try:
        name = Reference.parse(entry).name
    except BadReference:
        return "is not an image's name"
    return "" if name == entry else f"is not written in full, as {name}"


def _allows(pattern: str, name: str) -> bool:
    """Whether an entry of the allow list fits: the name, without tag and digest; a last ``/*`` fits what is below."""
    return name == pattern or (pattern.endswith("/*") and name.startswith(pattern.removesuffix("*")))


def _percent(value: object, default: int) -> int:
    return int(str(value)) if re.fullmatch(r"[0-9]{1,3}", str(value)) else default


def _at(data: Any, where: Where) -> Mapping[str, Any]:
    for part in where:
        data = as_map(data).get(str(part))
    return as_map(data)
