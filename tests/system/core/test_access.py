"""Who may read what a bake leaves: with the usual umask nobody else, until the Bakefile says so."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from standins.command import Corner
from standins.images import image, layer, push
from standins.registry import DockerRegistry

pytestmark = pytest.mark.root

SECRET = b"the image's private key\n"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        push(registry.url, "app", image(layer({"etc/": None, "etc/secret": SECRET})), "1")
        yield registry.host


@pytest.fixture
def corner(tmp_path: Path, host: str) -> Iterator[Corner]:
    before = os.umask(0o022)
    yield Corner(tmp_path / "corner", PARBAKE_LAYER_CACHE="100MiB", HOST=host)
    os.umask(before)


def bakefile(corner: Corner, *more: str) -> None:
    images = f"['{corner.env['HOST']}/app:1', {{reference: localhost/built:1, build: app}}]"
    corner.write("app/Containerfile", "FROM scratch\nCOPY secret /secret\n")
    corner.write("app/secret", SECRET.decode())
    corner.write("parbake.yaml", "\n".join(["version: 1", "base: none", "size: 64MiB", f"images: {images}", *more]))


def open_to_others(folder: Path) -> dict[str, str]:
    """Return what another user could read or look into, by its path below a folder: with its mode."""
    found: dict[str, str] = {}
    for path in [folder, *folder.iterdir()]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        if path.is_dir() and path != folder and mode & 0o077:
            found |= open_to_others(path)
        elif mode & 0o077:
            found[str(path.relative_to(folder.parent))] = f"{mode:o}"
    return found


def files(folder: Path) -> dict[str, str]:
    return {path.suffix: f"{stat.S_IMODE(path.stat().st_mode):o}" for path in (folder, *folder.iterdir())}


def test_results_are_for_their_owner_alone(corner: Corner) -> None:
    """Artefacts, records and exports; and in the cache layers, built images, and the builder's store."""
    bakefile(corner)
    artefact = corner.bake()["artefact"]
    assert {path.suffix for path in corner.output.iterdir()} >= {".raw", ".blocks", ".json"}
    assert open_to_others(corner.output) == {}
    assert corner.parbake("export", "gcp", artefact, "gcp", "--force").code == 0
    made = [path for path in (corner.folder / "gcp").iterdir() if path.suffix == ".gz"]
    assert [f"{stat.S_IMODE(path.stat().st_mode):o}" for path in made] == ["600"]

    cache = corner.cache
    assert {path.name for path in cache.iterdir()} >= {"layers", "images"}
    told = open_to_others(cache)
    assert not [path for path in told if Path(path).parts[1:2] in {("layers",), ("images",), ("buildah",)}], told
    holders = [path for path in cache.rglob("*") if path.is_file() and SECRET in path.read_bytes()]
    for path in holders:  # wherever it is, something on the way is closed
        way = [each for each in (path, *path.parents) if each.is_relative_to(cache)]
        assert any(not stat.S_IMODE(each.stat().st_mode) & 0o007 for each in way), path


def test_a_bakefile_opens_results_to_others_and_closes_them_again(corner: Corner) -> None:
    bakefile(corner, "readable_by: everyone")
    artefact = corner.bake()["artefact"]
    assert set(files(corner.output).values()) == {"755", "644"}
    assert corner.parbake("export", "gcp", artefact, "gcp", "--force").code == 0
    assert "644" in files(corner.folder / "gcp")[".gz"]
    bakefile(corner, "readable_by: group")
    assert not corner.bake()["changed"]
    assert set(files(corner.output).values()) == {"755", "640"}, "a folder is never closed"
    bakefile(corner)
    assert not corner.bake()["changed"]
    assert set(files(corner.output).values()) == {"755", "600"}


def test_what_an_earlier_version_left_open_is_closed(corner: Corner) -> None:
    for name in ("layers", "images"):
        (corner.cache / name).mkdir(parents=True)
        (corner.cache / name / "old").write_bytes(SECRET)
    bakefile(corner)
    corner.bake()
    for name in ("layers", "images"):
        assert stat.S_IMODE((corner.cache / name).stat().st_mode) == 0o700
