"""Which images were started on which nodes: from what clusters write down anyway.

Read are Kubernetes events (``kubectl get events -o json``, or one a line, as exporters write them), pods, audit logs
(``audit.k8s.io/v1``, from level Request on), and kube-state-metrics: its text, or what Prometheus answers for
``kube_pod_container_info`` and ``kube_pod_info``. All come down to pods: what a node and a pod are called tells
what belongs together, whichever file says it. Sources: Kubernetes API reference; kubelet ``images/image_manager.go``
(the words of its events); kube-state-metrics ``docs/metrics/workload/pod-metrics.md``; Prometheus, "HTTP API".
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from parbake.core.errors import BadReference, InputError
from parbake.core.printable import word
from parbake.core.reference import Reference

_PULLED: Final = re.compile(r'image "([^"]+)"')
_SERIES: Final = re.compile(r"(\w+)\{(.*)\} (\S+)(?: (\d+))?")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_INFO, _BEGUN = "kube_pod_info", ("kube_pod_start_time", "kube_pod_created")
_CONTAINER: Final = ("kube_pod_container_info", "kube_pod_init_container_info")
_KINDS: Final = ("initContainers", "containers", "ephemeralContainers")
_LONGEST: Final = 4 << 20
"""Characters of a line: etcd takes no object of more than 1.5 MiB."""
_LARGEST: Final = 512 << 20
"""Bytes of a document that is not written a line an event: it is held in memory."""
_HOUR, _DAY = 3600.0, 86400.0
_HOLE: Final = 0.1
"""The share of the whole time from which on a pause is told: it may be one of the history and not of the cluster."""


@dataclass(slots=True)
class _Pod:
    namespace: str = ""
    node: str = ""
    at: float = 0.0
    images: set[str] = field(default_factory=set)


@dataclass(slots=True)
class StartHistory:
    """What was started, as far as it is known. ``notes`` say what of the history does not count, and why."""

    pods: dict[str, _Pod] = field(default_factory=lambda: defaultdict(_Pod))
    _names: dict[str, str] = field(default_factory=dict)
    _told: int = 0
    _ignored: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def read(self, path: Path) -> None:
        """Take in a file; raises InputError for one that cannot be read, or that tells of no pod at all."""
        before = self._told
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                for number, line in enumerate(iter(lambda: file.readline(_LONGEST), "")):
                    if line.lstrip().startswith(("{", "[")):
                        if not self._line(line) and number == 0:  # one document, over many lines or very long
                            self.take(_document(path))
                            break
                    elif found := _SERIES.match(line):
                        labels = {key: value.replace('\\"', '"') for key, value in _LABEL.findall(found[2])}
                        self._series({"__name__": found[1], **labels}, found[3], float(found[4] or 0) / 1000)
        except OSError as error:
            raise InputError(
                f"{path}: {error.strerror}", hint="name a file of events, pods, metrics or an audit log"
            ) from None
        if self._told == before:
            raise InputError(
                f"{path} tells of no pod with an image: {self._why() or 'it is none of the forms that are known'}",
                hint="Kubernetes events or pods as JSON, kube-state-metrics, or an audit log from level Request on",
            )

    def take(self, document: object) -> None:
        """Take in a JSON document of any of the known forms; what is none is counted."""
        fields: Mapping[str, Any] = document if isinstance(document, dict) else {}
        match document:
            case list():
                for each in document:
                    self.take(each)
            case {"items": list(items)} | {"data": {"result": list(items)}}:
                for each in items:
                    self.take(each)
            case {"metric": dict(labels), "values": [[at, value], *_]} | {"metric": dict(labels), "value": [at, value]}:
                self._series(labels, value, at)
            case {"auditID": _, "objectRef": {"resource": "pods"}, "verb": "create"}:
                self._audited(fields)
            case {"auditID": _}:
                pass
            case {"involvedObject": dict(subject)} | {"regarding": dict(subject)}:
                self._event(fields, subject)
            case {"spec": {"containers": list()}}:
                self._pod(fields)
            case _:
                self._ignored["entries of other kinds"] += 1

    @property
    def nodes(self) -> tuple[frozenset[Reference], ...]:
        """The images that each node started; a pod of which no node is known counts as one of its own."""
        found, names = defaultdict[str, set[Reference]](set), self._references()
        for key, pod in self.pods.items():
            found[pod.node or f"pod {key}"] |= {names[image] for image in pod.images if image in names}
        return tuple(frozenset(images) for images in found.values() if images)

    @property
    def last(self) -> dict[Reference, float]:
        """When each image was started for the last time (epoch; 0: unknown)."""
        found, names = defaultdict[Reference, float](float), self._references()
        for pod in self.pods.values():
            for image in pod.images & names.keys():
                found[names[image]] = max(found[names[image]], pod.at)
        return found

    def _references(self) -> dict[str, Reference]:
        """Return what names mean; those of which only an image's id is known, or that are none, are not there."""
        found = {}
        for name in {name for pod in self.pods.values() for name in pod.images}:
            with suppress(BadReference):
                found[name] = Reference.parse("-" if name.startswith("sha256:") else name)
        return found

    @property
    def span(self) -> tuple[float, float]:
        """When the first and the last pod began (epoch); zeros where no pod says when."""
        times = [pod.at for pod in self.pods.values() if pod.at]
        return (min(times), max(times)) if times else (0.0, 0.0)

    @property
    def holes(self) -> tuple[tuple[float, float], ...]:
        """Pauses in which nothing began, and which are long enough to be the history's own."""
        times = sorted(pod.at for pod in self.pods.values() if pod.at)
        least = max(6 * _HOUR, _HOLE * (times[-1] - times[0])) if times else 0.0
        return tuple((one, two) for one, two in pairwise(times) if two - one > least)

    @property
    def seconds(self) -> float:
        """How long the history is, without its holes; 0 where that is not known."""
        first, last = self.span
        return last - first - sum(end - begin for begin, end in self.holes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of it, in plain sentences."""
        found = [
            f"nothing was started between {_moment(begin)} and {_moment(end)}: the history seems to have a hole, and "
            "this time does not count"
            for begin, end in self.holes
        ]
        lost = sum(1 for pod in self.pods.values() if pod.images and not pod.node)
        if lost:
            found.append(f"of {lost} pods the node is not known: each counts as if it had a node of its own")
        unknown = {name for pod in self.pods.values() for name in pod.images} - self._references().keys()
        if unknown:
            named = ", ".join(map(word, sorted(unknown)[:3]))
            found.append(f"{len(unknown)} images without a name to ask a registry for are left out: {named}")
        return (*found, *filter(None, [self._why()]), *self._ended())

    def _ended(self) -> Iterator[str]:
        """Say which namespaces are no longer used: renamed, or gone."""
        last = defaultdict[str, float](float)
        for pod in self.pods.values():
            last[pod.namespace] = max(last[pod.namespace], pod.at)
        first, end = self.span
        for namespace, at in sorted(last.items()):
            if namespace and at and end - at > max(_DAY, 0.25 * (end - first)):
                yield f"the namespace {word(namespace)} starts nothing since {_moment(at)}: it was renamed, or is gone"

    def _why(self) -> str:
        return "; ".join(f"{count} {what} do not count" for what, count in self._ignored.items())

    def _line(self, line: str) -> bool:
        try:
            self.take(json.loads(line))
        except (ValueError, RecursionError):
            self._ignored["lines that are no JSON"] += 1
            return False
        return True

    def _of(self, namespace: object, name: object, uid: object = "") -> _Pod:
        """Return the pod of a name: by its id where that is known, since names come again."""
        self._told += 1
        named = f"{namespace}/{name}"
        if uid:
            self._names.setdefault(named, str(uid))
        pod = self.pods[str(uid) or self._names.get(named, named)]
        pod.namespace = str(namespace or "")
        return pod

    def _event(self, event: Mapping[str, Any], subject: Mapping[str, Any]) -> None:
        said = _PULLED.search(str(event.get("message") or event.get("note") or ""))
        if event.get("reason") != "Pulled" or not said:
            return
        pod = self._of(subject.get("namespace"), subject.get("name"), subject.get("uid") or "")
        source = event.get("source") or event.get("deprecatedSource") or {}
        pod.node = str(source.get("host") or event.get("reportingInstance") or pod.node)
        times = ("lastTimestamp", "eventTime", "deprecatedLastTimestamp", "firstTimestamp")
        pod.at = max([pod.at, *(_seconds(event.get(key)) for key in times)])
        pod.images.add(said[1])

    def _pod(self, document: Mapping[str, Any]) -> None:
        metadata, spec, status = (document.get(key) or {} for key in ("metadata", "spec", "status"))
        pod = self._of(metadata.get("namespace"), metadata.get("name"), metadata.get("uid") or "")
        pod.node = str(spec.get("nodeName") or pod.node)
        pod.at = max(pod.at, _seconds(status.get("startTime") or metadata.get("creationTimestamp")))
        pod.images |= {str(each["image"]) for kind in _KINDS for each in spec.get(kind) or () if each.get("image")}

    def _audited(self, event: Mapping[str, Any]) -> None:
        where, asked, made = (event.get(key) or {} for key in ("objectRef", "requestObject", "responseObject"))
        if where.get("subresource") == "binding":
            self._of(where.get("namespace"), where.get("name")).node = str(
                (asked.get("target") or {}).get("name") or ""
            )
        elif where.get("subresource"):
            return
        elif body := made if (made.get("spec") or {}).get("containers") else asked:
            metadata = {"namespace": where.get("namespace"), "name": where.get("name")} | (body.get("metadata") or {})
            began = {"startTime": event.get("requestReceivedTimestamp")}
            self._pod({**body, "metadata": metadata, "status": began})
        else:
            self._ignored["audited pods without their specification (level Metadata)"] += 1

    def _series(self, labels: Mapping[str, str], value: str, at: float) -> None:
        """Take in a series; Prometheus puts ``exported_`` before labels that it has itself."""
        name = labels.get("__name__", "")
        said = {
            key: labels.get(f"exported_{key}") or labels.get(key, "") for key in ("namespace", "pod", "node", "image")
        }
        if name in _CONTAINER or (not name and "container" in labels):
            pod = self._of(said["namespace"], said["pod"], labels.get("uid", ""))
            if image := labels.get("image_spec") or said["image"]:
                pod.images.add(image)
            pod.at = pod.at or at
        elif name == _INFO:
            self._of(said["namespace"], said["pod"], labels.get("uid", "")).node = said["node"]
        elif name in _BEGUN:
            self._of(said["namespace"], said["pod"], labels.get("uid", "")).at = float(value)


def gather(paths: Iterable[Path], documents: Iterable[object] = ()) -> StartHistory:
    """Return what files, and documents of a cluster, tell together; raises InputError for files that tell nothing."""
    history = StartHistory()
    for path in paths:
        history.read(path)
    for document in documents:
        history.take(document)
    return history


def _document(path: Path) -> object:
    if path.stat().st_size > _LARGEST:
        raise InputError(
            f"{path} is larger than {_LARGEST >> 20} MiB", hint="write it one event a line (jq -c '.items[]')"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}", hint="write it with kubectl get events -A -o json") from None


def _seconds(moment: object) -> float:
    try:
        return datetime.fromisoformat(str(moment)).timestamp() if moment else 0.0
    except (ValueError, OverflowError):
        return 0.0


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"
