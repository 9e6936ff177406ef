"""The main job of a volume by a user who is nobody: baked, rehearsed, laid out, proven, handed over, watched.

The user has no root, no capability and nothing to gain. The base and the machines that have booted it are those of the
other tests, sealed with a key that both have: where one of them is there, nothing boots.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from parbake.coldstart.trace import load, merged
from parbake.core import sealed
from parbake.core.events import Events
from parbake.machine import disk
from parbake.verify.carrier import digest_of
from standins.base import default_base
from standins.images import image, layer, push
from standins.registry import DockerRegistry
from standins.runs import Done, bakefile, traces
from standins.users import USER, ordinary

__all__ = ["default_base"]
pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow(150)]

READ = range(0, 200, 25)
KEY = {sealed.VARIABLE: "a word that the tests' own user has, too"}
# With the one processor that machines of the tests have, so that they resume from each other's.
PROGRAM = """\
import sys
from parbake import cli
from parbake.machine.vm import Machine
Machine.__init__.__kwdefaults__["cpus"] = 1
sys.exit(cli.run(sys.argv[1:]))
"""


@dataclass(frozen=True)
class User:
    """The user's folder, with a Bakefile in it, and what their commands are started through."""

    folder: Path
    prefix: list[str]

    def parbake(self, *arguments: str) -> Done:
        env = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        env |= {"HOME": str(self.folder), "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **KEY}
        command = [*self.prefix, sys.executable, "-c", PROGRAM, *arguments]
        return Done.of(command, env=env, cwd=self.folder, timeout=1200)


@pytest.fixture(scope="module")
def user(default_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    folder = tmp_path_factory.mktemp("user")
    files = {f"lib/{number}": random.Random(number).randbytes(30_000) for number in range(200)}
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry, pytest.MonkeyPatch.context() as patch:
        program = {"bin/": None, "bin/busybox": Path("/bin/busybox").read_bytes()}
        push(registry.url, "team/app", image(layer({**program, **files})), "1")
        command = ["/bin/busybox", "cat", *(f"/lib/{number}" for number in READ)]
        entry = {"reference": f"{registry.host}/team/app:1", "startup": {"command": command, "up": "exit"}}
        bakefile(folder, [entry], base="none", rollout=[{"name": "nodes", "file": "nodes.json"}])
        for name, value in KEY.items():
            patch.setenv(name, value)
        give_base(default_base, folder / ".cache/parbake/base")
        yield User(folder, ordinary(folder))
    assert traces(folder) == []


def give_base(base: Path, folder: Path) -> None:
    """Copy the base and the machines that have booted it, with seals of the user's key."""
    folder.mkdir(parents=True)
    disk.copy_sparse(base, folder / base.name, Events())
    shutil.copystat(base, folder / base.name)
    sealed.seal(folder / base.name, disk.block_list(base, Events(), algorithm="blake3").digest())
    for state in base.parent.glob(f"{base.stem}.*.state"):
        shutil.copytree(state, folder / state.name)
        sealed.seal(folder / state.name, digest_of(state))


@pytest.fixture(scope="module")
def baked(user: User) -> dict[str, Any]:
    document: dict[str, Any] = user.parbake("bake", "--rehearse", "--no-verify", "--json").good()
    return document


def test_what_starts_read_is_known_and_laid_out(baked: dict[str, Any]) -> None:
    artefact = Path(baked["artefact_path"])
    assert artefact.stat().st_uid == USER
    trace = load(Path(f"{artefact}.trace"))
    assert (trace.how, trace.filesystem, trace.skipped) == ("boot", "ext4", {})
    names = {entry.path.rpartition("/fs/")[2] for entry in trace.files if "/fs/" in entry.path}
    assert {"bin/busybox", *(f"lib/{number}" for number in READ)} <= names
    assert f"lib/{READ[0] + 1}" not in names
    assert 0 < baked["trace"]["hot_blocks"] == len(merged(trace)) < trace.scattered
    disk.check_filesystem(artefact, "ext4")


def test_it_is_proven_handed_over_and_watched(user: User, baked: dict[str, Any]) -> None:
    verdict = user.parbake("verify", "--json").good()
    assert (verdict["passed"], verdict["intact"]) == (True, True)
    assert verdict["accelerator"] in {"kvm", "tcg"}
    [change] = user.parbake("rollout", "--dry-run", "--json").good()["targets"]
    assert change["target"] == "nodes"
    assert not (user.folder / "nodes.json").exists()
    assert user.parbake("watch", "--once", "--json").good()["artefact"] == baked["artefact"]
    assert baked["key"] in (user.folder / "nodes.json").read_text()
