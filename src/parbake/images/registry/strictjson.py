"""JSON in which every reader finds the same: for documents that a node's containerd will read again.

Go's ``encoding/json`` takes the last of two equal keys, and takes ``LAYERS`` for the field ``layers``. Other readers
take the exact key, or the first. Whoever writes both spellings shows one image to parbake and another to the node, so
such documents are refused. Source: Go ``encoding/json``, ``Unmarshal`` ("preferring exact matches but also accepting
case-insensitive matches") and ``fold.go``, for which two letters beyond ASCII equal one of ASCII's: U+017F is an s and
U+212A a k.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NoReturn

type Shape = Mapping[str, "Shape | None"]
"""The keys that Go knows in an object, and the shapes of their values: of a list, the shape of each item.

None is for what has no keys (text, numbers), and for maps whose keys are data (labels, annotations): there, only equal
keys are refused.
"""


_SHOWN: Final = 60


class AmbiguousJson(ValueError):
    """Readers would not agree on what the document says; the message names the key."""


def load(body: bytes, shape: Shape | None = None) -> Any:
    """Return the value of a JSON document (RFC 8259, UTF-8).

    Raises AmbiguousJson for two equal keys in one object, anywhere, and for a key of a shaped object that differs only
    in case from a known one or from another; ValueError and RecursionError when it is not JSON.
    """
    value = json.loads(body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse_constant)
    if shape is not None:
        _check(value, shape, "")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise AmbiguousJson(f"an object has the key {_shown(key)} twice")
            seen.add(key)
    return found


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _check(value: Any, shape: Shape, where: str) -> None:
    if isinstance(value, list):
        for number, item in enumerate(value):
            _check(item, shape, f"{where}[{number}]")
        return
    if not isinstance(value, dict):
        return
    spelled = {_folded(key): key for key in shape}
    for key, child in value.items():
        other = spelled.setdefault(_folded(key), key)
        if other != key:
            place = f" in {where}" if where else ""
            raise AmbiguousJson(f"the key {_shown(key)}{place} differs from {_shown(other)} only in case")
        below = shape.get(key)
        if below is not None:
            _check(child, below, f"{where}.{key}" if where else key)


def _folded(key: str) -> str:
    # U+212A, the sign of Kelvin, is a k in lower case already.
    return key.lower().replace("\u017f", "s")


def _shown(key: str) -> str:
    # In ASCII, so that what only looks like a k can be told from one.
    return ascii(key if len(key) <= _SHOWN else f"{key[:_SHOWN]}...")


_PLATFORM: Final[Shape] = dict.fromkeys(("architecture", "os", "os.version", "os.features", "variant", "features"))
_DESCRIPTOR: Final[Shape] = {
    **dict.fromkeys(("mediaType", "digest", "size", "urls", "annotations", "data", "artifactType")),
    "platform": _PLATFORM,
}
DOCUMENT: Final[Shape] = {
    **dict.fromkeys(("schemaVersion", "mediaType", "artifactType", "annotations", "fsLayers")),
    **dict.fromkeys(("manifests", "layers", "config", "subject"), _DESCRIPTOR),
}
"""Manifests and indexes (image-spec ``specs-go/v1``: Manifest, Index, Descriptor, Platform; containerd
``core/images/image.go``: unknownDocument)."""

_HEALTHCHECK: Final[Shape] = dict.fromkeys(("Test", "Interval", "Timeout", "StartPeriod", "StartInterval", "Retries"))
_CONTAINER: Final[Shape] = {
    **dict.fromkeys(("User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels")),
    **dict.fromkeys(("StopSignal", "StopTimeout", "ArgsEscaped", "OnBuild", "Shell", "Image", "Hostname")),
    **dict.fromkeys(("AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce")),
    **dict.fromkeys(("Domainname", "NetworkDisabled", "MacAddress")),
    "Healthcheck": _HEALTHCHECK,
}
CONFIG: Final[Shape] = {
    **_PLATFORM,
    **dict.fromkeys(("created", "author", "id", "parent", "comment", "container", "docker_version", "Size")),
    "config": _CONTAINER,
    "container_config": _CONTAINER,
    "rootfs": dict.fromkeys(("type", "diff_ids")),
    "history": dict.fromkeys(("created", "created_by", "author", "comment", "empty_layer")),
}
"""Image configurations (image-spec ``specs-go/v1/config.go``: Image, ImageConfig, RootFS, History; what Docker adds:
moby ``image/image.go`` and ``api/types/container/config.go``)."""

LAYOUT: Final[Shape] = {"imageLayoutVersion": None}
"""The file ``oci-layout`` (image-spec ``specs-go/v1/layout.go``)."""
