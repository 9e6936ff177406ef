"""A kubelet, as far as the API server hears of it: its node, its pods' states, and its events about their images.

It decides as the kubelet does (``pkg/kubelet/images/image_manager.go``): by policy, by what its runtime's store has,
and from 1.35 on by who has pulled an image before. The texts are those of 1.33 to 1.37, written down here once more:
what parbake matches is compared with them. Not modelled: back-off times, limits of events, garbage collection by size
(``collect`` removes an image), credentials but for "with or without a secret".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from standins.kubernetes.server import Server
from standins.kubernetes.store import Object
from standins.plans import digest

_NUMBERS = count(1)


def written(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Box:
    """A container of a pod; ``policy`` empty: the API server's default."""

    image: str
    policy: str = ""
    name: str = "c"
    init: bool = False

    @property
    def pull(self) -> str:
        plain = self.image.rpartition("/")[2]
        moving = ":" not in plain or plain.endswith(":latest")
        return self.policy or ("Always" if moving and "@" not in plain else "IfNotPresent")


@dataclass
class Kubelet:
    """Plays one node. ``store`` is what its runtime has: names and digests; ``at`` is the true time, which goes on.

    ``behind`` are the seconds by which its clock is, ``registry`` what names mean there (absent: made of the name);
    what is in ``private`` needs a secret, ``down`` says why nothing can be pulled. ``asks`` are images that the kubelet
    asks the registry for whatever it has (AlwaysVerify, or a pull that was cut off).
    """

    server: Server
    node: str
    version: str = "1.36.2"
    store: dict[str, str] = field(default_factory=dict)
    at: datetime = field(default_factory=lambda: datetime.now(UTC) - timedelta(minutes=20))
    behind: float = 0.0
    architecture: str = "amd64"
    registry: dict[str, str] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    asks: set[str] = field(default_factory=set)
    down: str = ""
    pulls: float = 30.0
    labels: dict[str, str] = field(default_factory=dict)
    tells: bool = True

    def __post_init__(self) -> None:
        self._pulled: dict[str, bool] = {}
        self._now = self.at
        self.server.store.clock = lambda: self._now
        status = {
            "nodeInfo": {"kubeletVersion": f"v{self.version}", "architecture": self.architecture},
            "conditions": [self._condition("Ready")],
        }
        self.server.create("nodes", self.node, metadata={"labels": self.labels}, status=status)
        self._list()

    @property
    def modern(self) -> bool:
        return tuple(map(int, self.version.split(".")[:2])) >= (1, 35)

    def run(self, name: str, *boxes: Box | str, namespace: str = "shop", secret: bool = False, **spec: Any) -> Object:
        """Schedule a pod to this node, and start it as far as it comes; return it as it is then."""
        store = self.server.store
        store.clock = lambda: self._now
        if ("", "namespaces", "", namespace) not in store.objects:
            self.server.create("namespaces", namespace)
        given = [box if isinstance(box, Box) else Box(box) for box in boxes]
        groups: dict[str, list[Object]] = {"initContainers": [], "containers": []}
        for box in given:
            said = {"name": box.name, "image": box.image, "imagePullPolicy": box.pull}
            groups["initContainers" if box.init else "containers"].append(said)
        scheduled = self._condition("PodScheduled", clock=0.0)
        pod = self.server.create(
            "pods",
            name,
            metadata={"namespace": namespace},
            spec={"nodeName": self.node, **{key: each for key, each in groups.items() if each}, **spec},
        )
        statuses: dict[str, list[Object]] = {"initContainerStatuses": [], "containerStatuses": []}
        self._pass(1)
        for box in given:
            state = self._start(pod, box, secret=secret)
            statuses["initContainerStatuses" if box.init else "containerStatuses"].append(state)
            if "waiting" in state["state"]:
                break
        return self._status(pod, {"conditions": [scheduled], **{k: each for k, each in statuses.items() if each}})

    def collect(self, image: str) -> None:
        """Remove an image, as the kubelet's garbage collection does."""
        self.store.pop(image, None)
        self._list()

    def restart(self, pod: Object, box: Box, seconds: float = 60.0) -> None:
        """Let a container end, and start it again."""
        self._pass(seconds)
        state = self._start(pod, box, secret=False)
        found = self.server.get("pods", pod["metadata"]["name"], namespace=pod["metadata"]["namespace"])
        statuses = [
            {**state, "restartCount": each["restartCount"] + 1} for each in found["status"]["containerStatuses"]
        ]
        self._status(pod, {**found["status"], "containerStatuses": statuses})

    def _start(self, pod: Object, box: Box, *, secret: bool) -> Object:
        """Do what EnsureImageExists and startContainer do; return the container's status."""
        image, present = box.image, box.image in self.store
        must_ask = image in self.asks or (self.modern and self._pulled.get(image, False) and not secret)
        if box.pull == "Never" and (not present or must_ask):
            self._tell(
                pod, box, "ErrImageNeverPull", f'Container image "{image}" is not present with pull policy of Never'
            )
            return self._waiting(box, "ErrImageNeverPull")
        if box.pull != "Always" and present and not must_ask:
            more = " and can be accessed by the pod" if self.modern else ""
            self._tell(pod, box, "Pulled", f'Container image "{image}" already present on machine{more}')
        else:
            self._tell(pod, box, "Pulling", f'Pulling image "{image}"')
            denied = (
                "denied: requested access to the resource is denied" if image in self.private and not secret else ""
            )
            if problem := self.down or denied:
                self._pass(2)
                self._tell(pod, box, "Failed", f'Failed to pull image "{image}": {problem}')
                self._tell(pod, box, "Failed", "Error: ErrImagePull")
                self._pass(10)
                self._tell(pod, box, "BackOff", f'Back-off pulling image "{image}"')
                return self._waiting(box, "ImagePullBackOff")
            self._pass(self.pulls)
            took = f"{self.pulls:g}s"
            text = (
                f'Successfully pulled image "{image}" in {took} ({took} including waiting). Image size: 77283495 bytes.'
            )
            self._tell(pod, box, "Pulled", text)
            self.store[image] = image.partition("@")[2] or self.registry.get(image, digest("manifest " + image))
            self._pulled[image] = secret
            self._list()
        self._tell(pod, box, "Created", "Container created" if self.modern else f"Created container: {box.name}")
        self._tell(pod, box, "Started", "Container started" if self.modern else f"Started container {box.name}")
        began = written(self._now - timedelta(seconds=self.behind))
        name = image.partition("@")[0].rpartition(":")[0] or image
        state: Object = {"running": {"startedAt": began}}
        if box.init:
            self._pass(3)
            ended = written(self._now - timedelta(seconds=self.behind))
            state = {"terminated": {"startedAt": began, "finishedAt": ended, "exitCode": 0}}
        return {"name": box.name, "restartCount": 0, "imageID": f"{name}@{self.store[image]}", "state": state}

    def _waiting(self, box: Box, reason: str) -> Object:
        return {"name": box.name, "restartCount": 0, "imageID": "", "state": {"waiting": {"reason": reason}}}

    def _tell(self, pod: Object, box: Box, reason: str, message: str) -> None:
        metadata = pod["metadata"]
        about = {"kind": "Pod", "namespace": metadata["namespace"], "name": metadata["name"], "uid": metadata["uid"]}
        group = "initContainers" if box.init else "containers"
        at = written(self._now - timedelta(seconds=self.behind))
        if self.tells:
            self.server.create(
                "events",
                f"{metadata['name']}.{next(_NUMBERS):x}",
                metadata={"namespace": metadata["namespace"]},
                reason=reason,
                message=message,
                type="Warning" if reason in {"Failed", "ErrImageNeverPull"} else "Normal",
                source={"component": "kubelet", "host": self.node},
                reportingComponent="kubelet",
                reportingInstance=self.node,
                involvedObject={**about, "fieldPath": f"spec.{group}{{{box.name}}}"},
                firstTimestamp=at,
                lastTimestamp=at,
                count=1,
            )
        self._pass(1)

    def _pass(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)

    def _condition(self, kind: str, clock: float | None = None) -> Object:
        at = self._now - timedelta(seconds=self.behind if clock is None else clock)
        return {"type": kind, "status": "True", "lastTransitionTime": written(at)}

    def _status(self, pod: Object, status: Object) -> Object:
        metadata = pod["metadata"]
        kind = self.server.kind("pods")
        with self.server.store.changed:
            key = (kind.group, kind.plural, metadata["namespace"], metadata["name"])
            self.server.store.objects[key]["status"] = status
        return self.server.get("pods", metadata["name"], namespace=metadata["namespace"])

    def _list(self) -> None:
        images = [{"names": [name], "sizeBytes": 1} for name in self.store]
        self.server.store.objects["", "nodes", "", self.node]["status"]["images"] = images


def objects(server: Server) -> dict[str, list[Object]]:
    """Return everything of a server, as ``parbake.workflows.observe.seen.read`` takes it."""

    def every(plural: str) -> Iterator[Object]:
        return (each for (_, kind, _, _), each in sorted(server.store.objects.items()) if kind == plural)

    plurals = {"nodes": "nodes", "pods": "pods", "events": "events", "nodeclaims": "nodeclaims"}
    return {name: list(every(plural)) for name, plural in {**plurals, "nodeclasses": "ec2nodeclasses"}.items()}
