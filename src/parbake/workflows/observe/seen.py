"""What a cluster says of its nodes and pods, as far as it concerns images: read once, changed never."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from parbake.core.errors import ParbakeError
from parbake.core.yamltext import Document, as_list, as_map
from parbake.images.workloads import VOLUME, Thing, images_of
from parbake.rollouts.cluster import Cluster
from parbake.rollouts.karpenter import CORE, HASH, every_node_class
from parbake.rollouts.nodeclass import NodeClass
from parbake.workflows.observe.kubelet import KubeletEvent, moment, read_event

_AMI_LABELS = ("eks.amazonaws.com/nodegroup-image",)
"""Labels of a node that name its AMI: EKS sets this one on nodes of managed node groups."""
_MOST_IMAGES = 50
"""So many of its images, the largest, a kubelet lists in its node's status (``nodeStatusMaxImages``)."""
_STATIC = "kubernetes.io/config.hash"
"""The annotation that holds the uid by which a kubelet tells of a static pod: the API's copy has another."""
_DIGEST = "sha256:"


@dataclass(frozen=True, slots=True)
class SeenNode:
    """A node. ``ami`` and ``snapshots`` are what it was launched with, as far as the cluster says it (empty: not).

    ``images`` are the names that its kubelet lists, or None where it lists only a part of them; ``of_class`` names its
    node class of Karpenter, and ``node_class`` is that, where the node was launched from the class as it is now.
    ``launched`` and ``registered`` are times of its NodeClaim; ``ready`` is when it became Ready, or the claim
    Initialized.
    """

    name: str
    kubelet: str = ""
    architecture: str = ""
    ami: str = ""
    snapshots: tuple[str, ...] = ()
    images: frozenset[str] | None = None
    of_class: str = ""
    node_class: Thing | None = None
    made: datetime | None = None
    requested: datetime | None = None
    launched: datetime | None = None
    registered: datetime | None = None
    ready: datetime | None = None


@dataclass(frozen=True, slots=True)
class SeenContainer:
    """A container, or an image volume, of a pod: what its spec asks for, and what became of it.

    ``digest`` is that of the image that runs; ``started`` is its first start, and None where it was started again or
    not yet; ``freed`` is when nothing of the pod stood before it any more: it was assigned, its init containers ended.
    """

    name: str
    image: str
    policy: str
    digest: str = ""
    restarts: int = 0
    started: datetime | None = None
    freed: datetime | None = None


@dataclass(frozen=True, slots=True)
class SeenPod:
    """A pod that was assigned to a node. ``thing`` is the whole object, for the rules of lint."""

    uid: str
    namespace: str
    name: str
    node: str
    containers: tuple[SeenContainer, ...]
    thing: Thing
    made: datetime | None = None
    scheduled: datetime | None = None

    @property
    def spec(self) -> Mapping[str, Any]:
        """Its specification."""
        return as_map(self.thing.data.get("spec"))


@dataclass(frozen=True, slots=True)
class Seen:
    """A cluster at a moment. ``hidden`` says in words what could not be read; ``blind``: the events are of that."""

    cluster: str
    at: datetime
    nodes: tuple[SeenNode, ...] = ()
    pods: tuple[SeenPod, ...] = ()
    events: tuple[KubeletEvent, ...] = ()
    hidden: tuple[str, ...] = ()
    blind: bool = False
    chosen: frozenset[str] = field(default_factory=frozenset)
    """Names of the nodes that somebody says run the artefact, whatever the cluster says of that."""


def look(context: str = "", selector: str = "") -> Seen:
    """Ask kubectl's cluster, with ``list`` alone: nodes, pods, the kubelets' events, and Karpenter's objects.

    What may not be read but for nodes and pods is told, and no error. ``selector`` (of labels) chooses nodes by hand.
    Raises RolloutError, InputError for a context that does not exist.
    """
    cluster, hidden = Cluster(context), list[str]()

    def asked(what: str, ask: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        try:
            return ask()
        except ParbakeError as error:
            hidden.append(f"{what} cannot be read: {error.message}")
            return []

    nodes = cluster.items("nodes")
    pods = cluster.items("pods", "-A")
    events = asked("events", lambda: cluster.items("events", "-A", "--field-selector", "source=kubelet"))
    blind = bool(hidden)
    claims = asked("NodeClaims", lambda: _claims(cluster))
    classes = asked("node classes", lambda: every_node_class(context)) if claims else []
    chosen = cluster.items("nodes", "--selector", selector) if selector else []
    return read(
        {"nodes": nodes, "pods": pods, "events": events, "nodeclaims": claims, "nodeclasses": classes},
        cluster=str(cluster), hidden=tuple(hidden), blind=blind, chosen=[_name(each) for each in chosen],
    )  # fmt: skip


def _claims(cluster: Cluster) -> list[dict[str, Any]]:
    version = next((each for each in ("v1", "v1beta1") if each in cluster.served(CORE)), None)
    return cluster.items(f"nodeclaims.{version}.{CORE}") if version else []


def read(
    objects: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    cluster: str = "",
    hidden: tuple[str, ...] = (),
    blind: bool = False,
    chosen: Iterable[str] = (),
) -> Seen:
    """Return what objects of the API say, by the plurals of their kinds. Pure but for the clock.

    A clock here that is behind the server's is set by the newest time that the server wrote.
    """
    classes = {_name(each): each for each in objects.get("nodeclasses", ())}
    claims = {str(as_map(each.get("status")).get("nodeName") or ""): each for each in objects.get("nodeclaims", ())}
    nodes = tuple(_node(each, claims.get(_name(each)), classes) for each in objects.get("nodes", ()))
    pods = tuple(filter(None, (_pod(each) for each in objects.get("pods", ()))))
    events = tuple(filter(None, (read_event(each) for each in objects.get("events", ()))))
    written = [each.noted for each in events] + [each.made for each in pods if each.made]
    now = max([datetime.now(UTC), *written])
    return Seen(cluster, now, nodes, pods, events, hidden, blind, frozenset(chosen))


def _node(
    node: Mapping[str, Any], claim: Mapping[str, Any] | None, classes: Mapping[str, Mapping[str, Any]]
) -> SeenNode:
    status, labels = as_map(node.get("status")), as_map(as_map(node.get("metadata")).get("labels"))
    info = as_map(status.get("nodeInfo"))
    listed = as_list(status.get("images"))
    names = frozenset(str(name) for each in listed for name in as_list(as_map(each).get("names")))
    found = SeenNode(
        _name(node),
        kubelet=str(info.get("kubeletVersion") or "").removeprefix("v"),
        architecture=str(info.get("architecture") or ""),
        ami=next((str(labels[each]) for each in _AMI_LABELS if labels.get(each)), ""),
        images=names if 0 < len(listed) < _MOST_IMAGES else None,
        made=_made(node),
        ready=_condition(node, "Ready"),
    )
    if claim is None:
        return found
    named = str(as_map(as_map(claim.get("spec")).get("nodeClassRef")).get("name") or "")
    node_class = classes.get(named)
    current = node_class if node_class and _hash(claim) and _hash(claim) == _hash(node_class) else None
    snapshots = (disk.snapshot for disk in NodeClass(current or {}).disks)
    return SeenNode(
        found.name, found.kubelet, found.architecture, str(as_map(claim.get("status")).get("imageID") or found.ami),
        tuple(filter(None, snapshots)), found.images, named, _thing(current) if current else None,
        made=found.made, requested=_made(claim), launched=_condition(claim, "Launched"),
        registered=_condition(claim, "Registered"), ready=_condition(claim, "Initialized") or found.ready,
    )  # fmt: skip


def _pod(pod: Mapping[str, Any]) -> SeenPod | None:
    spec, status, metadata = (as_map(pod.get(each)) for each in ("spec", "status", "metadata"))
    node = str(spec.get("nodeName") or "")
    if not node:
        return None
    scheduled = _condition(pod, "PodScheduled")
    states = {
        str(as_map(each).get("name")): as_map(each)
        for group in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses")
        for each in as_list(status.get(group))
    }
    freed, containers = scheduled, list[SeenContainer]()
    for where, name, image, policy in images_of(spec):
        if where[0] == "ephemeralContainers":
            continue  # somebody debugs: it starts when they say so
        found = _container(name, str(image or "").strip(), str(policy or ""), states.get(name, {}), freed)
        containers.append(found)
        ended = moment(as_map(as_map(states.get(name, {}).get("state")).get("terminated")).get("finishedAt"))
        sidecar = where[0] == "initContainers" and as_map(as_list(spec["initContainers"])[int(where[1])]).get(
            "restartPolicy"
        )
        if where[0] == "initContainers":
            freed = (found.started if sidecar else ended) if freed else None
    uid = as_map(metadata.get("annotations")).get(_STATIC) or metadata.get("uid")
    return SeenPod(
        str(uid or ""), str(metadata.get("namespace") or ""), _name(pod), node, tuple(containers), _thing(pod),
        made=_made(pod), scheduled=scheduled,
    )  # fmt: skip


def _container(name: str, image: str, policy: str, state: Mapping[str, Any], freed: datetime | None) -> SeenContainer:
    now = as_map(state.get("state"))
    began = as_map(now.get("running")) or as_map(now.get("terminated"))
    restarts = int(state.get("restartCount") or 0)
    running = str(state.get("imageID") or "")
    return SeenContainer(
        name, image, policy,
        digest=_DIGEST + running.rpartition(_DIGEST)[2] if _DIGEST in running else "",
        restarts=restarts,
        started=moment(began.get("startedAt")) if not restarts else None,
        freed=None if name.startswith(VOLUME) else freed,
    )  # fmt: skip


def _thing(data: Mapping[str, Any]) -> Thing:
    return Thing("the cluster", Document(data, 0), (), data)


def _name(found: Mapping[str, Any]) -> str:
    return str(as_map(found.get("metadata")).get("name") or "")


def _made(found: Mapping[str, Any]) -> datetime | None:
    return moment(as_map(found.get("metadata")).get("creationTimestamp"))


def _hash(found: Mapping[str, Any]) -> str:
    return str(as_map(as_map(found.get("metadata")).get("annotations")).get(HASH) or "")


def _condition(found: Mapping[str, Any], kind: str) -> datetime | None:
    """Return since when a condition is true."""
    for each in map(as_map, as_list(as_map(found.get("status")).get("conditions"))):
        if (each.get("type"), each.get("status")) == (kind, "True"):
            return moment(each.get("lastTransitionTime"))
    return None
