"""What a node's user data says: nodeadm's NodeConfigs (also in MIME parts) and Bottlerocket's settings. Pure.

Sources: amazon-eks-ami, nodeadm's documentation (NodeConfig v1alpha1; parts of the type application/node.eks.aws, later
ones win); Bottlerocket's settings reference (TOML).
"""

from __future__ import annotations

import email
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parbake.core.yamltext import parse

_SNAPSHOTTER = re.compile(r"^\s*snapshotter\s*=\s*[\"'](\w+)[\"']", re.MULTILINE)
_SANDBOX = re.compile(r"^\s*sandbox(?:_image)?\s*=\s*[\"']([^\"']+)[\"']", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What matters to a bake. ``kubelet`` has the names of KubeletConfiguration, ``storage`` is nodeadm's strategy."""

    fast_image_pull: bool = False
    snapshotter: str = ""
    sandbox: str = ""
    storage: str = ""
    kubelet: Mapping[str, Any] = field(default_factory=dict)


def read(text: str) -> NodeSettings:
    """Read user data; what is neither of the known forms (a shell script) says nothing."""
    return _of_toml(text) or _of_configs(_configs(text))


def of_config(config: Mapping[str, Any]) -> NodeSettings:
    """Read one NodeConfig object."""
    return _of_configs([config])


def _configs(text: str) -> list[Mapping[str, Any]]:
    parts = [text]
    if text.lstrip()[:200].lower().startswith(("mime-version:", "content-type: multipart")):
        message = email.message_from_string(text.lstrip())
        parts = [str(part.get_payload()) for part in message.walk() if not part.is_multipart()]
    documents = [document.data for part in parts if "NodeConfig" in part for document in parse(part).documents]
    return [data for data in documents if isinstance(data, Mapping) and data.get("kind") == "NodeConfig"]


def _of_configs(configs: list[Mapping[str, Any]]) -> NodeSettings:
    gates: dict[str, Any] = {}
    kubelet: dict[str, Any] = {}
    containerd = storage = ""
    for config in configs:
        spec = _map(config.get("spec"))
        gates |= _map(spec.get("featureGates"))
        kubelet |= _map(_map(spec.get("kubelet")).get("config"))
        containerd += f"\n{_map(spec.get('containerd')).get('config') or ''}"
        storage = str(_map(_map(spec.get("instance")).get("localStorage")).get("strategy") or storage)
    return NodeSettings(
        fast_image_pull=gates.get("FastImagePull") is True,
        snapshotter=_last(_SNAPSHOTTER, containerd),
        sandbox=_last(_SANDBOX, containerd),
        storage=storage,
        kubelet=kubelet,
    )


def _of_toml(text: str) -> NodeSettings | None:
    if "[settings" not in text:
        return None
    try:
        settings = _map(tomllib.loads(text).get("settings"))
    except tomllib.TOMLDecodeError:
        return None
    kubernetes = _map(settings.get("kubernetes"))
    names = {
        "image-gc-high-threshold-percent": "imageGCHighThresholdPercent",
        "image-gc-low-threshold-percent": "imageGCLowThresholdPercent",
    }
    return NodeSettings(
        snapshotter=str(_map(settings.get("container-runtime")).get("snapshotter") or ""),
        sandbox=str(kubernetes.get("pod-infra-container-image") or ""),
        kubelet={name: kubernetes[key] for key, name in names.items() if key in kubernetes},
    )


def _last(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.findall(text)
    return str(found[-1]) if found else ""


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
