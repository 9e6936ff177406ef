"""The `parbake` command as a user starts it, in a corner of its own, followed event by event.

corner = Corner(tmp_path)
corner.write("parbake.yaml", f"version: 1\nbase: none\nimages: [{host}/app:1]\n")
done = corner.parbake("bake", "--no-verify", "--json")     # done.code, done.document, done.said; in this process
done = corner.as_program("bake", "--no-verify", "--json")  # the same as a process of its own: twice as long
with corner.start("bake", "--no-verify") as run:           # its own session, so that the group can be killed
    for event in run.events():
        if event["kind"] == "stage-end":
            run.kill(signal.SIGKILL)
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self
from unittest.mock import patch

from blake3 import blake3

from parbake import cli
from parbake.aws import clients
from standins import PLAIN, preloaded
from standins.leaks import files, leaked, snapshot, work_folders

PROGRAM = (sys.executable, "-m", "parbake")
_LIMIT = 1200.0  # seconds for one command: it only ends what hangs, on a busy machine too


@dataclass(frozen=True)
class Done:
    """What a command left: its code, standard output, and what it said beside events."""

    code: int
    stdout: str
    said: str

    def __repr__(self) -> str:
        return f"Done({self.code}, {self.stdout[:300]!r}, {self.said!r})"

    @property
    def document(self) -> Any:
        """The answer of a command with ``--json``."""
        return json.loads(self.stdout)


class Running:
    """A command under way; use with ``with``, which kills what is left of it."""

    def __init__(self, process: subprocess.Popen[str] | preloaded.Copy) -> None:
        self._said: list[str] = []
        self.seen: list[dict[str, Any]] = []
        self._popen = process
        # Whatever hangs is ended, so that its test fails instead of waiting for ever.
        self._watchdog = threading.Timer(_LIMIT, self.kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the events of ``--progress json`` as they come, until the command closes its standard error."""
        assert self._popen.stderr
        for line in self._popen.stderr:
            with suppress(ValueError):
                event = json.loads(line)
                self.seen.append(event)
                yield event
                continue
            self._said.append(line)

    def wait_for(self, kind: str, name: str) -> dict[str, Any]:
        """Return the next event of this kind whose name or text begins so."""
        for event in self.events():
            if event["kind"] == kind and (event["name"] or event["text"]).startswith(name):
                return event
        raise AssertionError(f"it ended before {kind} {name}: {''.join(self._said)}")

    def kill(self, number: int = signal.SIGKILL, *, group: bool = True) -> None:
        """Send a signal to the whole process group, or to parbake alone."""
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self._popen.pid, number)

    def finish(self) -> Done:
        """Wait for the end and return what it left; negative codes are signals."""
        for _ in self.events():
            pass
        output: IO[str] | None = self._popen.stdout
        assert output
        text = output.read()
        return Done(self._popen.wait(_LIMIT), text, "".join(self._said))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self.kill()
        self._popen.communicate()


def digests_of(artefact: Path) -> dict[str, str]:
    """Compute what a record may say of an artefact's bytes, by reading it plainly."""
    size, length, nothing = 512 * 1024, artefact.stat().st_size, bytes(512 * 1024)
    whole, blocks = hashlib.sha256(), hashlib.sha256(f"parbake-blocks 1 blake3 {size} {length}\n".encode())
    with artefact.open("rb") as file:
        for index in range(-(-length // size)):
            block = file.read(size)
            whole.update(block)
            block = block.ljust(size, b"\0")
            if block != nothing:
                blocks.update(f"{index} {blake3(block).hexdigest()}\n".encode())
    return {"sha256": whole.hexdigest(), "parbakeBlocks1": blocks.hexdigest()}


def documents(text: str) -> list[Any]:
    """Return the JSON documents that stand one after the other."""
    found, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def _without_events(said: str) -> Iterator[str]:
    for line in said.splitlines(keepends=True):
        try:
            json.loads(line)
        except ValueError:
            yield line


class Corner:
    """A folder with all that runs of parbake touch: Bakefile, output, cache, temporary files, home."""

    alone = False
    """Whether every command is a process of its own, since it takes memory that this one would keep."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder, self.output, self.cache, self.tmp = folder, folder / "artefacts", folder / "cache", folder / "tmp"
        for path in (folder, self.tmp, folder / "home"):
            path.mkdir(parents=True, exist_ok=True)
        self.env = {
            **os.environ,
            "PARBAKE_CACHE": str(self.cache),
            "TMPDIR": str(self.tmp),
            "HOME": str(folder / "home"),
            **env,
        }
        self._runs: set[int] = set()
        self.look()

    def look(self) -> None:
        """Take what is there now as not leaked."""
        self._before = snapshot(self.folder)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def start(self, *arguments: str, program: tuple[str, ...] = (), script: str = "") -> Running:
        """Start a command of parbake in a session of its own, to be killed or interrupted.

        It is a copy of a parbake that has loaded already (``standins.preloaded``), unless ``program`` says what to
        start, PYTHONPATH brings it a stand-in, or this thread has mounts of its own. ``script`` is a program that calls
        parbake's ``main``.
        """
        if program or self._changes_imports or not preloaded.here():
            alone = program or ((sys.executable, script) if script else PROGRAM)
            run = Running(preloaded.started([*alone, *arguments], self.env, self.folder))
        else:
            run = Running(preloaded.start(arguments, self.env, self.folder, script=script))
        self._runs.add(run.pid)
        return run

    @property
    def _changes_imports(self) -> bool:
        return self.env.get("PYTHONPATH") != os.environ.get("PYTHONPATH")

    def as_program(self, *arguments: str) -> Done:
        """Run a command of parbake to its end, as a process of its own."""
        with self.start(*arguments) as run:
            return run.finish()

    def parbake(self, *arguments: str) -> Done:
        """Run a command of parbake to its end, through the door, in this process: most of a program is its start.

        As a process of its own where PYTHONPATH brings it a stand-in.
        """
        if PLAIN or self.alone or self._changes_imports:
            return self.as_program(*arguments)
        out, err = io.StringIO(), io.StringIO()
        clients.forget()
        with ExitStack() as there:
            there.callback(clients.forget)
            there.enter_context(patch.dict(os.environ, self.env, clear=True))
            there.enter_context(patch.object(tempfile, "tempdir", None))  # TMPDIR is read again
            there.enter_context(chdir(self.folder))
            there.enter_context(redirect_stdout(out))
            there.enter_context(redirect_stderr(err))
            code = cli.run(list(arguments))
        self._runs.add(os.getpid())
        return Done(code, out.getvalue(), "".join(_without_events(err.getvalue())))

    def bake(self, *more: str) -> dict[str, Any]:
        """Bake without verification, which must succeed, and return the answer."""
        done = self.parbake("bake", "--no-verify", "--json", "--progress", "json", *more)
        assert done.code == 0, done.said
        document: dict[str, Any] = done.document
        return document

    def leaked(self, *, cgroups: bool = True) -> list[str]:
        """Return mounts, loop devices, processes and cgroups of this corner that are still there; waits a little."""
        return leaked(self._before, self.folder, self._runs if cgroups else ())

    def left(self) -> list[str]:
        """Return what no run should leave: work folders and locks, temporary files, what hides in the output."""
        hidden = [str(path) for path in self.output.glob(".*") if path.name != ".parbake"]
        return [*work_folders(self.output, self.cache), *sorted(files(self.tmp)), *hidden]
