"""Workloads against bakes: whether a pod finds its image on the node, and uses it. Pure.

Sources: Kubernetes documentation, "Images" (pull policies, the default for :latest); containerd's CRI plugin asks its
store for exactly the name in the spec, and for ``name@digest`` where a digest is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from parbake.core.errors import BadReference
from parbake.core.reference import Reference
from parbake.core.units import human_bytes
from parbake.core.yamltext import Where, as_map
from parbake.images.workloads import VOLUME, Thing, images_of, pod_specs
from parbake.workflows.lint.bakes import Bake, BakedImage
from parbake.workflows.lint.rules import Finding, finding

_FARGATE = "eks.amazonaws.com/fargate-profile"
_ARCHITECTURE = ("kubernetes.io/arch", "beta.kubernetes.io/arch")


def check(thing: Thing, bakes: Iterable[Bake], *, by_name: bool = False) -> Iterator[Finding]:
    """Yield what is wrong with the pods that an object describes; ``by_name``: kubelets have an allow list."""
    bakes = tuple(bakes)
    for place, spec in pod_specs(thing.data, ()):
        if why := _elsewhere(thing, spec):
            yield finding("cannot-use-a-bake", thing, place, why)
            continue
        for container in _containers(spec, place):
            yield from _container(thing, container, spec, bakes, by_name=by_name)


def check_changed(pod: Thing, maker: Mapping[str, object], root: Thing, bakes: Iterable[Bake]) -> Iterator[Finding]:
    """Yield what is wrong with a pod that is not what its maker's template says: images, policies, containers.

    Admission webhooks do that (digests, sidecars, ``Always``). Findings name ``root``, which people know.
    """
    bakes = tuple(bakes)
    for _, spec in pod_specs(pod.data, ()):
        template = {
            container.name: (container.image, container.policy)
            for _, made_of in pod_specs(maker, ())
            for container in _containers(made_of, ())
        }
        if _elsewhere(pod, spec):
            continue
        for container in _containers(spec, ()):
            image, policy = template.get(container.name, (None, None))
            if container.image == image and policy in {None, container.policy}:
                continue
            for each in _container(root, replace(container, where=()), spec, bakes):
                how = "was put into its pods" if image is None else "is so in its pods, not in its template"
                yield replace(each, message=f"{each.message} ({container.name} {how})")


def findings_on(
    pod: Thing, container: str, image: str, policy: str, bakes: Iterable[Bake]
) -> tuple[Reference | None, tuple[Finding, ...]]:
    """Return what an image is called that a container of a pod asks for, and what keeps the pod from the bakes'."""
    spec = as_map(pod.data.get("spec"))
    if (reference := named(image)) is None:
        return None, ()
    return reference, tuple(_container(pod, _Container((), container, image, policy), spec, tuple(bakes)))


def named(image: str) -> Reference | None:
    """Return an image's name as the runtime knows it; None for a text that is none: it is filled in elsewhere."""
    try:
        return Reference.parse(image)
    except BadReference:
        return None


@dataclass(frozen=True, slots=True)
class _Container:
    """A container, or an image volume, of a pod spec."""

    where: Where
    name: str
    image: str
    policy: object

    @property
    def is_volume(self) -> bool:
        return self.name.startswith(VOLUME)


def _containers(spec: Mapping[str, Any], place: Where) -> Iterator[_Container]:
    for spot, name, image, policy in images_of(spec):
        yield _Container((*place, *spot), name, str(image or "").strip(), policy)


def _elsewhere(thing: Thing, spec: Mapping[str, Any]) -> str:
    """Say why pods run where no bake can be; empty: they may run on nodes with one."""
    selector = spec.get("nodeSelector")
    wanted = selector if isinstance(selector, Mapping) else {}
    metadata = thing.data.get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, Mapping) else None
    compute = str(wanted.get("eks.amazonaws.com/compute-type") or "")
    if compute == "fargate" or (isinstance(labels, Mapping) and _FARGATE in labels):
        return "the pods run on Fargate, which takes no AMI and no volume of yours"
    if compute == "auto":
        return "the pods run on nodes of EKS Auto Mode, which takes no AMI, user data or snapshot of yours"
    system = spec.get("os")
    if "windows" in {str(wanted.get("kubernetes.io/os")), system.get("name") if isinstance(system, Mapping) else ""}:
        return "the pods run on Windows, and bakes are for Linux"
    return ""


def _container(
    thing: Thing, container: _Container, spec: Mapping[str, Any], bakes: tuple[Bake, ...], *, by_name: bool = False
) -> Iterator[Finding]:
    wanted = architectures(spec)
    fitting = [bake for bake in bakes if not wanted or bake.platform.architecture in wanted]
    if (reference := named(container.image)) is None:
        return
    where, name = container.where, container.name
    if fitting:
        known = [image for bake in fitting if (image := bake.find(reference))]
        if container.is_volume and known and not any(image.mounted for image in known):
            message = f"{reference} was started as a container, and these pods mount it"
            yield finding("volume-not-proven", thing, where, message, name)
        yield from _image(thing, where, name, reference, container.policy, fitting)
        if by_name and any(bake.find(reference) for bake in fitting):
            yield from _short(thing, where, name, container.image, reference)
    elif any(bake.find(reference) for bake in bakes):
        made = ", ".join(sorted({str(bake.platform) for bake in bakes}))
        message = f"{reference} is baked for {made}, and these pods run on {', '.join(sorted(wanted))}"
        yield finding("platform-differs", thing, where, message, name)


def _image(
    thing: Thing, where: Where, container: str, reference: Reference, policy: object, bakes: list[Bake]
) -> Iterator[Finding]:
    known = [(bake, image) for bake in bakes if (image := bake.find(reference))]
    if not known:
        yield _unknown(thing, where, container, reference, bakes)
        yield from _shared(thing, where, container, reference, bakes)
        return
    # Good in one bake is good: which nodes a pod comes to, nobody knows here.
    wrong = [_name(image, bake, reference) for bake, image in known]
    if all(wrong):
        rule, message = next(each for each in wrong if each)
        yield finding(rule, thing, where, message, container)
    implied = policy is None and reference.tag == "latest" and not reference.digest
    if policy == "Always" or implied:
        why = "there is no policy, and :latest means Always" if implied else "imagePullPolicy is Always"
        message = (
            f"{reference}: {why}: each start asks the registry, and the tag loses its pin; while one is asked, and "
            "after a pull with a secret, the node's other pods of the image wait or fail (kubelet 1.35 and later)"
        )
        yield finding("pull-policy-always", thing, _policy_at(thing, where), message, container)
        yield from _shared(thing, where, container, reference, bakes)
    elif reference.tag == "latest" and not reference.digest:
        yield finding(
            "latest-tag", thing, where, f"{reference}: what is baked today is not what runs tomorrow", container
        )


def _short(thing: Thing, where: Where, container: str, text: str, reference: Reference) -> Iterator[Finding]:
    """Find a name that the kubelet's allow list, which holds full names alone, covers from Kubernetes 1.36 on."""
    if not text.startswith(f"{reference.registry}/{reference.repository}"):
        message = f"{text}: kubelets before 1.36 look for this very text in their allow list, not for {reference.name}"
        yield finding("short-name", thing, where, message, container)


def _shared(
    thing: Thing, where: Where, container: str, reference: Reference, bakes: Iterable[Bake]
) -> Iterator[Finding]:
    """Find other names, in the bakes, of an image that these pods pull: the kubelet keeps its records by image id."""
    digests = {reference.digest} - {""}
    for bake in bakes:
        known = bake.find(reference)
        digests |= known.digests if known and not reference.digest else set()
    for bake in bakes:
        for image in bake.images:
            if image.digests & digests and image.reference.name != reference.name:
                message = (
                    f"{reference} is the same image as {image.reference} in {bake.name}: once it was pulled with a "
                    "secret, the kubelet asks pods of the baked name for that secret"
                )
                yield finding("shared-digest", thing, where, message, container)
                return


def _name(image: BakedImage, bake: Bake, reference: Reference) -> tuple[str, str] | None:
    """Return what is wrong with the name that a pod asks for, given that the bake has the image."""
    asked = reference.digest
    if asked and image.digests and asked not in image.digests:
        return "digest-differs", f"{reference}: {bake.name} has {next(iter(sorted(image.digests)))}"
    if asked and not image.by_digest:
        return "digest-name-missing", f"{reference}: {bake.name} has it only as {image.reference}"
    if asked and image.digest and asked != image.digest:
        return "digest-name-missing", f"{reference}: {bake.name} has the name with {image.digest}, of the same image"
    if not asked and not image.reference.tag:
        return "reference-differs", f"{reference}: {bake.name} has {image.reference}, without a tag"
    return None


def _unknown(thing: Thing, where: Where, container: str, reference: Reference, bakes: list[Bake]) -> Finding:
    """Tell an image that is not baked from one that is, under another tag or in another registry."""
    for bake in bakes:
        for image in bake.images:
            if image.reference.name == reference.name:
                message = f"the pods ask for {reference}, and {bake.name} has {image.reference}"
                return _remaining(finding("reference-differs", thing, where, message, container), bake, reference)
    for bake in bakes:
        for image in bake.images:
            same = image.reference.repository.rpartition("/")[2] == reference.repository.rpartition("/")[2]
            if same and image.reference.tag == reference.tag:
                message = (
                    f"the pods ask for {reference}, and {bake.name} has {image.reference}: another name to the node"
                )
                return _remaining(finding("reference-differs", thing, where, message, container), bake, reference)
    names = ", ".join(bake.name for bake in bakes)
    return finding("not-baked", thing, where, f"{reference} is not in {names}", container)


def _remaining(found: Finding, bake: Bake, reference: Reference) -> Finding:
    """Say what a node with the bake still fetches, where the registry tells; that pods gain something is no error."""
    covered = bake.covers(reference)
    if covered is None:
        return found
    message = f"{found.message}: {human_bytes(covered.missing)} of {human_bytes(covered.size)} remain to be fetched"
    useful = bool(covered.held) or not covered.layers
    return replace(found, message=message, rule=replace(found.rule, level="warning") if useful else found.rule)


def _policy_at(thing: Thing, where: Where) -> Where:
    if not where:
        return where
    key = "pullPolicy" if where[-1] == "reference" else "imagePullPolicy"
    at = (*where[:-1], key)
    return at if thing.document.find((*thing.where, *at))[0] == (*thing.where, *at) else where


def architectures(spec: Mapping[str, Any]) -> set[str]:
    """Return the architectures that a pod spec asks for (node selector, required affinity); empty: any."""
    selector = spec.get("nodeSelector")
    if isinstance(selector, Mapping):
        found = {str(selector[key]) for key in _ARCHITECTURE if key in selector}
        if found:
            return found
    found = set()
    affinity: Any = spec.get("affinity")
    for key in ("nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"):
        affinity = affinity.get(key) if isinstance(affinity, Mapping) else None
    for term in affinity if isinstance(affinity, list | tuple) else ():
        expressions = term.get("matchExpressions") if isinstance(term, Mapping) else None
        for each in expressions if isinstance(expressions, list | tuple) else ():
            if isinstance(each, Mapping) and each.get("key") in _ARCHITECTURE and each.get("operator") == "In":
                found |= {str(value) for value in each.get("values") or ()}
    return found
