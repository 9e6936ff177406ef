"""What a root file system holds: paths that stay inside it, and its container runtime."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from parbake.core.errors import BadBase
from parbake.core.files import read_file

_MOST_LINKS = 40  # as the kernel (path_resolution(7))
_PROGRAMS = ("usr/bin/containerd", "usr/local/bin/containerd", "bin/containerd", "opt/containerd/bin/containerd")
_CONFIG = "etc/containerd/config.toml"
_MOST_CONFIG = 1 << 20
DEFAULT_ROOT = "/var/lib/containerd"
# The CRI plugin's name in containerd 1.x (config version 2), and that of its image part in 2.x (versions 3 and 4).
_CRI_V2, _CRI_V3 = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"
_SNAPSHOTTERS = ("overlayfs",)


def inside(root: Path, path: str) -> Path:
    """Return where ``path`` of another system lies below ``root``, its symbolic links followed inside the root.

    What does not exist is returned as it would be made. Raises BadBase for links that go round.
    """
    pending = [part for part in PurePosixPath(path).parts if part != "/"][::-1]
    found: list[str] = []
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            del found[-1:]
            continue
        here = root.joinpath(*found, part)
        if not here.is_symlink():
            found.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise BadBase(f"{path}: too many levels of symbolic links in the base")
        target = PurePosixPath(os.readlink(here))  # noqa: PTH115 - a Path would be resolved against this machine
        if target.is_absolute():
            found.clear()
        pending += [step for step in target.parts if step != "/"][::-1]
    return root.joinpath(*found)


@dataclass(frozen=True, slots=True)
class Runtime:
    """The container runtime of a root file system.

    ``root`` is the folder of its store below the mounted root; ``sandbox_image`` the reference of the pause image that
    its configuration names, empty when it names none.
    """

    root: Path
    sandbox_image: str = ""


def find_runtime(root: Path) -> Runtime:
    """Find containerd in a mounted root file system and read its configuration (versions 2 to 4, with imports).

    Raises BadBase when it is not there, cannot be read, or uses a snapshotter that cannot be filled.
    """
    if not any(inside(root, program).is_file() for program in _PROGRAMS):
        if own := next((name for name in ("k3s", "rke2") if inside(root, f"usr/local/bin/{name}").is_file()), ""):
            raise BadBase(
                f"the base runs {own}, whose containerd starts only with the cluster: no bake could be verified there",
                hint=f"bake a volume (base: none), with root: /var/lib/rancher/{own}/agent/containerd in its targets",
            )
        raise BadBase(
            "the base has no containerd", hint="use a base for Kubernetes nodes with containerd, or base: debian"
        )
    try:
        return _configured(root, _read(root, _CONFIG, depth=0))
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise BadBase(f"the base's {_CONFIG} says something else than containerd expects there: {error}") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise BadBase(f"the base has no place for its containerd's store: {error.strerror}") from error


def _configured(root: Path, config: Mapping[str, Any]) -> Runtime:
    plugins = config.get("plugins", {})
    v2, v3 = plugins.get(_CRI_V2, {}), plugins.get(_CRI_V3, {})
    snapshotter = v3.get("snapshotter") or v2.get("containerd", {}).get("snapshotter") or "overlayfs"
    if snapshotter not in _SNAPSHOTTERS:
        raise BadBase(
            f"the base's containerd uses the snapshotter {snapshotter!r}: it would not find what lies in overlayfs",
            hint="bake onto a base that uses overlayfs (on EKS, without FastImagePull)",
        )
    sandbox = v3.get("pinned_images", {}).get("sandbox") or v2.get("sandbox_image") or ""
    if not isinstance(sandbox, str):
        raise TypeError(f"the sandbox image {sandbox!r}")
    store = inside(root, config.get("root") or DEFAULT_ROOT)
    store.mkdir(mode=0o711, parents=True, exist_ok=True)
    return Runtime(store, sandbox)


def _read(root: Path, path: str, *, depth: int) -> dict[str, Any]:
    """Read a configuration file and what it imports; a later file wins, as in containerd."""
    file = inside(root, path)
    if not file.is_file():
        return {}
    import tomllib  # loads only where a base has such a file

    try:
        config = tomllib.loads(read_file(file, _MOST_CONFIG).decode())
    except (OSError, ValueError) as error:
        raise BadBase(f"the base's {path} cannot be read: {error}") from error
    for pattern in config.get("imports", []) if depth == 0 else []:
        folder = inside(root, str(PurePosixPath(pattern).parent))
        for match in sorted(folder.glob(PurePosixPath(pattern).name)) if folder.is_dir() else []:
            config = _merged(config, _read(root, str(match.relative_to(root)), depth=depth + 1))
    return config


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both
