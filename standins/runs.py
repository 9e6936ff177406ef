"""Whole runs of parbake, as a user starts them, and looks into what they made and left.

    path = bakefile(tmp_path, ["127.0.0.1:5000/team/app:1"], base="none")     # writes parbake.yaml
    done = parbake("bake", "-f", path, "--no-verify", "--json")              # through the door, in this process
    done.code, done.document, done.err
    as_program("list", "-f", path)                                           # the same as a program of its own
    with opened(volume, tmp_path / "look", "ext4") as (root, daemon): ...    # a containerd on a copy of a volume
    assert traces(tmp_path) == []                                            # mounts, loops, processes, work folders

Take the ``private_places`` fixture first: caches, logins and temporary files then lie below ``tmp_path``.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from parbake import cli
from parbake.containerd import Daemon
from parbake.core import run
from parbake.core.events import Events
from parbake.machine import disk

_LOGINS = ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "HTTP_PROXY", "http_proxy")


@pytest.fixture
def private_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give parbake a home, a cache and a folder for temporary files below ``tmp_path``, which is returned."""
    for name in (*_LOGINS, "PARBAKE_USERNAME", "PARBAKE_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    for variable, name in (("HOME", "home"), ("PARBAKE_CACHE", "cache"), ("TMPDIR", "tmp")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr(tempfile, "tempdir", None)  # read TMPDIR again
    return tmp_path


@pytest.fixture
def place(private_places: Path) -> Iterator[Path]:
    """A folder in which nothing may be left, neither at work nor half-made."""
    yield private_places
    assert traces(private_places) == []
    assert artefacts(private_places / "artefacts") == []


@dataclass(frozen=True)
class Done:
    """What a run of parbake left: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @classmethod
    def of(
        cls, command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, timeout: float = 300
    ) -> Self:
        """Run a command line to its end; ``timeout`` is in seconds."""
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, env=env, cwd=cwd)
        return cls(done.returncode, done.stdout, done.stderr)

    @property
    def document(self) -> Any:
        """The one JSON document on standard output; an error when there is anything else."""
        return json.loads(self.out)

    def good(self) -> Any:
        """Return the document of a run that must have gone well."""
        assert self.code == 0, self.err
        return self.document

    def refused(self, code: int, error: str, *words: str, hint: str = "") -> dict[str, Any]:
        """Return the error of a run that must have been refused: in JSON and in words, with a next step."""
        document: dict[str, Any] = self.document
        assert (self.code, document["exit_code"], document["error"]) == (code, code, error), self.err
        for word in words:
            assert word in document["message"], document["message"]
        assert document["hint"], document["message"]
        assert hint in document["hint"], document["hint"]
        assert f"parbake: {document['message']}\n  next: {document['hint']}\n" in self.err
        assert "Traceback" not in self.out + self.err
        return document


def bakefile(folder: Path, images: Sequence[str | Mapping[str, Any]], **keys: Any) -> Path:
    """Write a Bakefile (YAML is a superset of JSON); underscores of keys stay."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "parbake.yaml"
    document = {"version": 1, "name": "node", "images": list(images), **keys}
    path.write_text(json.dumps(document, indent=1, default=str))
    return path


def parbake(*arguments: str | Path) -> Done:
    """Run a command through the door, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.run([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def as_program(*arguments: str | Path, prefix: Sequence[str] = (), env: Mapping[str, str] | None = None) -> Done:
    """Run a command as a program of its own; ``prefix`` is what it is started through, such as setpriv."""
    command = [*prefix, sys.executable, "-m", "parbake", *map(str, arguments)]
    return Done.of(command, env={**os.environ, **(env or {})})


def bake(path: Path, *options: str) -> Any:
    """Bake without verification; return the document of the bake, which must go well."""
    return parbake("bake", "-f", path, "--no-verify", "--json", *options).good()


@contextmanager
def opened(
    artefact: Path,
    folder: Path,
    filesystem: str,
    *,
    offset: int = 0,
    size: int = 0,
    store: str = ".",
    cri: bool = False,
    sandbox_image: str = "",
    keep: bool = False,
) -> Iterator[tuple[Path, Daemon]]:
    """Start a containerd on ``store`` below the file system at ``offset`` in a copy of a raw artefact.

    Yields where the file system is mounted, as a node would mount it, and the daemon. ``keep``: the copy stays, as
    ``copy.raw`` in ``folder``.
    """
    folder.mkdir(parents=True)
    copy, at = folder / "copy.raw", folder / "mnt"
    disk.copy_sparse(artefact, copy, Events())
    at.mkdir()
    with disk.private_mounts(), disk.loop_device(copy, offset=offset, size=size) as device:
        run.run(["mount", "-t", filesystem, device, str(at)])
        try:
            root = disk.inside(at, store)
            with Daemon(root, folder / "run", cri=cri, sandbox_image=sandbox_image) as daemon:
                yield at, daemon
        finally:
            run.run(["umount", str(at)])
    if not keep:
        copy.unlink()


def artefacts(folder: Path) -> list[str]:
    """Return the names of what lies in a folder for artefacts, locks and work folders aside."""
    return sorted(path.name for path in folder.glob("[!.]*"))


def remove(record: Mapping[str, str]) -> None:
    """Remove what a bake's document names: the artefact, the list of its blocks, and the record."""
    for path in (record["artefact_path"], record["artefact_path"] + ".blocks", record["record_path"]):
        Path(path).unlink(missing_ok=True)


def traces(folder: Path) -> list[str]:
    """Return what still works on ``folder`` (mounts, loop devices, processes), and work folders below it."""
    name = str(folder)
    found = [str(work) for work in folder.rglob(".parbake/*") if work.suffix != ".lock"]
    found += [str(left) for left in folder.glob("tmp/*")]
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # what ends while it is looked at
            text = backing.read_text().strip()
            found += [f"{backing.parts[3]}: {text}"] if name in text else []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        with suppress(OSError):  # what ends while it is looked at
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [command] if name in command else []
            found += [line for line in (process / "mountinfo").read_text().splitlines() if name in line]
    found += [line for line in Path("/proc/thread-self/mountinfo").read_text().splitlines() if name in line]
    return found
