"""Which containers used the bake of their node, which pulled all the same, and why. Pure.

What happened is taken from the kubelet's events, why it did from the rules of lint. A cause is ``sure`` where the pod's
own words explain the pull, ``likely`` where what happened around it does, and unknown where neither does, or two do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from parbake.core.reference import Reference
from parbake.core.yamltext import Document
from parbake.images.workloads import Thing
from parbake.rollouts.nodeclass import NodeClass
from parbake.workflows.lint import nodes as node_rules
from parbake.workflows.lint.bakes import Bake, BakedImage
from parbake.workflows.lint.pods import findings_on, named
from parbake.workflows.lint.rules import BY_ID, Finding, Rule
from parbake.workflows.observe.kubelet import EXPIRY, KubeletEvent
from parbake.workflows.observe.seen import Seen, SeenContainer, SeenNode, SeenPod

type Outcome = Literal["used", "pulled", "unknown", "waits", "other"]
"""``used`` the bake; ``pulled``, or tries to; ``waits`` for its start; ``other``: its image is not in the bake."""
type Sureness = Literal["", "sure", "likely"]

_OF_THE_POD = (
    "platform-differs", "digest-differs", "digest-name-missing", "reference-differs", "pull-policy-always", "not-baked",
)  # fmt: skip
_OF_THE_NODE = {
    "instance-store", "snapshotter-differs", "device-differs", "volume-not-mounted", "ami-family",
    "credentials-verified",
}  # fmt: skip
_EXPIRED = "events are older than 1 h"
_CLOCK = 5.0
"""Seconds that a node's clock may differ from the server's, by what its events say of both, before it is told."""
_VERIFIES = (1, 35)
"""From this version on a kubelet asks the registry for a preloaded image that somebody has pulled (KEP-2535)."""


@dataclass(frozen=True, slots=True)
class ImageUse:
    """What became of one container's image.

    ``rule`` is the cause by lint's rules (None: unknown), ``why`` says it of this container, and ``sureness`` how sure
    the outcome and its cause are. ``seconds`` are from when nothing else of the pod stood before the container to its
    start, ``pull_seconds`` and ``size`` (bytes) are what the kubelet says of a pull; None and 0: not known.
    """

    pod: SeenPod
    container: SeenContainer
    outcome: Outcome
    why: str = ""
    rule: Rule | None = None
    sureness: Sureness = ""
    seconds: float | None = None
    pull_seconds: float | None = None
    size: int = 0
    artefacts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Cause:
    outcome: Outcome
    why: str = ""
    rule: str = ""
    sureness: Sureness = ""


class Attribution:
    """Decides for a cluster that was seen, with the ``bakes`` that are known; those ``chosen`` run on chosen nodes."""

    def __init__(self, seen: Seen, bakes: Sequence[Bake], chosen: Sequence[Bake] = ()) -> None:
        self._seen, self._known, self._chosen = seen, tuple(bakes), tuple(chosen)
        self._nodes = {node.name: node for node in seen.nodes}
        self._pods = {pod.uid: pod for pod in (*seen.pods, *_gone(seen))}
        self._told: dict[str, list[KubeletEvent]] = defaultdict(list)
        self._of_image: dict[tuple[str, str], list[KubeletEvent]] = defaultdict(list)
        # Whoever may create events creates them in a namespace: they tell of its pods, and of no others.
        own = [event for event in seen.events if _is_of(event, self._pods.get(event.uid))]
        for event in sorted(own, key=lambda each: each.at):
            self._told[event.uid].append(event)
            if event.image:
                self._of_image[event.node, _normal(event.image)].append(event)

    @cached_property
    def clocks(self) -> dict[str, float]:
        """Seconds that nodes' clocks are behind the server's, where that is too much to time their starts.

        The server notes an event moments after its node has dated it: the least difference is that of the clocks.
        """
        behind: dict[str, float] = {}
        for event in (each for told in self._told.values() for each in told):
            late = (event.noted - event.at).total_seconds()
            behind[event.node] = min(late, behind.get(event.node, late))
        return {name: seconds for name, seconds in behind.items() if abs(seconds) > _CLOCK}

    def bakes_of(self, node: SeenNode) -> tuple[Bake, ...]:
        """Return what a node runs, of the bakes that are known: a machine image, a volume, or one of each."""
        if node.name in self._seen.chosen:
            return self._chosen
        snapshots = set(node.snapshots)
        return tuple(
            bake
            for bake in self._known
            if (node.ami and node.ami in bake.amis) or snapshots & {name for name, _ in bake.snapshots}
        )

    def without_record(self, node: SeenNode) -> str:
        """Return the artefact that a rollout has given a node and of which no record is here; empty: none is known."""
        if self.bakes_of(node) or node.node_class is None:
            return ""
        past = NodeClass(node.node_class.data).history
        for held in (past.current, past.previous, past.left):
            if held and held.artefacts and (node.ami in held.images or held.snapshot in node.snapshots):
                return held.name
        return ""

    def uses(self) -> tuple[ImageUse, ...]:
        """Return what became of each container on a node that runs a bake, of pods that are gone as well."""
        found = []
        for pod in self._pods.values():
            node = self._nodes.get(pod.node)
            if node and (bakes := self.bakes_of(node)):
                found += [self._use(pod, container, node, bakes) for container in pod.containers]
        return tuple(found)

    def elsewhere(self, bakes: Sequence[Bake]) -> tuple[ImageUse, ...]:
        """Return what became of images of these bakes on nodes that run none that is known: how it was before."""
        found = []
        for pod in self._pods.values():
            node = self._nodes.get(pod.node)
            if node is None or self.bakes_of(node):
                continue
            for container in pod.containers:
                reference = named(container.image)
                if reference and any(bake.find(reference) for bake in bakes):
                    first = self._first(pod, container)
                    outcome: Outcome = "unknown"
                    if first:
                        outcome = "used" if first.telling == "present" else "pulled"
                    found.append(self._timed(ImageUse(pod, container, outcome), node))
        return tuple(found)

    def _use(self, pod: SeenPod, container: SeenContainer, node: SeenNode, bakes: tuple[Bake, ...]) -> ImageUse:
        cause = self._cause(pod, container, node, bakes)
        use = ImageUse(
            pod, container, cause.outcome, cause.why, BY_ID.get(cause.rule), cause.sureness,
            artefacts=tuple(bake.name for bake in bakes),
        )  # fmt: skip
        return self._timed(use, node)

    def _timed(self, use: ImageUse, node: SeenNode) -> ImageUse:
        told = self._events(use.pod, use.container)
        pulled = next((each for each in told if each.telling == "pulled"), None)
        began = next((each.at for each in told if each.telling == "started"), None)
        if use.container.restarts and self._is_old(use.pod):
            began = None  # of some later start
        began = use.container.started or began
        seconds = (began - use.container.freed).total_seconds() if began and use.container.freed else -1.0
        return replace(
            use,
            seconds=seconds if seconds >= 0 and node.name not in self.clocks else None,
            pull_seconds=pulled.seconds if pulled else None,
            size=pulled.size if pulled else 0,
        )

    def _events(self, pod: SeenPod, container: SeenContainer) -> list[KubeletEvent]:
        """Return what was told of a container; of an image volume, what names its image and no container."""
        return [
            each
            for each in self._told[pod.uid]
            if each.container == container.name or (not each.container and each.image == container.image)
        ]

    def _first(self, pod: SeenPod, container: SeenContainer) -> KubeletEvent | None:
        return next((each for each in self._events(pod, container) if each.telling != "started"), None)

    def _is_old(self, pod: SeenPod) -> bool:
        since = pod.scheduled or pod.made
        return since is not None and self._seen.at - since > EXPIRY

    def _cause(self, pod: SeenPod, container: SeenContainer, node: SeenNode, bakes: tuple[Bake, ...]) -> _Cause:
        reference, findings = findings_on(pod.thing, container.name, container.image, container.policy, bakes)
        if reference is None:
            return _Cause("other", "its image is no name that can be read")
        baked = next((image for bake in bakes if (image := bake.find(reference))), None)
        said = _said_by_the_pod(container, reference, baked, findings, bakes)
        first = self._first(pod, container)
        if said and (said.rule == "not-baked" or (first and first.telling != "present")):
            found = said
        elif first is None:
            return self._silent(pod, container)
        elif first.telling == "present":
            found = self._present(first, container, node, baked)
        else:
            found = self._around(first, pod, container, node, bakes)
        if container.restarts and self._is_old(pod) and found.rule != "not-baked":
            return _Cause("unknown", f"it was started again, and of its first start {_EXPIRED}")
        return self._also_in(found, container, bakes)

    def _silent(self, pod: SeenPod, container: SeenContainer) -> _Cause:
        """Say why nothing is known of a container."""
        if self._seen.blind:
            return _Cause("unknown", "events cannot be read")
        if self._is_old(pod):
            return _Cause("unknown", _EXPIRED)
        if not container.started and not container.restarts:
            return _Cause("waits", "it has not begun")
        return _Cause("unknown", "its kubelet told nothing of it: events can be lost")

    def _present(
        self, first: KubeletEvent, container: SeenContainer, node: SeenNode, baked: BakedImage | None
    ) -> _Cause:
        """Tell whether an image that was there is the bake's."""
        if baked is None:
            return _Cause("other", "it was there, and not by the bake")
        before = [each for each in self._of(node, container) if each.telling == "pulled" and each.at <= first.at]
        ours = {*baked.digests, baked.config} - {""}
        if container.digest and container.digest not in ours:
            who = f": {self._who(before[0])} had pulled it" if before else ": something had pulled it before"
            return _Cause("unknown", f"it runs {container.digest[:19]}, which the bake does not have{who}")
        if before and not container.digest:
            return _Cause("unknown", f"{self._who(before[0])} had pulled it before, and no digest says what runs")
        is_sure = self._is_whole(node) and container.digest and not before
        return _Cause("used", sureness="sure" if is_sure else "likely")

    def _around(
        self, first: KubeletEvent, pod: SeenPod, container: SeenContainer, node: SeenNode, bakes: tuple[Bake, ...]
    ) -> _Cause:
        """Look for the cause of a pull of an image that is baked under its very name: on its node, in its class."""
        wrong = [bake for bake in bakes if node.architecture and node.architecture != bake.platform.architecture]
        if wrong:
            text = f"{wrong[0].name} is baked for {wrong[0].platform}, and the node is {node.architecture}"
            return _Cause("pulled", text, "platform-differs", "sure")
        if not container.policy:
            return _Cause("pulled", "the pod is gone, and with it its pull policy")
        return self._by_neighbours(first, pod, container, node) or self._by_the_node(node, bakes)

    def _by_neighbours(
        self, first: KubeletEvent, pod: SeenPod, container: SeenContainer, node: SeenNode
    ) -> _Cause | None:
        """Look at what else the node's kubelet told of the image; None where that is nothing."""
        others = [each for each in self._of(node, container) if (each.uid, each.container) != (pod.uid, container.name)]
        pulls = [each for each in others if each.telling in {"pulling", "pulled"} and each.at <= first.at]
        asks = _version(node.kubelet) >= _VERIFIES
        always = next((each for each in pulls if self._policy(each) == "Always"), None)
        if asks and always:
            text = (
                f"{self._who(always)} pulled it with imagePullPolicy Always: then the node's kubelet asks the registry "
                "for its neighbours too"
            )
            return _Cause("pulled", text, "pull-policy-always", "likely")
        if pulls:
            return _Cause("pulled", f"{self._who(pulls[0])} had pulled it before: nothing seen says why")
        before = [each for each in others if each.telling == "present" and each.at < first.at]
        after = [each for each in others if each.telling == "present" and each.at > first.at]
        ended = any(each.telling == "pulled" for each in self._of(node, container))
        if asks and not ended and (self._lists(node, container) or (before and after)):
            text = "the image is on the node, and its kubelet asks the registry before this pod may use it"
            return _Cause("pulled", text, "credentials-verified", "likely")
        if before and (not asks or self._is_whole(node)):
            who = self._who(before[-1])
            text = f"it was there when {who} started, and was removed since: by the kubelet, or by hand"
            return _Cause("pulled", text, "image-gc", "likely")
        if before:
            return _Cause("pulled", f"it was there when {self._who(before[-1])} started: nothing seen says why")
        return None

    def _lists(self, node: SeenNode, container: SeenContainer) -> bool:
        return node.images is not None and _normal(container.image) in map(_normal, node.images)

    def _is_whole(self, node: SeenNode) -> bool:
        """Whether a node is so young that none of its events has expired."""
        return node.made is not None and self._seen.at - node.made <= EXPIRY and not self._seen.blind

    def _by_the_node(self, node: SeenNode, bakes: tuple[Bake, ...]) -> _Cause:
        if self._found_any(node, bakes):
            return _Cause("pulled", "the node had other images of the bake, and not this one: nothing seen says why")
        alike = [
            each for each in self._seen.nodes
            if each.node_class and node.node_class and each.node_class.data is node.node_class.data
        ]  # fmt: skip
        if node.node_class is None or any(self._found_any(each, bakes) for each in alike):
            return _Cause("pulled", "no pod found an image of the bake on this node: nothing seen says why")
        causes = {each.rule.id: each for each in node_rules.check(node.node_class, bakes)}
        found = [each for name, each in causes.items() if name in _OF_THE_NODE and each.level == "error"]
        if len(found) == 1:
            text = f"no pod found an image of the bake on this node: {found[0].message}"
            return _Cause("pulled", text, found[0].rule.id, "likely")
        which = f": {' or '.join(each.rule.id for each in found)}" if found else ": nothing seen says why"
        return _Cause("pulled", f"no pod found an image of the bake on this node{which}")

    def _found_any(self, node: SeenNode, bakes: tuple[Bake, ...]) -> bool:
        names = {str(image.reference) for bake in bakes for image in bake.images}
        return any(
            event.telling == "present"
            for (where, image), events in self._of_image.items()
            if where == node.name and image in names
            for event in events
        )

    def _of(self, node: SeenNode, container: SeenContainer) -> list[KubeletEvent]:
        return self._of_image.get((node.name, _normal(container.image)), [])

    def _policy(self, event: KubeletEvent) -> str:
        pod = self._pods.get(event.uid)
        return next((each.policy for each in pod.containers if each.name == event.container), "") if pod else ""

    def _who(self, event: KubeletEvent) -> str:
        return f"{event.namespace}/{event.pod}"

    def _also_in(self, said: _Cause, container: SeenContainer, bakes: tuple[Bake, ...]) -> _Cause:
        """Say where another bake than the node's has the image: the node is older, or newer, than the workload."""
        reference = named(container.image)
        for bake in self._known if reference and said.rule != "pull-policy-always" else ():
            image = bake.find(reference) if reference else None
            fits = image and (not container.digest or container.digest in {*image.digests, image.config})
            if bake not in bakes and fits:
                return replace(said, why=f"{said.why}; {bake.name} has it")
        return said


def _said_by_the_pod(
    container: SeenContainer,
    reference: Reference,
    baked: BakedImage | None,
    findings: Iterable[Finding],
    bakes: Sequence[Bake],
) -> _Cause | None:
    """Return the cause that the pod's own words are; None where it asks for what is baked, as it should."""
    by_rule = {each.rule.id: each for each in findings}
    rule = next((each for each in _OF_THE_POD if each in by_rule), "")
    same = next((i for bake in bakes for i in bake.images if container.digest in {*i.digests, i.config} - {""}), None)
    if rule in {"not-baked", "reference-differs"} and baked is None:
        if same:
            text = f"the pod asks for {reference}, and the same image is baked as {same.reference}"
            return _Cause("pulled", text, "reference-differs", "sure")
        namesake = any(image.reference.name == reference.name for bake in bakes for image in bake.images)
        if rule == "not-baked" or (container.digest and not namesake):
            return _Cause("other", f"{reference} is not in the bake", "not-baked", "sure")
        return _Cause("pulled", by_rule[rule].message, rule, "sure" if namesake else "likely")
    return _Cause("pulled", by_rule[rule].message, rule, "sure") if rule else None


def _is_of(event: KubeletEvent, pod: SeenPod | None) -> bool:
    return pod is not None and (event.namespace, event.pod, event.node) == (pod.namespace, pod.name, pod.node)


def _normal(image: str) -> str:
    return str(named(image) or image)


def _version(text: str) -> tuple[int, int]:
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0]
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)


def _gone(seen: Seen) -> Iterable[SeenPod]:
    """Return the pods that are gone and of which events still tell: what they asked for, and where they ran."""
    there = {pod.uid for pod in seen.pods}
    images: dict[str, dict[str, str]] = defaultdict(dict)
    last: dict[str, KubeletEvent] = {}
    for event in seen.events:
        if event.uid not in there and event.container:
            last[event.uid] = event
            if event.image:
                images[event.uid].setdefault(event.container, event.image)
    for uid, event in last.items():
        spec: Mapping[str, object] = {"containers": [{"name": k, "image": v} for k, v in images[uid].items()]}
        metadata = {"namespace": event.namespace, "name": event.pod}
        data = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        containers = tuple(SeenContainer(name, image, "") for name, image in images[uid].items())
        thing = Thing("the cluster", Document(data, 0), (), data)
        yield SeenPod(uid, event.namespace, event.pod, event.node, containers, thing)
