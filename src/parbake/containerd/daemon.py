"""A containerd of our own: its root, state, socket and configuration lie where we say, and it dies with us.

Nothing of the machine's containerd is used or touched: not its root (``/var/lib/containerd``), its state
(``/run/containerd``), ``/opt/containerd`` or ``/etc/cni``. With ``cri`` it can run pods: then it lives in its own PID
and mount namespaces, so that shims and containers end with it however it ends, and the sockets that shims make below
``/run/containerd`` (a path that containerd compiles in) are on a private file system.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Self

from parbake.containerd.config import configuration
from parbake.containerd.namespace_thread import NamespaceThread
from parbake.core import cgroups, run
from parbake.core.errors import CommandFailed, ContainerdError, DeadlineExceeded, ParbakeError

if TYPE_CHECKING:
    from parbake.containerd.client import Client

# containerd takes addresses of up to 104 bytes, and makes a second one by adding `.ttrpc`.
_LONGEST_ADDRESS = 104 - len(".ttrpc")
_START = 30.0  # seconds
# Percent by which Go's memory grows between two collections (100 by default). A fifth of the time in which containerd
# measures snapshots went into collecting what the walk through their files leaves.
_GARBAGE = "400"
_SHIMS = Path("/run/containerd")


class Daemon:
    """A private containerd on the store ``root``; use with ``with``.

    ``folder`` holds what it needs while it lives: configuration, socket, state, log (``containerd.log``). ``cri`` adds
    the CRI plugin (pods need runc and the shim), whose pods get ``sandbox_image`` as their pause container;
    ``containerd`` is the path of the program when it is not the one on PATH. Enter it from a thread that lives as long
    as the daemon is needed (see ``run.Process``), in the mount namespace in which ``root`` is mounted. Raises
    EnvironmentProblem when a program is missing, ContainerdError with the end of the log when it does not start.
    """

    def __init__(
        self,
        root: Path,
        folder: Path,
        *,
        cri: bool = False,
        sandbox_image: str = "",
        containerd: str | None = None,
        patience: float = 1.0,
    ) -> None:
        self.root = root.absolute()
        self.folder = folder.absolute()
        self.log = self.folder / "containerd.log"
        self.cgroup_parent = cgroups.name() if cri else ""
        """The cgroup for pods of this daemon: ``Cri`` takes it, and it is removed with the daemon."""
        self._cri = cri
        self._sandbox_image = sandbox_image
        self._program = containerd or "containerd"
        self._patience = patience
        self._stack = ExitStack()
        self._process: run.Process | None = None
        self.socket = self.folder / "containerd.sock"

    def __enter__(self) -> Self:
        run.need_root("a private containerd")
        with ExitStack() as stack:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(parents=True, exist_ok=True)
            self.socket = self._short_socket(stack)
            self.socket.unlink(missing_ok=True)
            if self._cri:
                stack.enter_context(cgroups.owned(self.cgroup_parent))
                stack.enter_context(NamespaceThread(self._start_with_shims))
            else:
                self._process = stack.enter_context(self._start())
            self._wait()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def client(self, namespace: str = "k8s.io") -> Client:
        """Return a client; use it with ``with``, and end it before the daemon."""
        from parbake.containerd.client import connect

        return connect(self.socket, namespace=namespace, patience=self._patience)

    @property
    def alive(self) -> bool:
        """Whether the daemon runs."""
        return self._process is not None and self._process.alive

    def _short_socket(self, stack: ExitStack) -> Path:
        """Return a path of the socket that fits into an address; a long one goes through a handle that we hold."""
        path = self.folder / "containerd.sock"
        if len(os.fsencode(path)) <= _LONGEST_ADDRESS:
            return path
        handle = os.open(self.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, handle)
        return Path(f"/proc/{os.getpid()}/fd/{handle}/containerd.sock")

    def _start(self) -> run.Process:
        program = run.need(self._program)
        env = {**_path(program), "GOGC": _GARBAGE}
        return run.Process([program, "--config", str(self._configure(self.folder))], log=self.log, env=env)

    def _start_with_shims(self, stack: ExitStack) -> None:
        """Start it in namespaces of its own; runs in the keeper's thread."""
        program = run.need(self._program)
        for needed in ("runc", "unshare"):
            run.need(needed)
        os.unshare(os.CLONE_NEWNS)
        run.run(["mount", "--make-rslave", "/"])
        with suppress(FileExistsError):
            _SHIMS.mkdir(mode=0o711)
        run.run(["mount", "-t", "tmpfs", "-o", "mode=0711", "tmpfs", str(_SHIMS)])
        inside = _SHIMS / "parbake"  # a short path whatever the folder's is, and one that exists in this namespace only
        inside.mkdir()
        run.run(["mount", "--bind", str(self.folder), str(inside)])
        command = ["unshare", "--mount-proc", "--propagation", "slave", "--"]
        command += [program, "--config", str(self._configure(inside))]
        process = run.Process(command, log=self.log, env=_path(program), own_pids=True)
        self._process = stack.enter_context(process)

    def _configure(self, folder: Path) -> Path:
        """Write the configuration, in which our folder is called ``folder``, and return its path."""
        text = configuration(
            self.root,
            folder,
            folder / "containerd.sock" if self._cri else self.socket,
            cri=self._cri,
            sandbox_image=self._sandbox_image,
            runc=run.find("runc") or "runc",
        )
        path = self.folder / "config.toml"
        path.write_text(text)
        return path

    def _wait(self) -> None:
        """Wait until the socket accepts (and, for pods, until the CRI plugin is ready)."""
        import_module("parbake.containerd.client")  # gRPC takes as long to load as containerd takes to start
        deadline = run.Deadline(_START * self._patience, f"containerd on {self.root}")
        try:
            while not self._accepts():
                self._check_alive()
                deadline.sleep(0.002)
            if self._cri:
                from parbake.containerd.cri import Cri

                with self.client() as client:
                    Cri(client.connection).wait_ready(deadline, self._check_alive)
        except (CommandFailed, DeadlineExceeded, ContainerdError) as error:
            raise self._failure(error) from error

    def _check_alive(self) -> None:
        if self._process is not None:
            self._process.check_alive()

    def _failure(self, error: ParbakeError) -> ContainerdError:
        tail = self._process.tail if self._process is not None else ""
        reason = "it ended" if isinstance(error, CommandFailed) else error.message
        return ContainerdError(
            f"containerd did not start on {self.root}: {reason}\n{tail}",
            hint=f"the log is {self.log}; a containerd that already uses this folder keeps a second one waiting",
        )

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError as error:
                if error.errno in {errno.ENOENT, errno.ECONNREFUSED}:
                    return False
                raise
        return True


def _path(program: str) -> dict[str, str]:
    """Return the environment in which a containerd finds its own shim first."""
    path = run.environment()["PATH"]
    return {"PATH": f"{Path(program).parent}:{path}"}
