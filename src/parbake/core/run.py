"""The one door to subprocesses, to sleeping and to deadlines.

Programs get a list of arguments (never a shell), a clean environment, no standard input, and die with parbake: a child
is started through ``setpriv --pdeathsig``, so that ``kill -9`` of parbake leaves no orphan. They have process groups of
their own, never sessions: Linux gives each session an equal share of the processors (sched(7), autogroup), whatever its
nice value, so that ``nice parbake bake`` would spare nobody. A failing command is named so that it can be replayed by
hand; secrets travel on standard input and are never part of argv.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from parbake.core.errors import CommandFailed, DeadlineExceeded, EnvironmentProblem
from parbake.core.interrupts import guarded

# What a child sees of our environment: where programs and homes are, the proxy, and how to trust TLS.
_PASSED_ON = (
    "HOME", "TMPDIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "XDG_RUNTIME_DIR", "DOCKER_HOST", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE",
)  # fmt: skip
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TAIL_LINES = 40
_LONGEST_LINE = 1 << 20  # of what ``follow`` hears: an event of ours is shorter
CONTAINERD = "PARBAKE_CONTAINERD"
"""The variable that names the containerd to use instead of the one in PATH, by its full path."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished program left: exit code, standard output, and standard error as text."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """Standard output as text, without the last newline."""
        return self.stdout.decode(errors="replace").rstrip("\n")


class Deadline:
    """A point in time by which something must have happened. Starts when made; ``seconds`` is the limit."""

    def __init__(self, seconds: float, what: str) -> None:
        self.seconds = seconds
        self.what = what
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, 0 when over."""
        return max(0.0, self._end - time.monotonic())

    def sleep(self, seconds: float) -> None:
        """Sleep, but raise DeadlineExceeded when the deadline has passed."""
        if not self.left:
            raise DeadlineExceeded(f"{self.what}: not done within {self.seconds:.0f} s")
        time.sleep(min(seconds, self.left))


def sleep(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)


def _path() -> str:
    """Return where programs are looked for, by us and by what we run: PATH's absolute folders, then the system's.

    An element of PATH that is empty or relative means the current folder, where strangers' files may lie.
    """
    asked = os.environ.get("PATH", "").split(os.pathsep)
    return os.pathsep.join([*(folder for folder in asked if Path(folder).is_absolute()), _PATH])


def find(program: str) -> str | None:
    """Return the absolute path of a program, or None; looks into the sbin folders as well, whatever PATH says.

    It is a plain name or an absolute path: a relative one means another program in each folder. What
    ``PARBAKE_CONTAINERD`` names is the one and only ``containerd``.
    """
    if program == "containerd":
        program = os.environ.get(CONTAINERD) or program
    if os.sep in program and not Path(program).is_absolute():
        return None
    return shutil.which(program, path=_path())


def need(program: str) -> str:
    """Return the absolute path of a program; raises EnvironmentProblem that names the package to install."""
    path = find(program)
    if path is None:
        from parbake.core.programs import package_of

        if program == "containerd" and (chosen := os.environ.get(CONTAINERD)):
            raise EnvironmentProblem(
                f"{CONTAINERD} is {chosen}, which does not exist",
                hint="let it be the full path of a containerd, or unset it to use the one in PATH",
            )
        if ignored := shutil.which(program):
            raise EnvironmentProblem(
                f"{ignored} is not run: its path depends on the current folder",
                hint="write the folder in PATH in full, beginning with a slash",
            )
        raise EnvironmentProblem(
            f"{program} is not installed",
            hint=f"apt-get install {package_of(program)} (see `parbake doctor` for all that is missing)",
        )
    return path


CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN = 6, 7, 21
"""Capabilities by their numbers: capabilities(7), ``linux/capability.h``."""


def capable(*numbers: int) -> bool:
    """Whether the process is root and has these capabilities: in a container, root may lack them."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    has = int(status["CapEff"], 16)
    return os.geteuid() == 0 and all(has >> number & 1 for number in numbers)


def need_root(what: str, *, hint: str = "run parbake with sudo") -> None:
    """Raise EnvironmentProblem unless the process is root; ``what`` says which act needs it."""
    if os.geteuid() != 0:
        raise EnvironmentProblem(f"{what} needs root (mounts, loop devices, namespaces)", hint=hint)


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return the clean environment that programs get, with ``extra`` on top."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {"PATH": _path(), "LC_ALL": "C.UTF-8", **kept, **(extra or {})}


def isolated(command: list[str]) -> list[str]:
    """Return a command line that runs a program in mount and PID namespaces of its own (needs root).

    What it mounts and what it forks ends with it, however it ends.
    """
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--", *command]


# The kernel reports a parent's death only to a child that has asked for it by then: one that asked too late finds
# that its parent is another one, and ends by itself.
_UNLESS_ORPHAN = '[ "$PPID" = "$1" ] || exit 137; shift; exec "$@"'


@dataclass(frozen=True, slots=True)
class User:
    """Whom a program runs as: a user's number, that is also the group's, and further groups; without any privilege."""

    number: int
    groups: tuple[int, ...] = ()


def _argv(command: list[str], *, own_pids: bool = False, user: User | None = None) -> list[str]:
    argv = [need("setpriv"), "--pdeathsig", "KILL"]
    if user is not None:
        groups = f"--groups={','.join(map(str, user.groups))}" if user.groups else "--clear-groups"
        argv += [f"--reuid={user.number}", f"--regid={user.number}", groups, "--inh-caps=-all", "--no-new-privs"]
    argv += ["--", "/bin/sh", "-c", _UNLESS_ORPHAN, "sh", str(os.getpid())]
    if own_pids:  # whatever the program forks (shims, containers) dies with it
        argv += [need("unshare"), "--pid", "--fork", "--kill-child=KILL", "--"]
    return [*argv, need(command[0]), *command[1:]]


def run(
    command: list[str],
    *,
    stdin: bytes | None = None,
    timeout: float = 600.0,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
    may_ask: bool = False,
    pass_fds: tuple[int, ...] = (),
) -> Result:
    """Run a program to its end and return what it said.

    It does not hear the terminal's Ctrl-C, which is for us: we end it ourselves, with all that it started; with
    ``may_ask`` (it may ask the user something at the terminal) it hears it too. ``pass_fds`` are open files that it
    inherits under the same numbers.

    Raises CommandFailed (with the end of standard error) when it ends with an error and ``check`` is set,
    DeadlineExceeded after ``timeout`` seconds, EnvironmentProblem when it is not installed.
    """
    shown = shlex.join(command)
    with subprocess.Popen(
        _argv(command),
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(env),
        cwd=cwd,
        pass_fds=pass_fds,
        process_group=None if may_ask else 0,
    ) as popen:
        try:
            stdout, stderr = popen.communicate(stdin, timeout)
        except subprocess.TimeoutExpired as error:
            _kill(popen, group=not may_ask)
            raise DeadlineExceeded(f"not done within {timeout:.0f} s: {shown}") from error
        except BaseException:
            _kill(popen, group=not may_ask)
            raise
    result = Result(popen.returncode, stdout, stderr.decode(errors="replace"))
    if check and result.code:
        output = "\n".join((result.stderr or result.text).splitlines()[-_TAIL_LINES:])
        raise CommandFailed(f"ended with code {result.code}: {shown}\n{output}", code=result.code, output=output)
    return result


@guarded
def _kill(popen: subprocess.Popen[bytes], *, group: bool) -> None:
    with suppress(ProcessLookupError):
        if group:
            os.killpg(popen.pid, signal.SIGKILL)
        else:
            popen.kill()
    popen.wait()


async def follow(
    command: list[str],
    *,
    on_line: Callable[[str], object],
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    grace: float = 10.0,
) -> Result:
    """Run a program to its end beside an event loop; ``on_line`` gets each line of its standard error as it comes.

    When the caller is cancelled, the program and all that it started is asked to end, and ended after ``grace``
    seconds; the cancellation is passed on when nothing of it is left. Await it in the main thread: the kernel ties a
    child's life to the thread that started it. Raises EnvironmentProblem when the program is not installed; whatever
    code it ends with is fine.
    """
    import asyncio  # only for those who have an event loop

    process = await asyncio.create_subprocess_exec(
        *_argv(command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(env),
        cwd=cwd,
        process_group=0,
        limit=_LONGEST_LINE,
    )
    assert process.stdout
    assert process.stderr
    said: deque[str] = deque(maxlen=_TAIL_LINES)

    async def listen(stream: asyncio.StreamReader) -> None:
        async for line in stream:
            said.append(line.decode(errors="replace"))
            on_line(said[-1])

    reading = asyncio.gather(process.stdout.read(), listen(process.stderr))
    try:
        stdout, _ = await reading
        code = await process.wait()
    except BaseException:
        _signal_group(process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(process.wait()), grace)
        except TimeoutError:
            pass
        finally:
            _signal_group(process.pid, signal.SIGKILL)
            await process.wait()
        raise
    return Result(code, stdout, "".join(said))


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


class Process:
    """A program that runs beside us until ``stop``; its output goes to a log file. Use with ``with``.

    With ``own_pids`` it is the first process of its own PID namespace, so that everything it starts ends with it.
    Start it from a thread that lives as long as the process is needed: the kernel ties a child's life to the thread.
    ``pass_fds`` are open files that it inherits under the same numbers. ``user`` is whom it runs as (needs root).
    """

    def __init__(
        self,
        command: list[str],
        *,
        log: Path,
        env: dict[str, str] | None = None,
        own_pids: bool = False,
        pass_fds: tuple[int, ...] = (),
        user: User | None = None,
    ) -> None:
        self.command = command
        self.log = log
        self._env = env
        self._own_pids = own_pids
        self._pass_fds = pass_fds
        self._user = user
        self._popen: subprocess.Popen[bytes] | None = None

    @guarded
    def __enter__(self) -> Self:
        output: IO[bytes]
        with self.log.open("ab") as output:
            self._popen = subprocess.Popen(
                _argv(self.command, own_pids=self._own_pids, user=self._user),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(self._env),
                pass_fds=self._pass_fds,
                process_group=0,  # Ctrl-C is for us: we stop our children in order
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The program's process, 0 before it is started."""
        return self._popen.pid if self._popen else 0

    @property
    def alive(self) -> bool:
        """Whether the program still runs."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def code(self) -> int | None:
        """The exit code of a program that has ended (negative: the signal that ended it), None while it runs."""
        return None if self._popen is None else self._popen.poll()

    @property
    def tail(self) -> str:
        """The last lines of its output."""
        with suppress(FileNotFoundError), self.log.open(errors="replace") as lines:
            return "".join(deque(lines, maxlen=_TAIL_LINES)).rstrip()
        return ""

    def check_alive(self) -> None:
        """Raise CommandFailed with the end of its output when the program has ended."""
        if self._popen is not None and self._popen.poll() is not None:
            code = self._popen.returncode
            raise CommandFailed(f"{self.command[0]} ended with code {code}\n{self.tail}", code=code, output=self.tail)

    @guarded
    def stop(self, grace: float = 10.0) -> None:
        """Ask the program to end (SIGTERM), then insist (SIGKILL) after ``grace`` seconds. Idempotent."""
        if self._popen is None or self._popen.poll() is not None:
            return
        # The leader may be `unshare`, which passes no signal on: signal the whole group.
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGTERM)
        try:
            self._popen.wait(grace)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
