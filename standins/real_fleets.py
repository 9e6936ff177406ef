"""A fleet whose workers run parbake itself, each on a machine of its own: a checkout, a cache, temporary files.

    with RealFleet(tmp_path) as fleet:
        fleet.commit({"one/parbake.yaml": ...})       # fleet.yaml is made of it
        with fleet.machine("first") as first, fleet.machine("second"):
            fleet.start(["one@amd64"])
            fleet.wait_until(lambda: bool(first.bakes()), "a bake")
            first.kill()                              # or freeze, thaw, tell_to_stop
            fleet.end()

Who plans is a third worker, which nobody touches.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from parbake.core.run import Process, Result, run
from parbake.fleet.engine.tasks import Root, RunRequest
from parbake.fleet.source import pinned
from standins import holding
from standins.fleets import Fleet, kill
from standins.leaks import leaked, snapshot, work_folders

_BAKES = "parbake bake "


class Machine:
    """A worker of the queue ``bake``; use with ``with``."""

    def __init__(self, folder: Path, state: Path, *, slots: int, grace: float, queues: str = "bake") -> None:
        self.folder, self.cache, self._tmp = folder, folder / "cache", folder / "tmp"
        for path in (folder, self._tmp, folder / "home"):
            path.mkdir(exist_ok=True)
        self._before = snapshot(folder)
        program = [sys.executable, "-m", "parbake", "fleet", "worker", "--queues", queues, "--state", str(state)]
        program += ["--slots", str(slots), "--grace", str(grace)]
        self.worker = Process(program, log=folder / "worker.log", env=self.env)

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "PARBAKE_CACHE": str(self.cache),
            "PARBAKE_HOLDS": str(self.folder.parent / "holds"),
            "TMPDIR": str(self._tmp),
            "HOME": str(self.folder / "home"),
            "PYTHONPATH": os.pathsep.join(holding.__path__),
        }

    def __enter__(self) -> Self:
        self.worker.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()
        self.worker.stop(60)

    def checkout(self, root: Root) -> Path:
        """Return where its commit is."""
        (found,) = self.cache.glob(f"fleet-sources/*/{root.commit}")
        return found

    def tree(self) -> list[int]:
        """Return the worker and all that it has started."""
        return [self.worker.pid, *_below(self.worker.pid)]

    def bakes(self) -> dict[int, str]:
        """Return the command lines of its bakes, by process."""
        return {pid: line for pid in _below(self.worker.pid) if _BAKES in (line := command_line(pid))}

    def freeze(self) -> None:
        """Let it stand still, with all that it has started."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on where it is."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for pid in self.tree() if self.worker.pid else ():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kill the worker alone: what it has started must find out by itself."""
        kill(self.worker)

    def tell_to_stop(self) -> None:
        kill(self.worker, signal.SIGTERM)

    def parbake(self, root: Root, *arguments: str) -> Result:
        """Run a command of parbake on this machine, in its checkout."""
        return run([sys.executable, "-m", "parbake", *arguments], env=self.env, cwd=self.checkout(root), check=False)

    def left(self) -> list[str]:
        """Return what is there of bakes that have ended: mounts, loop devices, processes."""
        return leaked(self._before, self.folder, alive=[self.worker.pid] if self.worker.alive else [])

    def work_folders(self) -> list[str]:
        """Return the work folders and locks of its bakes."""
        return work_folders(self.cache)


def _below(pid: int) -> list[int]:
    """Return all that a process has started, and those have."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *_below(child)]
    return found


def command_line(pid: int) -> str:
    """Return a process's command line, empty where it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


class RealFleet(Fleet):
    """Use with ``with``; ``root`` is a repository."""

    at = Root()

    def __init__(self, folder: Path, *, heartbeat: float = 6.0) -> None:
        super().__init__(folder, heartbeat=heartbeat)
        (folder / "machines/holds").mkdir(parents=True)
        self._machines = folder / "machines"

    def __enter__(self) -> Self:
        super().__enter__()
        self._stack.enter_context(Machine(self._machines / "plans", self.state, slots=1, grace=1.0, queues="control"))
        return self

    def commit(self, bakefiles: Mapping[str, str]) -> None:
        """Commit Bakefiles, by the names of their cells; runs that begin from now on take this commit."""
        for name, text in bakefiles.items():
            (self.root / name).mkdir(exist_ok=True)
            (self.root / name / "parbake.yaml").write_text(text)
        listed = "".join(f"  - {path.parent.name}/parbake.yaml\n" for path in sorted(self.root.glob("*/parbake.yaml")))
        (self.root / "fleet.yaml").write_text(f"version: 1\nstore: {self.store}\nbakefiles:\n{listed}")
        git = ["git", "-C", str(self.root), "-c", "user.name=a", "-c", "user.email=a@example.com"]
        run([*git, "init", "--quiet", "--initial-branch", "main"])
        run([*git, "add", "."])
        run([*git, "commit", "--quiet", "-m", "bakes"])
        from parbake.fleet.file import Source

        self.at = pinned(Source.model_construct(git=f"file://{self.root}", ref="main"), self.root)

    @contextmanager
    def machine(self, name: str, *, slots: int = 4, grace: float = 1.0) -> Iterator[Machine]:
        """Run a worker on a machine of that name."""
        with Machine(self._machines / name, self.state, slots=slots, grace=grace) as machine:
            yield machine

    def request(self, cells: list[str], *, name: str = "shop", **more: Any) -> RunRequest:
        usual = {"verify": False, "attempts": 10, **more}
        return replace(super().request(cells, name=name, **usual), root=self.at)

    @contextmanager
    def held(self, moments: Mapping[str, str]) -> Iterator[None]:
        """Hold the bakes of these cells, each at its moment: an audit event, and how one of its words ends."""
        folder = self._machines / "holds"
        for name, moment in moments.items():
            (folder / name).write_text(f"{name}/parbake.yaml {moment}")
        try:
            yield
        finally:
            for path in folder.iterdir():
                path.unlink(missing_ok=True)

    def until_held(self, *names: str) -> None:
        """Wait until they are."""
        folder = self._machines / "holds"
        self.wait_until(lambda: all((folder / f"{name}.reached").exists() for name in names), "all bakes' moments")

    def release(self) -> None:
        """Let go on what is held, and hold nothing more."""
        for path in (self._machines / "holds").iterdir():
            if path.suffix != ".reached":
                path.unlink()

    @property
    def entries(self) -> dict[str, bytes]:
        """What the store has of each artefact: the entry, which names its record and its bytes by digest."""
        return {path.name: path.read_bytes() for path in (self.store / "artefacts").glob("*.json")}
