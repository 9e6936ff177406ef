"""Which instances a node class launches, and whether what is offered starts on all of them. Pure.

An alias of Karpenter is several AMIs: standard, nvidia and neuron, for amd64 and arm64. Karpenter tells them apart by
requirements that it knows of them. An AMI by id, name, tag or parameter has the requirement of its architecture alone:
of two for one architecture the newest wins, on every instance, and an architecture without one launches nothing.
Sources: aws/karpenter-provider-aws, ``pkg/providers/amifamily`` (``types.go``, ``al2023.go``), and what Karpenter 1.13
answered.

What a NodePool may launch is what is left of EC2's instance families when its requirements are held against them. A
pool without requirements launches GPUs as well, for pods that ask for some (``filterExoticInstanceTypes``).
"""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from parbake.rollouts.gitops.objects import value_at
from parbake.rollouts.nodeclass import NodeClass
from parbake.rollouts.protocol import Offer

_AWS, _ARCH, _TYPE = "karpenter.k8s.aws/instance-", "kubernetes.io/arch", "node.kubernetes.io/instance-type"
_OLDER = {f"beta.{_ARCH}": _ARCH, "beta.kubernetes.io/instance-type": _TYPE}
_FAMILY, _CATEGORY, _MAKER = (f"{_AWS}{each}" for each in ("family", "category", "cpu-manufacturer"))
_PARTS = {"nvidia": f"{_AWS}gpu-", "neuron": f"{_AWS}accelerator-"}
_OF_PARTS = ("name", "manufacturer", "count", "memory")
_VARIANTS = {**dict.fromkeys(("g", "gr", "p", "dl"), "nvidia"), **dict.fromkeys(("inf", "trn"), "neuron")}
_ARCHITECTURES = ("amd64", "arm64")
# A family of each category, architecture, maker and generation that NodePools tell apart (EC2, "Instance types").
_FAMILIES = (
    "a1 c4 c5 c5a c6i c6a c6g c7i c7a c7g c8i c8g d3 f2 g4dn g4ad g5 g5g g6 gr6 h1 hpc6a hpc7g i3 i4i i4g i7i i8g inf1 "
    "inf2 is4gen im4gn m4 m5 m5a m6i m6a m6g m7i m7a m7g m8i m8g p3 p4d p5 p6e-gb200 r4 r5 r5a r6i r6a r6g r7i r7a r7g "
    "r8i r8g t2 t3 t3a t4g trn1 trn2 u7i vt1 x1 x2iedn x2gd x8g z1d dl1"
)
_NAME = re.compile(r"([a-z]+)(\d+)(.*)")
_COMPARED = {"Gt": operator.gt, "Gte": operator.ge, "Lt": operator.lt, "Lte": operator.le}
# What an alias is where Karpenter has not said it yet.
_OF_AN_ALIAS = ("standard amd64", "nvidia amd64", "neuron amd64", "standard arm64", "nvidia arm64")
_WAY = "Give each variant a node class of its own, and roll out to it what was baked onto that variant"


class Objections(NamedTuple):
    """What speaks against an offer, and what to know of it."""

    refusals: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()


class _Requirement(NamedTuple):
    key: str
    operator: str
    values: tuple[str, ...] = ()


class _Launches(NamedTuple):
    """Variants and architectures that a NodePool names, and those that it launches for pods that ask for them."""

    asked: frozenset[str]
    may: frozenset[str]


def objections(
    node_class: NodeClass,
    pools: Iterable[Mapping[str, Any]],
    claims: Iterable[Mapping[str, Any]],
    offer: Offer,
) -> Objections:
    """Say which of the instances that a node class launches could not start from an offer's images, or lack a driver.

    What nodes are, or what NodePools name, is a reason to refuse; what a NodePool launches only for pods that ask for
    it is one to know.
    """
    amis, pools, claims = _amis(node_class), list(pools), list(claims)
    named = _by_word((_name_of(each), _launches(each).asked) for each in pools)
    possible = _by_word((_name_of(each), _launches(each).may) for each in pools)
    running = _by_word((_pool_of(each), _of_claim(each, amis)) for each in claims)
    refusals, cautions = list[str](), list[str]()
    offered = f"the {'image' if offer.images else 'volume'} is for {' and '.join(offer.architectures)}"
    lost = "Karpenter launches none of them any more" if offer.images else "its images do not run on them"
    for other in sorted(set(_ARCHITECTURES) - set(offer.architectures)):
        for name in sorted(named[other]):
            theirs = [each for each in _ARCHITECTURES if name in named[each]]
            refusals.append(f"{name} asks for {', '.join(theirs)}; {offered}")
        refusals += [f"{name} has nodes for {other}; {offered}" for name in sorted(running[other] - named[other])]
        left = possible[other] - running[other]
        if left and any(other in words for words in amis.values()):
            cautions.append(
                f"{_list(left)} names no architecture and has {other} instances, and {offered}: {lost}. Bake for both "
                f"(`platforms`), or let it ask for {offer.architectures[0]}"
            )
    if not offer.images:
        return Objections(tuple(refusals), tuple(cautions))
    used = {word: named[word] | running[word] for word in ("standard", *_PARTS) if named[word] | running[word]}
    of_variants = _of_variants(amis, used, possible, offer)
    return Objections((*refusals, *of_variants.refusals), (*cautions, *of_variants.cautions))


def _of_variants(
    amis: Mapping[str, frozenset[str]], used: Mapping[str, set[str]], possible: Mapping[str, set[str]], offer: Offer
) -> Objections:
    """Judge by the AMIs that variants have now: a class that does not tell them apart loses none."""
    now = {word: sorted(ami for ami, words in amis.items() if word in words) for word in ("standard", *_PARTS)}
    if not any(now.values()):
        lacking = {
            word: names for word, names in used.items() if offer.variant and word not in {"standard", offer.variant}
        }
        said = f"{offer.name} was baked onto the {offer.variant} image, and has no driver for them"
        return Objections((), (f"Karpenter launches {_launched(lacking)}; {said}",) if lacking else ())
    used = {word: names for word, names in used.items() if now[word]}
    wrong = {word: names for word, names in used.items() if word != offer.variant} if offer.variant else {}
    if wrong or (not offer.variant and len({tuple(now[word]) for word in used}) > 1):
        onto = f", baked onto its {offer.variant} variant," if offer.variant else ""
        several = "several variants" if len(used) > 1 else "another variant"
        return Objections((
            f"Karpenter launches {several} of its image ({_launched(used)}), and would launch this one image"
            f"{onto} for all of them: GPUs and accelerators would have no driver. {_WAY}",
        ))  # fmt: skip
    cautions = list[str]()
    if not used and len({tuple(each) for each in now.values()}) > 1:
        cautions.append(
            "no NodePool of the node class is known here, and its alias is several images: see that its NodePools ask "
            f"for instances for {' and '.join(offer.architectures)}, and for one variant"
        )
    if not offer.variant and not used.keys() <= {"standard"}:
        cautions.append(f"Karpenter launches {_launched(used)}: see that {offer.name} was baked onto that variant")
    others = {word: possible[word] for word in now if now[word] and possible[word] and word != offer.variant}
    if others:
        cautions.append(
            f"Karpenter launches {_launched(others)} as well, for pods that ask for it, and they would start from this "
            f"image without its driver: let the requirements of the NodePool exclude it. {_WAY}"
        )
    return Objections((), tuple(cautions))


def _launched(used: Mapping[str, set[str]]) -> str:
    return "; ".join(f"{variant}: {_list(names)}" for variant, names in sorted(used.items()))


def _by_word(said: Iterable[tuple[str, Iterable[str]]]) -> dict[str, set[str]]:
    """Return who said each word."""
    found = defaultdict[str, set[str]](set)
    for name, words in said:
        for word in words:
            found[word].add(name)
    return found


def _name_of(pool: Mapping[str, Any]) -> str:
    return f"NodePool {value_at(pool, ('metadata', 'name'))}"


def _pool_of(claim: Mapping[str, Any]) -> str:
    pool = claim["metadata"].get("labels", {}).get("karpenter.sh/nodepool", "")
    return f"NodePool {pool}" if pool else f"NodeClaim {claim['metadata']['name']}"


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _amis(node_class: NodeClass) -> dict[str, frozenset[str]]:
    """Return the AMIs that a node class has now, by id, with the variants and architectures that each is for."""
    found = defaultdict[str, frozenset[str]](frozenset)
    for ami in value_at(node_class.document, ("status", "amis")) or []:
        words = set()
        for each in ami.get("requirements") or []:
            key = str(each.get("key", ""))
            words |= {str(value) for value in each.get("values") or [] if key == _ARCH}
            parts = {variant for variant, start in _PARTS.items() if key.startswith(start)}
            words |= {"standard"} if parts and each.get("operator") == "DoesNotExist" else parts
        found[str(ami.get("id"))] |= words
    by_id = any(not term.get("alias") for term in node_class.terms) or node_class.older_selector
    if not found and not by_id and node_class.family.name in {"AL2", "AL2023"}:
        return {words: frozenset(words.split()) for words in _OF_AN_ALIAS}
    return dict(found)


def _of_claim(claim: Mapping[str, Any], amis: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Return what a node is: by the labels of its instance's type, else by its AMI."""
    labels = claim["metadata"].get("labels", {})
    if _FAMILY not in labels:
        return amis.get(str(claim.get("status", {}).get("imageID", "")), frozenset())
    parts = {variant for variant, start in _PARTS.items() if any(key.startswith(start) for key in labels)}
    return frozenset({str(labels.get(_ARCH, "")), *(parts or {"standard"})} - {""})


def _launches(pool: Mapping[str, Any]) -> _Launches:
    requirements = _requirements(pool)
    named = {value for each in requirements if each.key == _FAMILY and each.operator == "In" for value in each.values}
    families = [_labels(family) for family in {*_FAMILIES.split(), *named}]
    fitting = [each for each in families if all(_allows(asked, each) for asked in requirements)]
    if not fitting:  # of families that nobody has heard of yet, the architecture is known where it is named
        only = [asked for asked in requirements if asked.key == _ARCH]
        fitting = [each for each in map(_labels, ("m5", "m6g")) if all(_allows(asked, each) for asked in only)]
    architectures, variants = {each[_ARCH] for each in fitting}, {_variant(each) for each in fitting}
    keys = {each.key for each in requirements if each.operator == "In"}
    parts = {each.key for each in requirements if each.operator not in {"NotIn", "DoesNotExist"}}
    asked = set(architectures) if len(architectures) == 1 or keys & {_ARCH, _FAMILY, _MAKER} else set()
    if keys & {_FAMILY, _CATEGORY} or any(each.startswith(tuple(_PARTS.values())) for each in parts):
        asked |= variants
    else:
        asked |= variants if len(variants) == 1 else variants & {"standard"}
    return _Launches(frozenset(asked), frozenset((architectures | variants) - asked))


def _requirements(pool: Mapping[str, Any]) -> list[_Requirement]:
    """Return what a NodePool requires of its instances; instance types as their families."""
    labels = value_at(pool, ("spec", "template", "metadata", "labels"))
    listed = value_at(pool, ("spec", "template", "spec", "requirements"))
    found = [(key, "In", [value]) for key, value in labels.items()] if isinstance(labels, Mapping) else []
    for each in listed if isinstance(listed, list) else []:
        if isinstance(each, Mapping):
            values = each.get("values")
            found.append((each.get("key"), str(each.get("operator")), values if isinstance(values, list) else []))
    made = []
    for name, how, values in found:
        key, words = _OLDER.get(str(name), str(name)), tuple(map(str, values))
        if key == _TYPE and how == "In":
            key, words = _FAMILY, tuple(each.partition(".")[0] for each in words)
        made.append(_Requirement(key, how, words))
    return made


def _labels(family: str) -> dict[str, str]:
    """Return what Karpenter knows of a family's instances; of its GPUs or accelerators that there are some.

    The letters behind the generation say the processor: ``g`` is Graviton or Grace, ``a`` is AMD.
    """
    match = _NAME.match(family)
    category, generation, rest = match.groups() if match else (family, "", "")
    arm = "g" in rest or family == "a1"
    labels = {_FAMILY: family, _CATEGORY: category, f"{_AWS}generation": generation}
    labels |= {_ARCH: "arm64" if arm else "amd64", _MAKER: "aws" if arm else "amd" if "a" in rest else "intel"}
    if category in _VARIANTS:
        labels |= {_PARTS[_VARIANTS[category]] + each: "" for each in _OF_PARTS}
    return labels


def _variant(labels: Mapping[str, str]) -> str:
    return _VARIANTS.get(labels[_CATEGORY], "standard")


def _allows(asked: _Requirement, labels: Mapping[str, str]) -> bool:
    """Whether a requirement lets a family in (Karpenter, ``pkg/scheduling/requirement.go``)."""
    value = labels.get(asked.key)
    if value is None and not asked.key.startswith(tuple(_PARTS.values())):
        return True  # of sizes, zones and the like
    match asked.operator:
        case "DoesNotExist":
            return value is None
        case "NotIn":
            return value is None or value not in asked.values
        case "In":
            return value == "" or value in asked.values
        case compared if compared in _COMPARED and value and asked.values and asked.values[0].isdecimal():
            return bool(value.isdecimal() and _COMPARED[compared](int(value), int(asked.values[0])))
        case _:
            return value is not None
