"""What the kubelet's events say of a pod's image: the texts that are matched, in one table, and how one is read. Pure.

The texts are no API. So each says by which versions it was seen: ``read`` in the kubelet's source, ``seen`` from
a running one. What none of them fits is passed over, and never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from parbake.core.yamltext import as_map

EXPIRY = timedelta(hours=1)
"""How long an API server keeps events unless told otherwise (kube-apiserver, ``--event-ttl``)."""
type Telling = Literal["present", "pulling", "pulled", "failed", "never", "started"]
"""What it says of an image: there; its pull began, ended, failed; not there, to policy Never. Or of a start."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text: what it says, the event's reason, the text itself (``{image}`` and so on stand for what differs)."""

    telling: Telling
    reason: str
    text: str
    read: str
    seen: str


_QUOTED = '"{image}"'
TEXTS = (
    Text("present", "Pulled", f"Container image {_QUOTED} already present on machine",
         read="1.33 to 1.37, where KubeletEnsureSecretPulledImages is off: the default before 1.35", seen="1.33, 1.34"),
    Text("present", "Pulled", f"Container image {_QUOTED} already present on machine and can be accessed by the pod",
         read="1.33 to 1.35, where that is on: the default since 1.35", seen="1.35, 1.36, 1.37"),
    Text("pulling", "Pulling", f"Pulling image {_QUOTED}", read="1.33 to 1.35", seen="1.33 to 1.37"),
    Text("pulled", "Pulled",
         f"Successfully pulled image {_QUOTED} in {{took}} ({{waited}} including waiting). Image size: {{size}} bytes.",
         read="1.33 to 1.35", seen="1.33 to 1.37"),
    Text("failed", "Failed", f"Failed to pull image {_QUOTED}: {{why}}", read="1.33 to 1.35", seen="1.36"),
    Text("failed", "BackOff", f"Back-off pulling image {_QUOTED}", read="1.33 to 1.35", seen="1.36"),
    Text("failed", "BackOff", f"Back-off pulling image {_QUOTED}: {{why}}", read="1.33 to 1.35, in a pod's status",
         seen="1.36, in a pod's status"),
    Text("never", "ErrImageNeverPull", f"Container image {_QUOTED} is not present with pull policy of Never",
         read="1.33 to 1.35", seen="1.36"),
    Text("started", "Started", "Started container {name}", read="1.33, 1.34", seen="1.33, 1.34"),
    Text("started", "Started", "Container started", read="1.35 (kubernetes#134043)", seen="1.36, 1.37"),
)  # fmt: skip
"""The texts of kubelets 1.33 to 1.37."""

_PARTS = {
    "image": r'(?P<image>[^"\s]+)', "took": r"(?P<took>\S+)", "waited": r"\S+", "size": r"(?P<size>\d+)",
    "why": r"(?P<why>.*)", "name": r"\S+",
}  # fmt: skip
_SPAN = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:([\d.]+)(s|ms|µs|us|ns))?")
_UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9}
_CONTAINER = re.compile(r"spec\.(?:initContainers|containers|ephemeralContainers)\{(?P<name>[^}]+)\}")


def _pattern(text: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", text)
    return re.compile("".join(_PARTS[part] if at % 2 else re.escape(part) for at, part in enumerate(parts)), re.DOTALL)


_PATTERNS = tuple((each, _pattern(each.text)) for each in TEXTS)


@dataclass(frozen=True, slots=True)
class KubeletEvent:
    """One thing that a kubelet told of a pod (``uid``), first ``at`` a time of its node's clock.

    ``container`` is empty for an image volume, and ``image`` for a start. ``noted`` is when the API server first had
    it, by the server's own clock. Of a pull that ended: ``seconds`` that it took and ``size`` in bytes; of one that
    failed: ``why``.
    """

    telling: Telling
    uid: str
    namespace: str
    pod: str
    node: str
    container: str
    image: str
    at: datetime
    noted: datetime
    seconds: float | None = None
    size: int = 0
    why: str = ""


def read_event(event: Mapping[str, Any]) -> KubeletEvent | None:
    """Return what an event of the API says; None for one that is not the kubelet's, or says something else."""
    about, source = as_map(event.get("involvedObject")), as_map(event.get("source"))
    if (source.get("component") or event.get("reportingComponent")) != "kubelet" or about.get("kind") != "Pod":
        return None
    reason, message = str(event.get("reason") or ""), str(event.get("message") or "").strip()
    metadata = as_map(event.get("metadata"))
    noted = moment(metadata.get("creationTimestamp"))
    at = moment(event.get("firstTimestamp") or event.get("eventTime"))
    for text, pattern in _PATTERNS:
        if text.reason != reason or (match := pattern.fullmatch(message)) is None or noted is None:
            continue
        found = match.groupdict()
        named = _CONTAINER.fullmatch(str(about.get("fieldPath") or ""))
        return KubeletEvent(
            text.telling,
            uid=str(about.get("uid") or ""),
            namespace=str(about.get("namespace") or ""),
            pod=str(about.get("name") or ""),
            node=str(source.get("host") or event.get("reportingInstance") or ""),
            container=named["name"] if named else "",
            image=found.get("image") or "",
            at=at or noted,
            noted=noted,
            seconds=_span(found["took"]) if found.get("took") else None,
            size=int(found.get("size") or 0),
            why=found.get("why") or "",
        )
    return None


def moment(value: object) -> datetime | None:
    """Return a time as the API writes it (RFC 3339, with or without parts of a second); None for what is none."""
    try:
        at = datetime.fromisoformat(str(value or ""))
    except ValueError:
        return None
    return at if at.tzinfo else None


def _span(text: str) -> float | None:
    """Read a duration as Go writes it, such as ``1m12.5s``; None for what is none."""
    match = _SPAN.fullmatch(text)
    if match is None or not text:
        return None
    hours, minutes, rest, unit = match.groups()
    try:
        return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(rest or 0) * _UNITS[unit or "s"]
    except ValueError:
        return None
