"""Programs that begin as copies of a process which has loaded them: most of the start of a short one is its imports.

    program = adopted.Program("standins.fleet_worker")    # a module that ends with ``adopted.main(act)``
    process = program.process(["STATE", "1"], log=log, env=env)     # as ``Process([sys.executable, "-m", ...])``

What runs is a child of ours, as if we had started it: it dies with us, its exit code is ours to ask for, and its CPU
time counts as that of our children. Who copies has one thread, and ends with us as well.
"""

from __future__ import annotations

import array
import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Never, Self, override

from parbake.core.run import Process
from standins import PLAIN

_COPY_FOR = "--copy-for"
_MOST = 1 << 20  # bytes of a request: arguments and an environment
_PDEATHSIG, _SUBREAPER = 1, 36  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


class Program:
    """A module of ours, which is loaded once."""

    def __init__(self, module: str) -> None:
        self.module = module
        self._copier: Process | None = None

    def process(self, arguments: Sequence[str], *, log: Path, env: Mapping[str, str]) -> Process:
        """Return a copy that does what the module does with these arguments; it starts with ``with``."""
        if PLAIN:
            return Process([sys.executable, "-m", self.module, *arguments], log=log, env=dict(env))
        return _Copy(self, arguments, log, env)

    def start(self, request: Mapping[str, Any], log: Path) -> int:
        """Start a copy; return its process."""
        with log.open("ab") as output:
            if self._copier is None or not self._copier.alive:
                self._begin()
            handles = array.array("i", [output.fileno()])
            _libc.prctl(_SUBREAPER, 1)  # a copy whose parent ends becomes a child of ours
            try:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handles)]
                self._end.sendmsg([json.dumps({**request, "parent": os.getpid()}).encode()], rights)
                answer = self._end.recv(64)
            finally:
                _libc.prctl(_SUBREAPER, 0)
        assert answer, self._copier and self._copier.tail
        return int(answer)

    def _begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", self.module, _COPY_FOR, str(theirs.fileno())]
            env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TMPDIR": "/tmp"}
            self._copier = Process(command, log=Path(os.devnull), env=env, pass_fds=(theirs.fileno(),))
            self._copier.__enter__()
        self._end = ours


class _Copy(Process):
    def __init__(self, program: Program, arguments: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        super().__init__([sys.executable, "-m", *arguments], log=log)
        self._program = program
        self._request = {"arguments": list(arguments), "environment": dict(env)}

    @override
    def __enter__(self) -> Self:
        self._popen = _Child(self._program.start(self._request, self.log))  # type: ignore[assignment]
        return self


class _Child:
    """What ``Process`` asks of a ``subprocess.Popen``, for a child that was adopted."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None  # type: ignore[assignment]
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return code


def main(act: Callable[[Sequence[str]], object]) -> None:
    """Do what this process was started for: act, or be copied by those who will."""
    if sys.argv[1] != _COPY_FOR:
        act(sys.argv[1:])
        return
    end = socket.socket(fileno=int(sys.argv[2]))
    os.set_inheritable(end.fileno(), False)
    assert len(os.listdir("/proc/self/task")) == 1, "threads are not copied"  # noqa: PTH208
    gc.freeze()
    while True:
        asked, handles, *_ = socket.recv_fds(end, _MOST, 1)
        if not asked:
            return
        request = json.loads(asked)
        if not (between := os.fork()):
            if os.fork():
                os.kill(os.getpid(), signal.SIGKILL)  # with no word of what it has loaded: its child is an orphan
            _become(request, handles, end, act)
        os.waitpid(between, 0)
        for handle in handles:
            os.close(handle)


def _become(
    request: Mapping[str, Any], handles: Iterable[int], end: socket.socket, act: Callable[[Sequence[str]], object]
) -> Never:
    """Be the program that was asked for, once its parent is who has asked."""
    os.setsid()
    while os.getppid() not in {request["parent"], 1}:
        time.sleep(0.001)
    _libc.prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != request["parent"]:
        os.kill(os.getpid(), signal.SIGKILL)
    end.send(str(os.getpid()).encode())
    end.close()
    for handle in handles:
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)
    with suppress(OSError):
        os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [sys.argv[0], *request["arguments"]]
    act(request["arguments"])
    sys.exit()
