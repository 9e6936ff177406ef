"""The Container Runtime Interface (``runtime.v1``): what kubelet would ask, asked by us."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from parbake.containerd.errors import NotFound, Unavailable
from parbake.containerd.proto import cri_pb2 as pb
from parbake.core.errors import ContainerdError, ParbakeError

if TYPE_CHECKING:
    from pathlib import Path

    from google.protobuf.message import Message

    from parbake.containerd.connection import Connection, Reply
    from parbake.core.run import Deadline

_RUNTIME = "/runtime.v1.RuntimeService"
_IMAGE = "/runtime.v1.ImageService"
_NANO = 1e-9
_STARTING = "not initialized"
# What a kubelet says for each container whose procMount is Default, and the runtime leaves open where nobody says it.
# Source: Kubernetes, pkg/securitycontext/util.go.
_MASKED = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

State = Literal["created", "running", "exited", "unknown"]
_STATES: dict[int, State] = {
    pb.CONTAINER_CREATED: "created",
    pb.CONTAINER_RUNNING: "running",
    pb.CONTAINER_EXITED: "exited",
}


@dataclass(frozen=True, slots=True)
class ImageStatus:
    """An image as kubelet sees it: ``id`` is the config's digest, ``size`` is in bytes of what travels."""

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    size: int
    pinned: bool


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    """A container's state; times are seconds since the epoch, 0 for what has not happened.

    A process that ends at once may have ``finished`` before containerd writes down that it ``started``.
    """

    id: str
    state: State
    exit_code: int
    reason: str
    message: str
    created: float
    started: float
    finished: float
    log_path: str


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod sandbox that runs; ``config`` is what it was made from, which its containers repeat."""

    id: str
    config: pb.PodSandboxConfig


@dataclass(frozen=True, slots=True)
class HostMount:
    """A file or folder of the machine that a container has at ``place``, for good or only to read."""

    host: Path | str
    place: str
    read_only: bool = False


class Cri:
    """Kubelet's side of the CRI over a connection (that of a ``Client``, or its own). Errors: see ``errors.fault``.

    ``cgroup_parent`` is where pods get their cgroups (``Daemon.cgroup_parent``); "" leaves it to the runtime.
    ``confined`` pods have the runtime's default seccomp profile and gain no privileges by what they execute; others
    are as a kubelet makes them without ``seccompDefault``: without any profile.
    """

    def __init__(self, connection: Connection, *, cgroup_parent: str = "", confined: bool = False) -> None:
        self._connection = connection
        self._cgroup_parent = cgroup_parent
        self._confined = confined
        self._seccomp = pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault) if confined else None

    def version(self) -> str:
        """Return the runtime's name and version."""
        reply = self._runtime("Version", pb.VersionRequest(), pb.VersionResponse)
        return f"{reply.runtime_name} {reply.runtime_version}"

    def status(self) -> dict[str, str]:
        """Return the runtime's conditions: name to "" when it holds, else to the reason."""
        reply = self._runtime("Status", pb.StatusRequest(), pb.StatusResponse)
        return {
            condition.type: "" if condition.status else (condition.message or condition.reason or "not ready")
            for condition in reply.status.conditions
        }

    def wait_ready(self, deadline: Deadline, check: Callable[[], None] | None = None) -> None:
        """Wait until the runtime can start pods on the host's network; ``check`` may raise to end the wait.

        Raises DeadlineExceeded with the last reason. Pods of their own network would need a CNI as well.
        """
        while True:
            if check is not None:
                check()
            asked = time.monotonic()
            try:
                reason = self.status().get("RuntimeReady", "no such condition")
            except Unavailable as error:
                reason = error.message
            except ContainerdError as error:
                if _STARTING not in error.message:
                    raise
                reason = error.message
            if not reason:
                return
            # In emulation an answer takes long: asking all the time would slow the start that is waited for.
            deadline.sleep(max(0.01, time.monotonic() - asked))

    # ---- images

    def image_status(self, reference: str) -> ImageStatus | None:
        """Return an image by reference or id, None when the runtime does not have it."""
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=reference))
        reply = self._images("ImageStatus", request, pb.ImageStatusResponse, subject=reference)
        return _image(reply.image) if reply.HasField("image") else None

    def pull_image(self, reference: str, *, timeout: float = 1800.0) -> str:
        """Pull an image as kubelet would, without credentials, and return its id."""
        request = pb.PullImageRequest(image=pb.ImageSpec(image=reference))
        reply = self._images("PullImage", request, pb.PullImageResponse, timeout=timeout, subject=reference)
        return reply.image_ref

    # ---- pods

    def run_pod_sandbox(
        self,
        name: str,
        *,
        log_directory: Path | str = "",
        namespace: str = "parbake",
        host_network: bool = True,
        timeout: float = 120.0,
    ) -> Pod:
        """Start a pod's sandbox (the pause container), by default on the host's network, which needs no CNI.

        The host's resolv.conf is not copied: pods get an empty one.
        """
        network = pb.NODE if host_network else pb.POD
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, uid=os.urandom(8).hex(), namespace=namespace),
            log_directory=self._connection.theirs(log_directory) if log_directory else "",
            dns_config=pb.DNSConfig(),
            linux=pb.LinuxPodSandboxConfig(
                cgroup_parent=self._cgroup_parent,
                security_context=pb.LinuxSandboxSecurityContext(
                    namespace_options=pb.NamespaceOption(network=network, pid=pb.CONTAINER), seccomp=self._seccomp
                ),
            ),
        )
        request = pb.RunPodSandboxRequest(config=config)
        reply = self._runtime("RunPodSandbox", request, pb.RunPodSandboxResponse, timeout=timeout, subject=name)
        return Pod(reply.pod_sandbox_id, config)

    def stop_pod_sandbox(self, pod_id: str, *, timeout: float = 60.0) -> None:
        """Stop a sandbox and kill its containers; stopped or missing is fine."""
        request = pb.StopPodSandboxRequest(pod_sandbox_id=pod_id)
        with suppress(NotFound):
            self._runtime("StopPodSandbox", request, pb.StopPodSandboxResponse, timeout=timeout, subject=pod_id)

    def remove_pod_sandbox(self, pod_id: str, *, timeout: float = 60.0) -> None:
        """Remove a sandbox with its containers; missing is fine."""
        request = pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id)
        with suppress(NotFound):
            self._runtime("RemovePodSandbox", request, pb.RemovePodSandboxResponse, timeout=timeout, subject=pod_id)

    @contextmanager
    def pod(self, name: str, *, log_directory: Path | str = "", host_network: bool = True) -> Iterator[Pod]:
        """Run a sandbox for a block, and stop and remove it with its containers at the end."""
        pod = self.run_pod_sandbox(name, log_directory=log_directory, host_network=host_network)
        try:
            yield pod
        except BaseException:
            with suppress(ParbakeError):  # the first error is the one to tell
                self._end(pod)
            raise
        self._end(pod)

    def _end(self, pod: Pod) -> None:
        self.stop_pod_sandbox(pod.id)
        self.remove_pod_sandbox(pod.id)

    # ---- containers

    def create_container(
        self,
        pod: Pod,
        name: str,
        image: str,
        *,
        command: Sequence[str] = (),
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        working_dir: str = "",
        user: str = "",
        read_only: bool = False,
        mounts: Sequence[HostMount] = (),
        image_volumes: Mapping[str, str] | None = None,
        log_path: str = "",
        timeout: float = 120.0,
    ) -> str:
        """Make a container in a pod and return its id.

        ``command`` replaces the image's entrypoint and ``args`` its command. ``user`` is an id or a name, with
        ``:GROUP`` (an id) or without; the runtime looks names up in the image. ``read_only`` is the container's root.
        ``image_volumes`` are images to mount, read-only, by the place in the container (``has_image_volumes``);
        ``log_path`` is below the pod's log directory.
        The images must be there already: nothing is pulled.
        """
        volumes = (image_volumes or {}).items()
        options = pod.config.linux.security_context.namespace_options
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=image),
            command=command,
            args=args,
            working_dir=working_dir,
            envs=[pb.KeyValue(key=key, value=value.encode()) for key, value in (env or {}).items()],
            mounts=[
                *(pb.Mount(container_path=at, readonly=True, image=pb.ImageSpec(image=each)) for at, each in volumes),
                *map(self._mount, mounts),
            ],
            log_path=log_path,
            linux=pb.LinuxContainerConfig(
                security_context=pb.LinuxContainerSecurityContext(
                    namespace_options=options,
                    readonly_rootfs=read_only,
                    **_who(user),
                    seccomp=self._seccomp,
                    no_new_privs=self._confined,
                    masked_paths=_MASKED,
                    readonly_paths=_READ_ONLY,
                )
            ),
        )
        request = pb.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        reply = self._runtime("CreateContainer", request, pb.CreateContainerResponse, timeout=timeout, subject=image)
        return reply.container_id

    def _mount(self, mount: HostMount) -> pb.Mount:
        """Return a mount as containerd calls it; a system with SELinux lets the container at it."""
        host = self._connection.theirs(mount.host)
        return pb.Mount(container_path=mount.place, host_path=host, readonly=mount.read_only, selinux_relabel=True)

    def start_container(self, container_id: str, *, timeout: float = 120.0) -> None:
        """Start a container; returns when its process has been started."""
        request = pb.StartContainerRequest(container_id=container_id)
        self._runtime("StartContainer", request, pb.StartContainerResponse, timeout=timeout, subject=container_id)

    def container_status(self, container_id: str) -> ContainerStatus:
        """Return a container's state; raises NotFound."""
        request = pb.ContainerStatusRequest(container_id=container_id)
        reply = self._runtime("ContainerStatus", request, pb.ContainerStatusResponse, subject=container_id)
        status = reply.status
        return ContainerStatus(
            id=status.id,
            state=_STATES.get(status.state, "unknown"),
            exit_code=status.exit_code,
            reason=status.reason,
            message=status.message,
            created=status.created_at * _NANO,
            started=status.started_at * _NANO,
            finished=status.finished_at * _NANO,
            log_path=self._connection.ours(status.log_path),
        )

    def exec_sync(self, container_id: str, command: Sequence[str], *, timeout: int) -> int:
        """Run a program in a container, for up to ``timeout`` seconds, and return the code that it ends with."""
        request = pb.ExecSyncRequest(container_id=container_id, cmd=command, timeout=timeout)
        patience = timeout + 30.0
        reply = self._runtime("ExecSync", request, pb.ExecSyncResponse, timeout=patience, subject=container_id)
        return reply.exit_code

    def _runtime(
        self, method: str, request: Message, reply: type[Reply], *, timeout: float = 30.0, subject: str = ""
    ) -> Reply:
        return self._connection.unary(f"{_RUNTIME}/{method}", request, reply, timeout=timeout, subject=subject)

    def _images(
        self, method: str, request: Message, reply: type[Reply], *, timeout: float = 30.0, subject: str = ""
    ) -> Reply:
        return self._connection.unary(f"{_IMAGE}/{method}", request, reply, timeout=timeout, subject=subject)


def _who(user: str) -> dict[str, Any]:
    """Return who runs a container, in the CRI's fields; nothing leaves that to the image."""
    name, _, group = user.partition(":")
    if not name:
        return {}
    found: dict[str, Any] = {"run_as_username": name}
    if name.isdecimal():
        found = {"run_as_user": pb.Int64Value(value=int(name))}
    return found | ({"run_as_group": pb.Int64Value(value=int(group))} if group else {})


def has_image_volumes(version: str) -> bool:
    """Tell whether a runtime, by what ``Cri.version`` says, mounts images: containerd from 2.1 on. Pure.

    Those before read no ``Mount.image`` and mount an empty path. What says no number is asked. Source: containerd's
    ``docs/containerd-2.1.md``.
    """
    found = re.fullmatch(r"containerd v?([0-9]+)\.([0-9]+).*", version)
    return not found or (int(found[1]), int(found[2])) >= (2, 1)


def log_text(data: bytes) -> str:
    """Return what a container wrote, both streams in their order, from the bytes of its log file.

    A line is ``<time> <stdout|stderr> <tags> <text>``; the tag P marks a piece of a longer line, F its end (Kubernetes
    CRI log format, kubelet ``pkg/kubelet/kuberuntime/logs``). A last line that is still being written is left out.
    """
    text = []
    complete, newline, _ = data.rpartition(b"\n")
    for line in complete.split(b"\n") if newline else ():
        fields = line.split(b" ", 3)
        if len(fields) == 4 and fields[1] in {b"stdout", b"stderr"}:
            text.append(fields[3] if b"P" in fields[2].split(b":") else fields[3] + b"\n")
    return b"".join(text).decode(errors="replace")


def _image(image: pb.Image) -> ImageStatus:
    return ImageStatus(image.id, tuple(image.repo_tags), tuple(image.repo_digests), image.size, image.pinned)
