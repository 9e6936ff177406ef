"""Volumes that are launched raised for the start alone: how fast, and the tag by which they may be taken back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from parbake.aws.limits import GP3, RAISED_GP3, Gp3
from parbake.aws.tags import BOOST

SPEED = ("iops", "throughput")
NO_ROOM = (
    "the user data has no room for what lets nodes take their raised volumes back: `parbake watch` or `parbake clean "
    "--aws` does, a quarter of an hour after a start; run one of them every few minutes"
)


def boosted(spec: Mapping[str, Any]) -> str:
    """Return what the tag says that a node class gives to what it launches; empty: it has none."""
    tags = spec.get("tags")
    return str(tags.get(BOOST, "")) if isinstance(tags, Mapping) else ""


def tag_of(device: str, ebs: Mapping[str, Any]) -> str:
    """Return the tag of a raised volume: under which device, and how raised, for all volumes of a node have it."""
    return f"{device} {_gp3(ebs).figures}"


def retag(spec: dict[str, Any], tag: str) -> None:
    """Put the tag among those that a node class gives to what it launches, or take it out; others stay."""
    if boosted(spec) != tag:
        own = {key: value for key, value in (spec.get("tags") or {}).items() if key != BOOST}
        spec["tags"] = {**own, **({BOOST: tag} if tag else {})}
        if not spec["tags"]:
            del spec["tags"]


def raised(gib: int) -> dict[str, int]:
    """Return the settings of a volume of so many GiB that is raised as far as it can be."""
    return asdict(RAISED_GP3.within(gib))


def slow(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping of a volume that was launched raised as it is without: nobody would take it back."""
    return {**mapping, "ebs": {key: value for key, value in (mapping.get("ebs") or {}).items() if key not in SPEED}}


def of_a_remedy(ebs: Mapping[str, Any], gib: int) -> bool:
    """Whether a volume of so many GiB is as fast as a remedy makes it, and not as somebody else wanted it."""
    return raised(gib).items() <= ebs.items()


def against(ebs: Mapping[str, Any], gib: int, *, boost: bool) -> list[str]:
    """Return why EC2 launches no node with such a volume, or why it would stay raised."""
    kind = str(ebs.get("volumeType") or "gp2")
    if kind != "gp3":
        return [f"`boost` is for gp3, and the volume is of type {kind}: write `volumeType: gp3`"] if boost else []
    wanted = _gp3(ebs)
    if (most := wanted.within(gib)) == wanted:
        return []
    return [f"a gp3 volume of {gib} GiB with {wanted} cannot be made: write at most {most}, or a larger `volumeSize`"]


def _gp3(ebs: Mapping[str, Any]) -> Gp3:
    return Gp3(int(ebs.get("iops") or GP3.iops), int(ebs.get("throughput") or GP3.throughput))
