"""A containerd of our own: its root, state, socket and configuration lie where we say, and it dies with us.

Nothing of the machine's containerd is used or touched: not its root (``/var/lib/containerd``), its state
(``/run/containerd``), ``/opt/containerd`` or ``/etc/cni``. Nor is anything else of the machine, whatever the store
says: it lives in a root of its own (``own_root``). With ``cri`` it can run pods: then it has a PID namespace of its own
as well, so that shims and containers end with it however it ends.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Self

from parbake.containerd import own_root, skeleton
from parbake.containerd.config import configuration
from parbake.containerd.own_root import OWN, STORE
from parbake.core import cgroups, mounts, run
from parbake.core.errors import CommandFailed, ContainerdError, DeadlineExceeded, ParbakeError

if TYPE_CHECKING:
    from parbake.containerd.client import Client
    from parbake.containerd.cri import Cri

# containerd takes addresses of up to 104 bytes, and makes a second one by adding `.ttrpc`.
_LONGEST_ADDRESS = 104 - len(".ttrpc")
_START = 30.0  # seconds
# Percent by which Go's memory grows between two collections (100 by default). A fifth of the time in which containerd
# measures snapshots went into collecting what the walk through their files leaves.
_GARBAGE = "400"
_SHIM = "containerd-shim-runc-v2"


class Daemon:
    """A private containerd on the store ``root``; use with ``with``.

    ``folder`` holds what it needs while it lives: configuration, socket, state, log (``containerd.log``), and the logs
    of pods, which it finds nowhere else. ``cri`` adds
    the CRI plugin (pods need runc and the shim), whose pods get ``sandbox_image`` as their pause container;
    ``limits`` hold for all of them together (default: ``Limits.of_machine``), and
    ``containerd`` is the path of the program when it is not the one on PATH. Enter it from a thread that lives as long
    as the daemon is needed (see ``run.Process``), in the mount namespace in which ``root`` is mounted. Raises
    EnvironmentProblem when a program is missing, BadBase for a store that leads elsewhere, ContainerdError with the end
    of the log when it does not start.
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
        limits: cgroups.Limits | None = None,
    ) -> None:
        self.root = root.absolute()
        self.folder = folder.absolute()
        self.log = self.folder / "containerd.log"
        self.cgroup_parent = cgroups.name() if cri else ""
        """The cgroup for pods of this daemon: ``Cri`` takes it, and it is removed with the daemon."""
        self.limits = limits or cgroups.Limits.of_machine()
        """What its pods get at most, where ``cgroups`` can limit it."""
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
            skeleton.check(self.root)
            self.socket = self._short_socket(stack)
            self.socket.unlink(missing_ok=True)
            if self._cri:
                stack.enter_context(cgroups.owned(self.cgroup_parent, self.limits))
            self._process = stack.enter_context(self._start())
            self._wait()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def client(self, namespace: str = "k8s.io") -> Client:
        """Return a client; use it with ``with``, and end it before the daemon."""
        from parbake.containerd.client import connect

        places = {STORE: self.root, OWN: self.folder}
        return connect(self.socket, namespace=namespace, patience=self._patience, places=places)

    def cri(self, client: Client) -> Cri:
        """Return the CRI of a client of this daemon. Its pods run on this machine, so they are confined and limited."""
        from parbake.containerd.cri import Cri

        return Cri(client.connection, cgroup_parent=self.cgroup_parent, confined=True)

    def exceeded(self) -> str:
        """Return which of its limits the pods have reached so far, as a sentence; "" for none."""
        return self.limits.reached(self.cgroup_parent)

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

    @contextmanager
    def _start(self) -> Iterator[run.Process]:
        """Start it in a root of its own, which is built where nobody else sees it."""
        program = run.need(self._program)
        path = f"{Path(program).parent}:{run.environment()['PATH']}"  # a containerd finds its own shim first
        used = [program, *([run.need("runc"), shutil.which(_SHIM, path=path) or ""] if self._cri else [])]
        self._configure()
        at = self.folder / "root"
        command = [program, "--config", str(OWN / "config.toml")]
        env = {"PATH": path, "GOGC": _GARBAGE}
        process = run.Process(own_root.entering(at, command, pids=self._cri), log=self.log, env=env, own_pids=self._cri)
        with ExitStack() as stack:
            with mounts.private_mounts():
                self._build(at, [Path(each) for each in used if each])
                stack.enter_context(process)
            yield process

    def _build(self, at: Path, programs: list[Path]) -> None:
        own_root.build(at, self.root, self.folder, programs, pods=self._cri)

    def _configure(self) -> None:
        """Write the configuration, in the words of its own root."""
        text = configuration(
            STORE,
            OWN,
            OWN / "containerd.sock",
            cri=self._cri,
            sandbox_image=self._sandbox_image,
            runc=run.find("runc") or "runc",
        )
        (self.folder / "config.toml").write_text(text)

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
