"""What builds leave in the cache, where others have written to it: images below localhost/, and builders' layers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from parbake.core import sealed
from parbake.core.events import Event, Events
from parbake.core.model import Platform
from parbake.core.reference import Reference
from parbake.images.build import BuildPlace, containers
from parbake.images.build.build import _export, existing, local_layout
from parbake.images.registry import Registry
from standins.images import Built, image, write_layout

NAME = Reference.parse("localhost/team/app:1")
AMD64 = Platform(architecture="amd64")
KEY = "sha256:" + "a" * 64


class Tool:
    """Exports one image."""

    def __init__(self, built: Built) -> None:
        self.built = built

    def export(self, tag: str, folder: Path) -> None:
        write_layout(folder, {tag: self.built})


def test_an_image_that_others_put_into_the_cache_is_not_taken_for_a_build(tmp_path: Path) -> None:
    layout = local_layout(NAME, AMD64, KEY, tmp_path)
    ours, theirs = image(config={"Cmd": ["/app"]}), image(config={"Cmd": ["/evil"]})
    with Registry({}) as registry:

        def found() -> str | None:
            known = existing(NAME, AMD64, KEY, registry=registry, cache=tmp_path)
            return known.manifest.digest if known else None

        _export(Tool(ours), "localhost/team/app:1", layout)  # type: ignore[arg-type]
        assert found() == ours.root.digest
        kept = (layout / "index.json").read_bytes()
        shutil.rmtree(layout)
        write_layout(layout, {"localhost/team/app:1": theirs})
        assert found() is None
        _export(Tool(ours), "localhost/team/app:1", layout)  # type: ignore[arg-type]
        assert (layout / "index.json").read_bytes() == kept
        assert found() == ours.root.digest
        sealed.loosen(layout)
        assert found() is None


@pytest.mark.parametrize("name", ["buildah", "podman"])
def test_a_builders_store_from_elsewhere_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    said: list[Event] = []
    monkeypatch.setattr(containers, "need_tool", lambda _: None)
    monkeypatch.setattr(containers.Containers, "repair", lambda _: None)

    def use(cache: Path) -> Path:
        containers.open_store(name, BuildPlace(tmp_path / "work", cache, {}, Events(said.append)))
        return cache / name

    layer = use(tmp_path / "cache") / "overlay/layer"
    layer.parent.mkdir()
    layer.write_text("ours")
    assert use(tmp_path / "cache").exists()
    assert layer.read_text() == "ours"
    assert said == []
    shutil.copytree(tmp_path / "cache", tmp_path / "restored")
    store = use(tmp_path / "restored")
    assert list(store.iterdir()) == []
    [event] = said
    assert event.text == f"{store} was not made by this user on this machine: its layers are not used"
    shutil.rmtree(store)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").touch()
    store.symlink_to(tmp_path / "elsewhere")
    use(tmp_path / "restored")
    assert not store.is_symlink()
    assert (tmp_path / "elsewhere/file").exists()
