"""A cache that others have written: a link in the place of a folder of it leads root nowhere, whoever works there."""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import parbake
from parbake.aws import ebs as aws_ebs
from parbake.bakefile import AwsSection
from parbake.builders import earlier, ebs
from parbake.core import emulation
from parbake.core.claim import Alone
from parbake.core.errors import EnvironmentProblem, ParbakeError
from parbake.core.events import Events
from parbake.core.model import Descriptor, Platform
from parbake.fleet.engine.tasks import Root
from parbake.fleet.source import checked_out
from parbake.images import cache as layers
from parbake.images.build import build, containers
from parbake.images.build.common import BuildPlace
from parbake.machine import base, disk
from parbake.machine.disk import files
from parbake.machine.disk.inherit import Memory
from parbake.records.store import claimed
from parbake.records.store.folder import FolderStore
from parbake.records.store.leases import this_machine
from parbake.workflows import clean
from parbake.workflows.bake.disks import holding_layouts
from parbake.workflows.demo import sample
from parbake.workflows.plan import sandbox_of
from standins.plans import digest, image, plan
from standins.trees import untouched

SOURCE = Path(parbake.__file__).parent
HEX, COMMIT = "0123456789abcdef", "0" * 40
AMD64 = Platform(architecture="amd64")
ROOT = Root(git="file:///nothing-is-there", commit=COMMIT)


def of_layout(cache: Path) -> object:
    """Keep a built image, as a build of ``localhost/app`` does."""

    def export(_: str, layout: Path) -> None:
        layout.mkdir()
        (layout / "index.json").write_text("{}")

    build._export(SimpleNamespace(export=export), "tag", cache / "images/app" / (HEX * 2))
    return None


def of_disk(cache: Path) -> object:
    (cache.parent / "disk.raw").write_bytes(b"a disk")
    memory = Memory(cache.parent / "disk.raw", digest("x"), cache)
    with suppress(EnvironmentProblem):
        memory.remember()
    memory.holds(memory.path.stat())
    memory.forget()
    return disk.describe(memory.path, cache, Events())


def of_claim(cache: Path) -> object:
    with claimed(FolderStore(cache.parent / "store"), HEX * 4, "node", Events()):
        return this_machine()


def of_upload(cache: Path) -> object:
    settings = AwsSection.model_construct(region="eu-west-1")
    with ebs.EbsPublisher(settings, cache.parent).opened(plan(), Events(), claim=Alone()):
        return None


def of_kept_disk(cache: Path) -> object:
    (cache.parent / "disk.raw").write_bytes(b"a disk")
    with suppress(EnvironmentProblem):
        earlier.keep(cache.parent / "disk.raw", plan(), HEX * 4, cache)
    return earlier.take(cache.parent / "taken.raw", plan(), HEX * 4, cache)


def of_cached_layers(cache: Path) -> object:
    sources = layers.cached(lambda _: None, cache, Events())  # type: ignore[arg-type, return-value]
    if isinstance(sources, layers.CachingSources):
        sources.find(Descriptor(media_type="x", digest=f"sha256:{HEX * 4}", size=1))
    return layers.prune(cache, 0)


def of_pause(cache: Path) -> object:
    bakefile = SimpleNamespace(sandbox="auto", named_sandbox=None, base=SimpleNamespace(kind="none"), platform=AMD64)
    return sandbox_of(SimpleNamespace(bakefile=bakefile, cache=cache))  # type: ignore[arg-type]


def of_held_layout(cache: Path) -> object:
    with holding_layouts(cache, plan(images=(image(layout=str(cache / "images/app")),))):
        return None


USES: dict[str, tuple[Callable[[Path], object], ...]] = {
    "amis": (lambda _: ebs.base_of("ami-1", "eu-west-1", Events()),),
    "base": (lambda cache: base.ensure(cache, Events()),),
    "buildah": (lambda cache: containers.open_store("buildah", BuildPlace(cache.parent, cache, {}, Events())),),
    "claims": (of_claim,),
    "digests": (of_disk,),
    "emulation": (lambda _: emulation.sweep(),),
    "fleet-sources": (lambda _: checked_out(ROOT),),
    f"fleet-sources/{digest('file:///nothing-is-there')[7:23]}": (lambda _: checked_out(ROOT),),
    "images": (build.clear, of_layout, of_held_layout),
    "images/app": (of_layout,),
    "layers": (of_cached_layers,),
    "pause": (of_pause,),
    "sample": (lambda cache: sample.prepare(cache.parent / "sample", events=Events(), cache=cache),),
    "uploads": (of_upload,),
    "volumes": (of_kept_disk,),
}  # fmt: skip
EVERYWHERE: tuple[Callable[[Path], object], ...] = (
    lambda cache: clean.clean(cache.parent / "out"),
    lambda cache: clean.clean(cache.parent / "out", caches=True),
)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Somebody's folder, in which all is called as what parbake removes or replaces."""
    folder = tmp_path / "outside"
    for name in (
        ".parbake/bake.1.dead/half", ".parbake/node.lock", f".file.{HEX}.draft", f"sha256-{HEX * 4}", "lock", "machine",
        f"{COMMIT}/file", *(f"{HEX}{HEX[1:]}{number}/file" for number in range(5)),
        "ami-1.raw", "ami-1.json", "app/file", "debian.state/file", f"{HEX * 4}.lock", f"{HEX * 4}/disk.raw",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("a secret of somebody's")
    (folder / ".parbake").chmod(0o700)
    return folder


@pytest.mark.parametrize("part", USES)
def test_a_link_in_the_place_of_a_folder_of_the_cache_leads_nowhere(
    part: str, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise EnvironmentProblem("what comes later")

    cache = tmp_path / "cache"
    monkeypatch.setenv("PARBAKE_CACHE", str(cache))
    monkeypatch.setenv(layers.VARIABLE, "1GiB")
    for module, name in ((aws_ebs, "fetch"), (files, "inspect"), (base.build, "_build"), (sample, "run")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(containers, "need_tool", lambda _: None)
    monkeypatch.setattr(containers.Containers, "repair", lambda _: None)
    link = cache / part
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    before = untouched(outside)
    for use in (*USES[part], *EVERYWHERE):
        with suppress(ParbakeError):
            use(cache)
        assert untouched(outside) == before
        if use not in EVERYWHERE and part != "buildah":  # that one removes the link, and says so
            assert link.is_symlink()


def test_the_name_of_this_machine_is_no_secret_that_somebody_has_linked_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands in leases, which others read."""
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "secret").write_text("a secret")
    (tmp_path / "cache/claims").mkdir(parents=True)
    (tmp_path / "cache/claims/machine").symlink_to(tmp_path / "secret")
    own = this_machine()
    assert "secret" not in own
    assert this_machine() == own
    assert (tmp_path / "secret").read_text() == "a secret"
    for planted in ("a secret", "\n", HEX * 9):
        (tmp_path / "cache/claims/machine").write_text(planted)
        assert not this_machine().startswith(planted)


def test_folders_of_the_cache_have_one_door() -> None:
    """``workspace.part_of`` refuses links; whoever makes a path of the cache otherwise is named here, and why."""
    only_read = {
        "images/build/build.py": ["cache / _FOLDER", "cache / store"],  # rmtree refuses links; a layout is sealed
        "images/build/containers.py": ["place.cache / name", "place.cache / name"],  # looked at first
        "images/cache.py": ["cache / FOLDER"],  # looked at first
        "machine/base/build.py": ["cache / 'base'"],  # compared with its seal, then the door
        "workflows/clean.py": ["cache / 'images'"],  # is there any?
        "workflows/demo/__init__.py": ["cache_folder() / 'base'"],  # is there any?
    }
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                left = ast.unparse(node.left)
                if left == "cache_folder()" or left.rpartition(".")[2] in {"cache", "_cache"}:
                    found.setdefault(str(path.relative_to(SOURCE)), []).append(ast.unparse(node))
    assert {name: sorted(paths) for name, paths in found.items()} == only_read
