"""`parbake` as a program that has loaded already: each command is a copy of one process, made for it.

Nine tenths of a short command's CPU time are its imports. A copy begins where those have ended:

    with Preloaded(folder) as server:
        server.script                   # what `exec`s in a shell's stand-in for parbake: SCRIPT ARGUMENTS...

It has its caller's arguments, environment, folder, umask and standard streams; its exit code is the caller's. Signals
to the caller do not reach it, and PYTHON* variables come too late: what is killed, or needs those, is started as a user
does. All copies live in namespaces that end with the server.
"""

from __future__ import annotations

import json
import os
import pkgutil
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import Never, Self

import parbake
from parbake.core.run import Deadline, Process, isolated

_CLIENT = Path(__file__).with_name("preloaded_program.py")
_NOT_LOADED = ("parbake.node", "parbake.__main__")  # they do something as soon as they load
_LIBRARIES = ("boto3", "rich.progress", "rich.table")  # that parbake loads where it needs them
_MOST = 1 << 20  # bytes of a request: an environment and arguments


class Preloaded:
    """Use with ``with``; ``folder`` takes the socket."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "parbake.sock"
        self.script = f"{sys.executable} -I -S {_CLIENT} {self._socket}"
        command = isolated([sys.executable, "-m", __name__, str(self._socket)])
        env = {"PYTHONPATH": str(Path(__file__).parents[2])}
        self._server = Process(command, log=folder / "preloaded.log", env=env)

    def __enter__(self) -> Self:
        self._server.__enter__()
        deadline = Deadline(120, "all of parbake has loaded")
        while not self._socket.exists():
            self._server.check_alive()
            deadline.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0)  # the first process of its namespace hears no SIGTERM


def serve(path: str) -> None:
    """Load, listen, and copy this process for each caller."""
    for module in pkgutil.walk_packages(parbake.__path__, "parbake."):
        if not module.name.startswith(_NOT_LOADED):
            import_module(module.name)
    for name in _LIBRARIES:
        import_module(name)
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
        _, status = os.waitpid(child, 0)
        caller.send(bytes([os.waitstatus_to_exitcode(status) % 256]))
        os._exit(0)
    caller.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    request = json.loads(asked)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["parbake", *request["arguments"]]
    from parbake.__main__ import main

    main()
    sys.exit()


if __name__ == "__main__":
    serve(sys.argv[1])
