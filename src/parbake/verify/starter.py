"""Start an image as a kubelet would (sandbox, container) and time it on the guest's own clock."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING, Protocol, assert_never

from parbake.containerd.cri import ContainerStatus, HostMount, Pod, log_text
from parbake.core.errors import ContainerdError, DeadlineExceeded, DiskFull, ParbakeError
from parbake.core.model import (
    ExecProbe,
    ExitProbe,
    HttpProbe,
    LogProbe,
    MountedProbe,
    Probe,
    RunningProbe,
    Shown,
    Startup,
    TcpProbe,
)
from parbake.core.run import Deadline, sleep
from parbake.verify import mounted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from parbake.containerd import Cri
    from parbake.machine.vm import Clock, Waited

# Below the runtime's own folder: where SELinux confines it, a new folder there has a label that lets it write.
LOGS = "/run/containerd/parbake-logs"
# On a disk, as a kubelet's emptyDir: /run is memory that the runtime itself needs.
PLACES = "/var/lib/parbake-start"
_PUT = 'umask 022; mkdir -p "${1%/*}" && cat >"$1" && chmod "$2" "$1"'
_EXEC_LIMIT = 5.0  # seconds with hardware virtualisation, for a program that a probe runs
_POLL = 0.1  # seconds between looks from the host; times come from the guest and do not suffer from it
_GUEST_WAIT = 1.0  # seconds that a wait for a port lasts in the guest before we look whether the container still lives
_LOG_PART = 64 << 10  # bytes
_LOG_PARTS = 64  # of them for one look: whoever writes faster than that is looked at again, until its time is over
_LONGEST_LINE = 1 << 20  # characters
_OUTPUT_LINES = 40
_OUTPUT_BYTES = 8 << 10
_STREAMS = {"stdout", "stderr"}
_NANO = 1e-9
_RUNTIME_ERRORS = (ContainerdError, DeadlineExceeded, DiskFull)


@dataclass(frozen=True, slots=True)
class Started:
    """How a start went, and what went wrong.

    ``seconds`` are from the request to the runtime until up (None: never), ``sandbox_seconds`` what the sandbox took
    before that; ``output`` is the end of what the container wrote. ``shown`` and ``ran_seconds`` are those of
    ``ImageVerdict``, as far as it has been looked at. ``by_itself``: the image ended, or was not up in its time; what
    keeps a runtime from starting it, or the kernel ends for its memory, says nothing about it.
    """

    seconds: float | None
    sandbox_seconds: float | None
    output: str
    problems: tuple[str, ...]
    shown: Shown = ""
    ran_seconds: float | None = None
    by_itself: bool = False


@dataclass(frozen=True, slots=True)
class Begun:
    """A start, and what runs of it since ``since``, in seconds since the epoch (0: nothing any more)."""

    started: Started
    startup: Startup
    pod: Pod | None = None
    container: str = ""
    log: str = ""
    since: float = 0.0


class ContainerHost(Protocol):
    """Where containers are started: a virtual machine (``vm.Guest``), or this machine."""

    def check(self, argv: Sequence[str], *, timeout: float = 60.0, stdin: bytes = b"") -> str:
        """Run a program there and return its output; raises MachineError when it fails."""
        ...

    def read(self, path: str, *, offset: int = 0, limit: int = 1 << 16) -> bytes:
        """Return up to ``limit`` bytes of a file there, from ``offset``."""
        ...

    def now(self) -> Clock:
        """Return the clocks there."""
        ...

    def wait_tcp(self, port: int, seconds: float) -> Waited:
        """Wait there until something accepts on a port of the loopback."""
        ...

    def wait_http(self, port: int, path: str, seconds: float) -> Waited:
        """Wait there until GET of a path on the loopback answers with 200 to 399."""
        ...


def describe(probe: Probe) -> str:
    """Return what a probe waits for, in words that follow "waiting until". Pure."""
    match probe:
        case ExitProbe():
            words = "the main process ends with code 0"
        case LogProbe():
            words = f"a line of its output matches {probe.pattern!r}"
        case TcpProbe():
            words = f"something accepts connections on port {probe.port}"
        case HttpProbe():
            words = f"GET http://127.0.0.1:{probe.port}{probe.path} answers with 200 to 399"
        case RunningProbe():
            words = f"the main process has run for {probe.seconds:g} s"
        case ExecProbe():
            words = f"`{' '.join(probe.command)}` in it ends with code 0"
        case MountedProbe():
            words = f"a pod has it as a volume, with {probe.path}"
        case _:
            assert_never(probe)
    return words


def shown_by(probe: Probe, *, runs: bool) -> Shown:
    """Return what a start has shown that came up by this probe, and still ``runs`` at the last look. Pure."""
    match probe:
        case RunningProbe() if runs:
            return "running"
        case ExitProbe() | RunningProbe():
            return "ended"
        case MountedProbe():
            return "mounted"
        case LogProbe():
            return "logged"
        case TcpProbe() | HttpProbe() | ExecProbe():
            return "answered"


class Log:
    """Reads a CRI log as it grows: ``<RFC 3339 time> <stream> <P|F> <text>``, P for a piece of a longer line."""

    def __init__(self) -> None:
        self._rest = b""
        self._pieces: dict[str, str] = {}

    def feed(self, data: bytes) -> list[tuple[float, str]]:
        """Take more bytes; return the lines that they complete, each with its time in seconds since the epoch."""
        lines: list[tuple[float, str]] = []
        *whole, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-_LONGEST_LINE:]
        for line in whole:
            time, stream, tag, text = (*line.decode(errors="replace").split(" ", 3), "", "", "", "")[:4]
            if stream not in _STREAMS:
                continue
            self._pieces[stream] = (self._pieces.get(stream, "") + text)[-_LONGEST_LINE:]
            if tag.partition(":")[0] == "P":
                continue
            with suppress(ValueError, OverflowError):  # not a line of this format
                lines.append((datetime.fromisoformat(time).timestamp(), self._pieces.pop(stream)))
        return lines


def shorten(output: str) -> str:
    """Return the end of a container's output, at most 40 lines and 8 KiB."""
    return "\n".join(output[-_OUTPUT_BYTES:].splitlines()[-_OUTPUT_LINES:])


class _Failed(Exception):
    """The container will not be up any more; ``by_itself`` is that of ``Started``."""

    def __init__(self, words: str, *, by_itself: bool = False) -> None:
        super().__init__(words)
        self.by_itself = by_itself


class Starter:
    """Starts images in one machine.

    ``stretch`` multiplies every time limit; ``logs`` is the folder there for what containers write, ``places`` that for
    what is mounted into them; ``pause`` is the image that pods are made from, which those that only mount an image run
    as well.
    """

    def __init__(
        self, guest: ContainerHost, cri: Cri, *, stretch: float, pause: str, logs: str = LOGS, places: str = PLACES
    ) -> None:
        self._guest, self._cri, self._stretch, self._pause = guest, cri, stretch, pause
        self._logs, self._places = logs, places
        self._count = 0

    def start(self, reference: str, startup: Startup) -> Started:
        """Start an image until its probe says up, then stop and remove it; raises what ``begin`` does."""
        begun = self.begin(reference, startup)
        return self._end(begun, begun.started).started

    def begin(self, reference: str, startup: Startup) -> Begun:
        """Start an image until its probe says up, and leave it running; ``look_again`` is its end.

        Never raises for what the image does; raises MachineError when the machine is gone.
        """
        refused = self._taken_port(startup.up)
        if isinstance(startup.up, MountedProbe):
            refused = mounted.refusal(self._cri.version())
        if refused:
            return Begun(Started(None, None, "", (refused,)), startup)
        self._count += 1
        logs = f"{self._logs}/{self._count}"
        self._guest.check(["mkdir", "-p", logs])
        asked = self._guest.now()
        try:
            pod = self._cri.run_pod_sandbox(f"verify-{self._count}", log_directory=logs)
        except _RUNTIME_ERRORS as error:
            return Begun(Started(None, None, "", (f"no pod could be started for it: {error.message}",)), startup)
        begun = self._guest.now()
        sandbox_seconds = begun.monotonic - asked.monotonic
        run = Begun(Started(None, sandbox_seconds, "", ()), startup, pod, log=f"{logs}/log")
        try:
            if isinstance(startup.up, MountedProbe):
                at, output = self._mount(pod, reference, startup, startup.up.path)
                run = replace(run, started=replace(run.started, output=output))
            else:
                run, at = self._run(run, pod, reference)
            shown = shown_by(startup.up, runs=bool(run.since))
            run = replace(run, started=replace(run.started, seconds=at - begun.wall * _NANO, shown=shown))
        except _Failed as failure:
            return self._end(run, replace(run.started, problems=(str(failure),), by_itself=failure.by_itself))
        except _RUNTIME_ERRORS as error:
            return self._end(run, replace(run.started, problems=(f"the runtime could not start it: {error.message}",)))
        except BaseException:
            self._end(run, run.started)
            raise
        return run if run.since else self._end(run, run.started)

    def look_again(self, begun: Begun) -> Started:
        """Wait until a container has run as long as it is watched, look whether it still does, and remove it."""
        if not begun.since:
            return begun.started
        try:
            sleep(max(0.0, begun.since + begun.startup.watch - self._guest.now().wall * _NANO))
            now = self._guest.now().wall * _NANO
            status = self._cri.container_status(begun.container)
            if status.state == "running":
                seen = replace(begun.started, ran_seconds=now - begun.since)
            elif status.exit_code == 0 and begun.started.shown != "answered":  # what answers is to stay
                seen = replace(begun.started, shown=shown_by(begun.startup.up, runs=False))
            else:
                ran = max(0.0, status.finished - begun.since)
                ended = f"it was up, and ended with code {status.exit_code}{_why(status)} {ran:.0f} s after its start"
                seen = replace(begun.started, ran_seconds=ran, problems=(ended,))
        except _RUNTIME_ERRORS as error:
            seen = replace(begun.started, problems=(f"the runtime does not say whether it runs: {error.message}",))
        return self._end(begun, seen).started

    def _end(self, begun: Begun, started: Started) -> Begun:
        """Keep what a container wrote, and remove it with its pod."""
        if not begun.pod:
            return begun
        started = replace(started, output=started.output or self._output(begun.log))
        with suppress(*_RUNTIME_ERRORS):  # the machine is thrown away; what counts has been seen
            self._cri.stop_pod_sandbox(begun.pod.id)
            self._cri.remove_pod_sandbox(begun.pod.id)
        return replace(begun, started=started, pod=None, since=0.0)

    def _taken_port(self, probe: Probe) -> str:
        if isinstance(probe, TcpProbe | HttpProbe) and self._guest.wait_tcp(probe.port, 0.0).up:
            return f"port {probe.port} is taken by the machine itself, so nothing can be learned from it"
        return ""

    def _run(self, run: Begun, pod: Pod, reference: str) -> tuple[Begun, float]:
        """Return what runs, and when it was up, in seconds since the epoch; raises _Failed."""
        startup = run.startup
        deadline = Deadline(startup.timeout * self._stretch, describe(startup.up))
        container = self._cri.create_container(
            pod,
            "main",
            reference,
            command=startup.command,
            args=startup.args,
            env=startup.env,
            working_dir=startup.workdir,
            user=startup.user,
            read_only=startup.read_only,
            mounts=self._placed(startup),
            log_path="log",
            timeout=startup.timeout,
        )
        self._cri.start_container(container, timeout=startup.timeout)
        watch = _Watch(self._guest, startup.up, run.log, self._stretch, partial(self._ends_well, container))
        while True:
            looked = monotonic()
            now = self._guest.now().wall * _NANO  # before the state: what runs then has run until this moment
            status = self._cri.container_status(container)
            cost = monotonic() - looked
            up = watch.up_since(status, now)
            if up is not None:
                is_over = status.state == "exited" and status.exit_code == 0
                return replace(run, container=container, since=0.0 if is_over else status.started), up
            if status.state == "exited":
                ended = f"it ended with code {status.exit_code}{_why(status)} before {describe(startup.up)}"
                raise _Failed(ended, by_itself=status.reason != "OOMKilled")
            if not deadline.left:
                late = f"not up within {deadline.seconds:.0f} s: waited until {describe(startup.up)}"
                raise _Failed(late, by_itself=True)
            # A look takes the guest's time, in emulation a lot: it must not slow what it looks at, and there are fewer.
            # What listens is waited for in the guest, and at once again.
            pause = max(_POLL * self._stretch, cost)
            deadline.sleep(_POLL if isinstance(startup.up, TcpProbe | HttpProbe) else pause)

    def _placed(self, startup: Startup) -> list[HostMount]:
        """Make the folders and files that an image is started with; the runtime mounts them, below the image's root."""
        mounts, folder = [], f"{self._places}/{self._count}"
        for number, path in enumerate(startup.writable):
            place = f"{folder}/folder{number}"
            self._guest.check(["mkdir", "-p", "-m", "0777", place])
            mounts.append(HostMount(place, path))
        for number, (path, file) in enumerate(startup.files.items()):
            place = f"{folder}/file{number}"
            self._guest.check(["sh", "-c", _PUT, "sh", place, file.mode], stdin=file.content.encode())
            mounts.append(HostMount(place, path, read_only=True))
        return mounts

    def _ends_well(self, container: str, command: Sequence[str]) -> bool:
        """Whether a program that is run in a container ends with code 0, in time."""
        with suppress(ContainerdError, DeadlineExceeded):
            return self._cri.exec_sync(container, command, timeout=ceil(_EXEC_LIMIT * self._stretch)) == 0
        return False

    def _mount(self, pod: Pod, reference: str, startup: Startup, path: str) -> tuple[float, str]:
        """Return when a pod had the image as a volume, in seconds since the epoch, and what it saw; raises _Failed."""
        container = mounted.create(self._cri, pod, self._pause, reference, timeout=startup.timeout)
        self._cri.start_container(container, timeout=startup.timeout)
        at = self._guest.now().wall * _NANO
        problem, names = mounted.look(self._guest.check, mounted.place(pod), path)
        if problem:
            raise _Failed(problem)
        return at, shorten("\n".join(names))

    def _output(self, log: str) -> str:
        try:
            size = int(self._guest.check(["stat", "-c", "%s", log]))
            return shorten(log_text(self._guest.read(log, offset=max(0, size - _LOG_PART), limit=_LOG_PART)))
        except (ParbakeError, ValueError):
            return ""  # it never came to a log


def _why(status: ContainerStatus) -> str:
    details = ": ".join(part for part in (status.reason, status.message) if part and part != "Completed")
    return f" ({details})" if details else ""


class _Watch:
    """Looks whether a container is up by its probe."""

    def __init__(
        self,
        guest: ContainerHost,
        probe: Probe,
        log: str,
        stretch: float,
        ends_well: Callable[[Sequence[str]], bool],
    ) -> None:
        self._guest, self._probe, self._log, self._stretch, self._ends_well = guest, probe, log, stretch, ends_well
        self._offset = 0
        self._lines = Log()

    def up_since(self, status: ContainerStatus, now: float) -> float | None:
        """Return since when it is up, None: not (yet). ``now`` is when the state was asked for; all since the epoch."""
        ended_well = status.state == "exited" and status.exit_code == 0
        match self._probe:
            case ExitProbe() | RunningProbe() if ended_well:
                return status.finished
            case RunningProbe(seconds=seconds):
                # A slow machine also takes longer to notice an end.
                is_steady = status.state == "running" and now >= status.started + seconds * self._stretch
                return status.started + seconds if is_steady else None
            case LogProbe(pattern=pattern):
                return self._matched(re.compile(pattern))
            case TcpProbe() | HttpProbe() as probe:
                patience = 0.0 if status.state == "exited" else _GUEST_WAIT
                if isinstance(probe, TcpProbe):
                    waited = self._guest.wait_tcp(probe.port, patience)
                else:
                    waited = self._guest.wait_http(probe.port, probe.path, patience)
                return waited.at.wall * _NANO if waited.up else None
            case ExecProbe(command=command) if status.state == "running" and self._ends_well(command):
                return self._guest.now().wall * _NANO
        return None  # not yet; or nothing runs that could be watched

    def _matched(self, pattern: re.Pattern[str]) -> float | None:
        for _ in range(_LOG_PARTS):
            if not (part := self._guest.read(self._log, offset=self._offset, limit=_LOG_PART)):
                break
            self._offset += len(part)
            for time, text in self._lines.feed(part):
                if pattern.search(text):
                    return time
        return None
