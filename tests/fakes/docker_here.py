"""A node that runs Docker, without a boot: its own programs on its own disk, in its root, without a network.

    verification.node.machine = DockerHere(artefact, folder)       # any that verifies it then asks its Docker

Docker is started by the line of the node's own unit, and by the node's own configuration; what it writes is thrown
away. That systemd starts it there, and that such a disk boots, is not shown by this: the bake in a machine has booted
it, and sealed disks boot in ``tests/vm/builders/test_ec2_pipeline.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from parbake.coldstart.rehearsal.overlay import writable
from parbake.core import netns, run
from parbake.core.errors import CommandFailed, MachineError
from parbake.machine import disk
from parbake.machine.vm import Ran

_SHARED = ("proc", "sys", "dev")
_UNIT = "usr/lib/systemd/system/docker.service"


class DockerHere:
    """What a verification asks of a machine, done in the root of its disk. Use with ``with``, in one thread."""

    accelerator, stretch, started, console = "tcg", 1.0, 0.0, ""

    def __init__(self, image: Path, folder: Path) -> None:
        self._image, self._folder = image, folder
        self._root = folder / "root"
        self._stack = ExitStack()

    @property
    def guest(self) -> Self:
        return self

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder.mkdir(parents=True)
            stack.enter_context(netns.no_network())
            stack.enter_context(disk.private_mounts())
            shown = stack.enter_context(writable(self._image, self._folder / "shown"))
            root = disk.find_root(shown)
            device = stack.enter_context(disk.loop_device(shown, offset=root.start, size=root.size))
            self._root.mkdir()
            run.run(["mount", device, str(self._root)])
            stack.callback(run.run, ["umount", "--recursive", str(self._root)])
            for name in _SHARED:
                run.run(["mount", "--rbind", f"/{name}", str(self._root / name)])
            for name in ("run", "tmp"):
                run.run(["mount", "-t", "tmpfs", "tmpfs", str(self._root / name)])
            said = (self._root / _UNIT).read_text()
            [line] = [line.partition("=")[2].split() for line in said.splitlines() if line.startswith("ExecStart=")]
            program = line[0]
            own = [program, "--host", "unix:///run/docker.sock", "--cgroup-parent", "parbake-docker"]
            command = ["chroot", str(self._root), *own]
            self._daemon = stack.enter_context(run.Process(command, log=self._folder / "docker.log"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait_agent(self) -> None:
        """Nothing to wait for."""

    def run(self, argv: Sequence[str], *, timeout: float = 60.0, stdin: bytes = b"") -> Ran:
        """Run a program of the node."""
        try:
            done = run.run(["chroot", str(self._root), *argv], timeout=timeout, stdin=stdin or None, check=False)
        except CommandFailed as error:
            raise MachineError(error.message) from error
        return Ran(done.code, done.text)

    def check(self, argv: Sequence[str], *, timeout: float = 60.0, stdin: bytes = b"") -> str:
        """Run a program of the node, which must go well, and return its output."""
        self._daemon.check_alive()
        ran = self.run(argv, timeout=timeout, stdin=stdin)
        assert ran.code == 0, ran.output
        return ran.output

    def read(self, path: str, **_: Any) -> bytes:
        """Return a file of the node; raises MachineError."""
        try:
            return (self._root / path.lstrip("/")).read_bytes()
        except OSError as error:
            raise MachineError(str(error)) from error
