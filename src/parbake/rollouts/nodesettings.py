"""What a node's user data says: nodeadm's NodeConfigs (also in MIME parts) and Bottlerocket's settings. Pure.

Sources: amazon-eks-ami, nodeadm's documentation (NodeConfig v1alpha1; parts of the type application/node.eks.aws, in
base64 or gzip or neither; later ones win where they say something), its ``UseSOCISnapshotter`` (4 vCPUs, 7 GiB) and
``setup-local-disks`` (``cp -a`` of each folder whose mount is not disabled); Bottlerocket's settings reference (TOML),
and bottlerocket-core-kit 582.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parbake.core.families import BOTTLEROCKET, UNKNOWN, NodeFamily
from parbake.core.yamltext import as_map, parse
from parbake.rollouts.userdata import NODE_CONFIG, bodies

_SNAPSHOTTER = re.compile(r"^\s*snapshotter\s*=\s*[\"'](\w+)[\"']", re.MULTILINE)
CONTAINERD = "Containerd"
"""nodeadm's name for the mount of /var/lib/containerd."""
_FAILS = "CreateContainerError: the image counts as present, and its layers are nowhere"
_SANDBOX = re.compile(r"^\s*sandbox(?:_image)?\s*=\s*[\"']([^\"']+)[\"']", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What matters to a bake. ``kubelet`` has the names of KubeletConfiguration, ``storage`` is nodeadm's strategy.

    ``disabled_mounts`` are what nodeadm leaves on the root disk or volume, whatever the strategy. ``bottlerocket`` says
    that these are settings of Bottlerocket.
    """

    fast_image_pull: bool = False
    snapshotter: str = ""
    sandbox: str = ""
    storage: str = ""
    disabled_mounts: tuple[str, ...] = ()
    kubelet: Mapping[str, Any] = field(default_factory=dict)
    bottlerocket: bool = False

    @property
    def against_snapshotter(self) -> str:
        """Why pods of images that were baked for overlayfs fail on such a node; empty: they do not."""
        if self.fast_image_pull:
            return (
                "FastImagePull makes soci the snapshotter on instances with at least 4 vCPUs and 7 GiB: pods of baked "
                f"images fail there ({_FAILS}); smaller instances keep overlayfs"
            )
        if self.snapshotter in {"", "overlayfs"}:
            return ""
        if self.bottlerocket:
            return (
                f"the snapshotter is {self.snapshotter}, not overlayfs: Bottlerocket empties the store when the "
                "snapshotter changes, so that the bake is lost at the first boot"
            )
        return f"the snapshotter is {self.snapshotter}, not overlayfs: pods of baked images fail ({_FAILS})"

    def against_storage(self, policy: str = "", family: NodeFamily = UNKNOWN) -> str:
        """Why the node does not use the store that was baked, given its node class's ``instanceStorePolicy``."""
        strategy = self.storage if self.storage in {"RAID0", "RAID10"} else ""
        if policy != "RAID0" and not strategy:
            return ""
        what = "instanceStorePolicy: RAID0" if policy == "RAID0" else f"localStorage: {strategy}"
        if family == BOTTLEROCKET or self.bottlerocket:
            return f"{what}: Bottlerocket puts an empty folder of the local disks in the place of the baked store"
        if CONTAINERD in self.disabled_mounts:
            return ""
        return (
            f"{what} copies the baked store to the local disks, read slowly from a cold volume, before the node "
            "starts (on instances that have such disks)"
        )


def read(text: str) -> NodeSettings:
    """Read user data; what is neither of the known forms (a shell script) says nothing."""
    return _of_toml(text) or _of_configs(_configs(text))


def of_config(config: Mapping[str, Any]) -> NodeSettings:
    """Read one NodeConfig object."""
    return _of_configs([config])


def _configs(text: str) -> list[Mapping[str, Any]]:
    """Return the NodeConfigs of user data; of a text, nodeadm reads the first document alone."""
    texts = [body for kind, body in bodies(text) if kind in {"", NODE_CONFIG} and "NodeConfig" in body]
    documents = [document.data for each in texts for document in parse(each).documents[:1]]
    return [data for data in documents if isinstance(data, Mapping) and data.get("kind") == "NodeConfig"]


def _of_configs(configs: list[Mapping[str, Any]]) -> NodeSettings:
    gates: dict[str, Any] = {}
    kubelet: dict[str, Any] = {}
    containerd = storage = ""
    disabled: tuple[str, ...] = ()
    for config in configs:
        spec = as_map(config.get("spec"))
        gates |= as_map(spec.get("featureGates"))
        kubelet |= as_map(as_map(spec.get("kubelet")).get("config"))
        containerd += f"\n{as_map(spec.get('containerd')).get('config') or ''}"
        local = as_map(as_map(spec.get("instance")).get("localStorage"))
        storage = str(local.get("strategy") or storage)
        mounts = local.get("disabledMounts")
        disabled = tuple(map(str, mounts)) if isinstance(mounts, list | tuple) and mounts else disabled
    return NodeSettings(
        fast_image_pull=gates.get("FastImagePull") is True,
        snapshotter=_last(_SNAPSHOTTER, containerd),
        sandbox=_last(_SANDBOX, containerd),
        storage=storage,
        disabled_mounts=disabled,
        kubelet=kubelet,
    )


def _of_toml(text: str) -> NodeSettings | None:
    if "[settings" not in text:
        return None
    try:
        settings = as_map(tomllib.loads(text).get("settings"))
    except tomllib.TOMLDecodeError:
        return None
    kubernetes = as_map(settings.get("kubernetes"))
    names = {
        "image-gc-high-threshold-percent": "imageGCHighThresholdPercent",
        "image-gc-low-threshold-percent": "imageGCLowThresholdPercent",
    }
    return NodeSettings(
        snapshotter=str(as_map(settings.get("container-runtime")).get("snapshotter") or ""),
        sandbox=str(kubernetes.get("pod-infra-container-image") or ""),
        kubelet={name: kubernetes[key] for key, name in names.items() if key in kubernetes},
        bottlerocket=True,
    )


def _last(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.findall(text)
    return str(found[-1]) if found else ""
