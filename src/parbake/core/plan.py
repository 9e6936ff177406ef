"""Decide: what the Bakefile asks for and the world answers becomes a frozen, hashed Plan. Pure: no disk, no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parbake.core.errors import InputError
from parbake.core.model import GIB, MIB, Artefact, Base, Image, Layer, Plan, Platform

# The kubelet evicts images from 85 % of the disk down to 80 % (its defaults): the baked part stays well below.
LARGEST_BAKED_SHARE = 0.60
# Without a hint from the registry: layers of programs inflate 2 to 3.5 times; more only costs holes in a sparse file.
_UNKNOWN_RATIO = 4.0
# Block rounding, inodes and directories of many small files, as a share of the tar's size (a tar spends 1 KiB a file).
_FILESYSTEM_SHARE = 1.15
# containerd's databases, manifests and configs, the journal of the file system.
_FIXED_COST = 128 * MIB
_SMALLEST_VOLUME = 1 * GIB
# Layers of programs inflate up to 5 times, of logs up to 20; gzip can do 1030.
_LARGEST_RATIO = 64
# An empty file takes 512 bytes in a tar, and an inode with its share of a small volume (4 KiB) there.
_MOST_SMALL_FILES = 8


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a plan weighs, in bytes.

    ``transfer`` is what travels, ``raw`` the inflated layers, ``estimated`` says that the registry gave no hint for
    some of them, ``baked`` what the artefact's file system will hold on top of the base.
    """

    transfer: int
    raw: int
    estimated: bool
    baked: int


def _distinct_layers(images: Sequence[Image]) -> list[Layer]:
    """Return each snapshot once: the same layer on another parent is unpacked again, as its chain ID says."""
    return list({layer.chain_id: layer for image in images for layer in image.layers}.values())


def _raw_size(layer: Layer) -> int:
    return layer.raw_size or int(layer.size * _UNKNOWN_RATIO)


def snapshot_size(layer: Layer) -> int:
    """Return the bytes that a layer's snapshot takes in a bake: an estimate where the registry gave no hint."""
    return int(_raw_size(layer) * _FILESYSTEM_SHARE)


def measure(images: Sequence[Image], *, keep_layers: bool) -> Sizes:
    """Add up what the images will take."""
    layers = _distinct_layers(images)
    blobs = {layer.digest: layer.size for layer in layers}
    documents = sum(image.manifest.size + image.config.size for image in images)
    raw = sum(map(_raw_size, layers))
    baked = int(raw * _FILESYSTEM_SHARE) + documents + (sum(blobs.values()) if keep_layers else 0)
    return Sizes(
        transfer=sum(blobs.values()) + documents,
        raw=raw,
        estimated=any(not layer.raw_size for layer in layers),
        baked=baked,
    )


def disk_size(images: Sequence[Image], base: Base, *, keep_layers: bool) -> int:
    """Return the size of the disk or volume in bytes, whole GiB: the base, and the bake at 60 % of the rest."""
    needed = (measure(images, keep_layers=keep_layers).baked + _FIXED_COST) / LARGEST_BAKED_SHARE
    return max(-(-int(base.size + needed) // GIB) * GIB, _SMALLEST_VOLUME)


def make_plan(
    *,
    name: str,
    platform: Platform,
    base: Base,
    artefact: Artefact,
    images: Sequence[Image],
    sandbox: Image | None,
    keep_layers: bool = False,
    fixed_size: int = 0,
) -> Plan:
    """Make the plan; raises InputError when the choices cannot work together (a fixed size that is too small)."""
    everything = (*images, sandbox) if sandbox else tuple(images)
    below = Base(kind="none") if artefact.kind == "volume" else base  # what fills a volume is not in it
    size = fixed_size or disk_size(everything, below, keep_layers=keep_layers)
    sizes = measure(everything, keep_layers=keep_layers)
    baked = 0 if sizes.estimated else sizes.baked
    # How much of a disk of the user's is free, only a look into it tells: the images may fit into that.
    least = max(below.size, baked) if below.kind in {"file", "ami"} else below.size + baked
    if fixed_size and fixed_size < least:
        raise InputError(
            f"size: {fixed_size // MIB} MiB cannot hold the base and the images, which take at least "
            f"{-(-least // MIB)} MiB",
            hint="remove `size` from the Bakefile to let parbake choose, or raise it",
        )
    return Plan(
        name=name,
        platform=platform,
        base=base,
        artefact=artefact,
        images=tuple(sorted(images, key=lambda image: str(image.reference))),
        sandbox=sandbox,
        keep_layers=keep_layers,
        size=size,
        size_is_fixed=bool(fixed_size),
    )


def title(image: Image) -> str:
    """Return what people call an image: its reference, or whose lowest layers it is. Pure."""
    return f"{image.part_of} (lowest {len(image.layers)} layers)" if image.part_of else str(image.reference)


def starting(plan: Plan) -> tuple[Image, ...]:
    """Return what nodes start of a plan, in the Bakefile's order: whole images. Pure."""
    return tuple(sorted(plan.whole_images, key=lambda image: image.order))


def larger(plan: Plan, *, bomb: bool) -> Plan | None:
    """Return the plan with a disk of twice the size after it proved too small, or None where that does not help.

    A fixed size is the user's. ``bomb``: a layer inflated to more than the whole disk, which is only believed while
    nobody knows its size. In all, the disk stays in a proportion to what travels that images of programs never reach.
    """
    sizes = measure(plan.all_images, keep_layers=plan.keep_layers)
    if plan.size_is_fixed or (bomb and not sizes.estimated):
        return None
    most = max(sizes.transfer * _LARGEST_RATIO, sizes.raw * _MOST_SMALL_FILES) / LARGEST_BAKED_SHARE
    below = 0 if plan.artefact.kind == "volume" else plan.base.size
    size = min(plan.size * 2, -(-int(below + most) // GIB) * GIB)
    return plan.model_copy(update={"size": size}) if size > plan.size else None


def cautions(plan: Plan) -> tuple[str, ...]:
    """Return what a user should know before baking this plan, in plain words."""
    found = []
    sizes = measure(plan.all_images, keep_layers=plan.keep_layers)
    volume = plan.artefact.kind == "volume"
    added = plan.size - (0 if volume else plan.base.size)
    if plan.size_is_fixed and sizes.baked > added and plan.base.kind in {"file", "ami"} and not volume:
        found.append(
            f"the fixed `size` adds {added // MIB} MiB to the base's disk, and the images take about "
            f"{-(-sizes.baked // MIB)} MiB: the rest has to fit into what is free in the base"
        )
    elif plan.size_is_fixed and sizes.baked > LARGEST_BAKED_SHARE * added:
        found.append(
            f"the images fill {sizes.baked / max(1, added):.0%} of the free part of the disk: the kubelet's image "
            f"garbage collection starts at 85 % of the disk (pinned images are spared, pulled ones are not); a larger "
            f"`size` is safer"
        )
    if volume and plan.sandbox is None and plan.base.kind == "none":  # else what fills it brings its own
        found.append(
            "the volume carries no sandbox (pause) image: a node that mounts it over its runtime's root can start no "
            "pod unless it brings one itself; set `sandbox` to the image that the node's containerd is configured with"
        )
    return tuple(found)
