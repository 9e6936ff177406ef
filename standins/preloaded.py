"""`parbake` as a program that has loaded already: each command is a copy of one process, made for it.

Nine tenths of a short command's CPU time are its imports. A copy begins where those have ended:

    with Preloaded(folder) as server:
        server.script                   # what `exec`s in a shell's stand-in for parbake: SCRIPT ARGUMENTS...

It has its caller's arguments, environment, folder, umask and standard streams; its exit code is the caller's. Signals
to the caller do not reach it, and PYTHON* variables come too late: what needs those is started as a user does. All
copies live in namespaces that end with the server.

What is to be killed is a copy in a session of its own, in this process's namespaces; all share a server that ends with
this process:

    copy = start(["bake"], environment, folder)     # copy.pid, copy.stdout, copy.wait(): as of a subprocess.Popen
"""

from __future__ import annotations

import array
import gc
import json
import os
import pkgutil
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Never, Self

import parbake
from parbake.core.run import Deadline, Process, isolated
from standins import PLAIN

_CLIENT = Path(__file__).with_name("preloaded_program.py")
_NOT_LOADED = ("parbake.node", "parbake.__main__")  # they do something as soon as they load
_LIBRARIES = ("boto3", "rich.progress", "rich.table")  # that parbake loads where it needs them
_MOST = 1 << 20  # bytes of a request: an environment and arguments
_SIGNALS = 65  # numbers of signals end below; parbake's exit codes are small ones


class Preloaded:
    """Use with ``with``; ``folder`` takes the socket. Without ``apart`` copies live in this process's namespaces."""

    def __init__(self, folder: Path, *, apart: bool = True) -> None:
        self.socket = folder / "parbake.sock"
        self.script = f"{sys.executable} -I -S {_CLIENT} {self.socket}"
        if PLAIN and apart:
            self.script = f"{sys.executable} -m parbake"
        command = [sys.executable, "-m", __name__, str(self.socket)]
        env = {"PYTHONPATH": str(Path(__file__).parents[1])}
        self._server = Process(isolated(command) if apart else command, log=folder / "preloaded.log", env=env)

    def __enter__(self) -> Self:
        self._server.__enter__()
        deadline = Deadline(120, "all of parbake has loaded")
        while not self.socket.exists():
            self._server.check_alive()
            deadline.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0)  # the first process of its namespace hears no SIGTERM


class Copy:
    """A command in a session of its own, with its output in pipes and no input."""

    def __init__(self, server: socket.socket, request: Mapping[str, object], folder: Path) -> None:
        ours, theirs = zip(*(os.pipe() for _ in range(2)), strict=True)
        self.stdout, self.stderr = (os.fdopen(end) for end in ours)
        self._server = server
        self._code: int | None = None
        with Path(os.devnull).open() as nothing:
            streams = array.array("i", [nothing.fileno(), *theirs])
            asked = json.dumps({**request, "folder": str(folder), "umask": _umask(), "session": True})
            server.sendmsg([asked.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        for end in theirs:
            os.close(end)
        self.pid = int(server.recv(_MOST))

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; negative: the signal that ended it."""
        if self._code is None:
            self._server.settimeout(timeout)
            [code] = self._server.recv(1)
            self._server.close()
            self._code = code - 256 if code > 256 - _SIGNALS else code
        return self._code

    def communicate(self) -> None:
        """Wait until it has ended and nobody writes any more."""
        for stream in (self.stdout, self.stderr):
            with stream:
                stream.read()
        self.wait()


def started(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> subprocess.Popen[str]:
    """Start a program in a session of its own."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Shells start what runs in the background so, and children inherit it: Ctrl-C would not be heard at all.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=cwd,
        start_new_session=True,
    )


def start(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path, *, script: str = ""
) -> Copy | subprocess.Popen[str]:
    """Start a command; ``script`` is a program that calls parbake's ``main`` itself, and has the arguments."""
    if PLAIN:
        command = [sys.executable, script] if script else [sys.executable, "-m", "parbake"]
        return started([*command, *arguments], environment, folder)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(str(_shared()))
    request = {"arguments": list(arguments), "environment": dict(environment), "script": script}
    return Copy(server, request, folder)


def here() -> bool:
    """Whether this thread has the namespaces and limits of this process's beginning, which are those of copies."""
    return _surroundings() == _BEGINNING


def _surroundings() -> tuple[object, ...]:
    spaces = (Path(f"/proc/thread-self/ns/{name}").stat().st_ino for name in ("mnt", "net", "pid", "user"))
    return (*spaces, os.getuid(), *map(resource.getrlimit, _LIMITS))


_LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)
_BEGINNING = _surroundings()
_LOCK, _SHARED, _HOLDERS, _OVER = Lock(), list[Path](), list[Thread](), Event()


def _shared() -> Path:
    """Return the socket of the server that all of this process's tests share."""
    with _LOCK:
        if not _SHARED:
            ready = Event()
            # The kernel ends the server with the thread that started it, which is to last as long as this process.
            holder = Thread(target=_hold, args=(ready,), daemon=True, name="preloaded")
            holder.start()
            _HOLDERS.append(holder)
            assert ready.wait(120), "parbake loads for two minutes"
        return _SHARED[0]


def _hold(ready: Event) -> None:
    with tempfile.TemporaryDirectory() as folder, Preloaded(Path(folder), apart=False) as server:
        _SHARED.append(server.socket)
        ready.set()
        _OVER.wait()


def end() -> None:
    """Let the shared server end, at the end of all tests."""
    _OVER.set()
    for thread in _HOLDERS:
        thread.join(60)


def _umask() -> int:
    """Return this process's umask, without a moment of another one, in which a thread may make a file."""
    [line] = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Umask:"))
    return int(line.split()[1], 8)


def serve(path: str) -> None:
    """Load, listen, and copy this process for each caller."""
    for module in pkgutil.walk_packages(parbake.__path__, "parbake."):
        if not module.name.startswith(_NOT_LOADED):
            import_module(module.name)
    for name in _LIBRARIES:
        import_module(name)
    gc.collect()
    gc.freeze()  # no search of a copy's is to go through what all share: each page of it would be copied
    assert len(os.listdir("/proc/self/task")) == 1, "threads are not copied"  # noqa: PTH208
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(f"{path}.new")
    listening.listen(64)
    os.rename(f"{path}.new", path)  # noqa: PTH104
    while True:
        caller, _ = listening.accept()
        if not os.fork():
            listening.close()
            _answer(caller)
        caller.close()
        _bury()


def _bury() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _answer(caller: socket.socket) -> Never:
    """Let a copy do what a caller asks for, and tell it the exit code once all is said."""
    asked, streams, *_ = socket.recv_fds(caller, _MOST, 3)
    child = os.fork()
    if child:
        for stream in streams:
            os.close(stream)
        _, status = os.waitpid(child, 0)
        caller.send(bytes([os.waitstatus_to_exitcode(status) % 256]))
        os._exit(0)
    request = json.loads(asked)
    if request.get("session"):
        os.setsid()
        caller.send(str(os.getpid()).encode())
    caller.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request.get("script") or "parbake", *request["arguments"]]
    if request.get("script"):
        runpy.run_path(request["script"], run_name="__main__")
    else:
        from parbake.__main__ import main

        main()
    sys.exit()


if __name__ == "__main__":
    serve(sys.argv[1])
