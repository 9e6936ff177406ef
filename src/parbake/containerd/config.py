"""The configuration of a private containerd: version 2 of the format, which containerd 1.7 and all of 2.x read.

Everything that parbake does not use is off, for three reasons: snapshotters and plugins make folders in the store even
when nobody uses them, some touch shared places (``/opt/containerd``, ``/etc/cni/net.d``, kernel modules), and each
costs start-up time. Names that one of the versions does not know are ignored by it.
"""

from __future__ import annotations

import json
from pathlib import Path

_NEVER = (
    "differ.v1.erofs",
    "grpc.v1.healthcheck",
    "internal.v1.restart",
    "internal.v1.tracing",
    "monitor.container.v1.restart",
    "mount-handler.v1.erofs",
    "nri.v1.nri",
    "snapshotter.v1.aufs",
    "snapshotter.v1.blockfile",
    "snapshotter.v1.btrfs",
    "snapshotter.v1.devmapper",
    "snapshotter.v1.erofs",
    "snapshotter.v1.native",
    "snapshotter.v1.zfs",
    "tracing.processor.v1.otlp",
)

_NEEDED = ("metadata.v1.bolt", "snapshotter.v1.overlayfs")

# What only running containers needs.
_FOR_PODS = (
    "cri.v1.images",
    "cri.v1.runtime",
    "grpc.v1.cri",
    "grpc.v1.sandbox-controllers",
    "grpc.v1.sandboxes",
    "grpc.v1.streaming",
    "grpc.v1.tasks",
    "grpc.v1.transfer",
    "image-verifier.v1.bindir",
    "internal.v1.opt",
    "monitor.task.v1.cgroups",
    "monitor.v1.cgroups",
    "podsandbox.controller.v1.podsandbox",
    "runtime.v1.linux",
    "runtime.v2.shim",
    "runtime.v2.task",
    "sandbox.controller.v1.local",
    "sandbox.controller.v1.shim",
    "sandbox.store.v1.local",
    "service.v1.tasks-service",
    "shim.v1.manager",
    "streaming.v1.manager",
    "transfer.v1.local",
)


def configuration(
    root: Path, folder: Path, address: Path, *, cri: bool = False, sandbox_image: str = "", runc: str = "runc"
) -> str:
    """Return ``config.toml`` for a daemon on the store ``root`` with everything else below ``folder``."""
    disabled = [f"io.containerd.{plugin}" for plugin in (*_NEVER, *(() if cri else _FOR_PODS))]
    # Without these a containerd starts all the same, and answers "unknown service": better not at all.
    required = [f"io.containerd.{plugin}" for plugin in (*_NEEDED, *(("grpc.v1.cri",) if cri else ()))]
    lines = [
        "version = 2",
        f"root = {_string(root)}",
        f"state = {_string(folder / 'state')}",
        f"temp = {_string(folder / 'tmp')}",
        f"disabled_plugins = {json.dumps(disabled)}",
        f"required_plugins = {json.dumps(required)}",
        "[debug]",
        'level = "warn"',
        "[grpc]",
        f"address = {_string(address)}",
        # Garbage is collected when we say so: never behind the back of a fill.
        '[plugins."io.containerd.gc.v1.scheduler"]',
        "mutation_threshold = 0",
        'startup_delay = "0s"',
        # A removed snapshot's files are gone when the call returns: the disk is captured soon after.
        '[plugins."io.containerd.snapshotter.v1.overlayfs"]',
        "sync_remove = true",
    ]
    if cri:
        lines += _pods(folder, sandbox_image, runc)
    return "\n".join(lines) + "\n"


def _pods(folder: Path, sandbox_image: str, runc: str) -> list[str]:
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return [
        '[plugins."io.containerd.internal.v1.opt"]',
        f"path = {_string(folder / 'opt')}",
        '[plugins."io.containerd.image-verifier.v1.bindir"]',
        f"bin_dir = {_string(folder / 'opt' / 'image-verifier')}",
        f"[{cri}]",
        *([f"sandbox_image = {_string(sandbox_image)}"] if sandbox_image else []),
        'stream_server_address = "127.0.0.1"',
        'stream_server_port = "0"',
        "disable_apparmor = true",  # else a profile stays in the kernel
        "restrict_oom_score_adj = true",  # where we lack CAP_SYS_RESOURCE (a CI container), runc would fail
        f"[{cri}.cni]",
        f"bin_dir = {_string(folder / 'cni' / 'bin')}",
        f"conf_dir = {_string(folder / 'cni' / 'net.d')}",
        f"[{cri}.containerd]",
        'snapshotter = "overlayfs"',
        'default_runtime_name = "runc"',
        f"[{cri}.containerd.runtimes.runc]",
        'runtime_type = "io.containerd.runc.v2"',
        f"[{cri}.containerd.runtimes.runc.options]",
        f"BinaryName = {_string(runc)}",
        f"Root = {_string(folder / 'runc')}",
        "SystemdCgroup = false",
    ]


def _string(text: Path | str) -> str:
    return json.dumps(str(text), ensure_ascii=False)
