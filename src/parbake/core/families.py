"""Families of node images: how each one's nodes are made, as far as a bake or a rollout has to know it. Pure.

Facts: aws/karpenter-provider-aws, ``pkg/providers/amifamily`` (default mappings and the device for ephemeral storage of
each family; ``Custom`` has no mappings of its own) and ``instancetype/types.go`` (``ephemeralStorage``), as the real
Karpenter 1.13 answered; the names of EKS's, Bottlerocket's and Canonical's public AMIs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class NodeFamily:
    """A family of node images, by the name that Karpenter gives it (empty: nobody knows which).

    ``disks`` is what Karpenter maps where a node class maps nothing, in GiB by device (a node with some mappings gets
    none of it), ``root`` the device of the root disk, and ``data`` the one on which its nodes look for a data volume by
    themselves. ``takes_parts``: its user data is MIME parts, among which parbake's may be; ``is_told``: its nodes mount
    and grow what these say, and nothing else. ``nodeadm`` sets them up. ``word`` is what the Bakefile's ``eks`` and
    Karpenter's aliases call it, ``amis`` how the names of its AMIs begin, ``login`` who may log in by SSH.
    """

    name: str
    disks: Mapping[str, int] = field(default_factory=dict, compare=False)
    root: str = "/dev/xvda"
    data: str = ""
    takes_parts: bool = True
    is_told: bool = False
    nodeadm: bool = False
    linux: bool = True
    word: str = ""
    amis: tuple[str, ...] = ()
    login: str = "ec2-user"

    def __str__(self) -> str:
        return self.name

    def __bool__(self) -> bool:
        return bool(self.name)

    @property
    def is_custom(self) -> bool:
        """Whether its AMIs are the user's own, of which Karpenter knows nothing."""
        return self.name == "Custom"

    def counts_the_last(self, disks: Sequence[Mapping[str, Any]]) -> bool:
        """Whether Karpenter takes the last of these mappings for the node's ephemeral storage: if none is root."""
        return self.is_custom and not any(each.get("rootVolume") for each in disks)


def _windows(year: int) -> NodeFamily:
    return NodeFamily(f"Windows{year}", takes_parts=False, linux=False, word=f"windows{year}")


_ROOT_ALONE: Final[Mapping[str, int]] = {"/dev/xvda": 20}
AL2: Final = NodeFamily("AL2", _ROOT_ALONE, is_told=True, word="al2", amis=("amazon-eks-",))
"""Also what Karpenter before v1 takes where neither a family nor an alias is named."""
BOTTLEROCKET: Final = NodeFamily(
    "Bottlerocket", {"/dev/xvda": 4, "/dev/xvdb": 20},
    data="/dev/xvdb", takes_parts=False, word="bottlerocket", amis=("bottlerocket",),
)  # fmt: skip
UNKNOWN: Final = NodeFamily("", _ROOT_ALONE, is_told=True)
FAMILIES: Final = {
    each.name: each
    for each in (
        NodeFamily(
            "AL2023", _ROOT_ALONE, is_told=True, nodeadm=True, word="al2023", amis=("amazon-eks-node-al2023",)
        ),
        AL2,
        BOTTLEROCKET,
        NodeFamily(
            "Ubuntu", {"/dev/sda1": 20},
            root="/dev/sda1", is_told=True, word="ubuntu", amis=("ubuntu",), login="ubuntu",
        ),
        *map(_windows, (2019, 2022, 2025)),
        NodeFamily("Custom"),
        UNKNOWN,
    )
}  # fmt: skip
"""All of them, by name."""
ASSUMED = 20
"""GiB of ephemeral storage that Karpenter assumes where no mapping says it."""
BY_WORD: Final = {each.word: each for each in FAMILIES.values() if each.word}
"""Those that the Bakefile's ``eks`` or an alias of Karpenter names."""


def family_of_ami(name: str) -> NodeFamily:
    """Return the family of a public AMI, by its name."""
    return next((each for each in FAMILIES.values() if name.lower().startswith(each.amis)), UNKNOWN)


def family_of(spec: Mapping[str, Any], *, silent: NodeFamily = UNKNOWN) -> NodeFamily:
    """Return the family of Karpenter's node class: by its alias, else as it says, else ``silent``.

    A name that is none of Karpenter's is passed on: its own rules refuse it.
    """
    terms = spec.get("amiSelectorTerms")
    for term in terms if isinstance(terms, list | tuple) else ():
        alias = str((term.get("alias") if isinstance(term, Mapping) else "") or "").partition("@")[0]
        if alias:
            return UNKNOWN if alias == "ubuntu" else BY_WORD.get(alias, UNKNOWN)
    name = str(spec.get("amiFamily") or "")
    return FAMILIES.get(name, NodeFamily(name)) if name else silent
