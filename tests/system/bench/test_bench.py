"""The benchmark's own code, on an image that costs nothing. Figures are not judged, only that they are figures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import rebake
from bench.bake import compare, scale
from bench.images import Recipe, Shelf
from bench.sides import Ctr, Parbake, Side
from parbake.core.events import Events
from parbake.machine import disk
from parbake.workflows.demo.registry import serve_registry
from standins.images import layer
from standins.loopback import free_port

pytestmark = [pytest.mark.root, pytest.mark.slow]


def _tars(work: Path, _: Events) -> Iterator[Path]:
    for number in range(2):
        tar = work / "layer.tar"
        tar.write_bytes(layer({f"part{number}/": None, f"part{number}/file": b"x" * 100_000}))
        yield tar


TINY = Recipe("tiny", "gzip", ("two files",), _tars)


def test_both_sides_bake_what_is_made_once(tmp_path: Path) -> None:
    work, folder = tmp_path / "work", tmp_path / "registry"
    work.mkdir()
    sides: list[Side] = [Parbake(), Ctr()]
    with serve_registry(folder, free_port()) as host, disk.private_mounts():
        shelf = Shelf(host, folder / "content", work, Events())
        image = shelf.get(TINY)
        assert shelf.get(TINY) == image  # found again, not made again
        assert [shelf.blob(each.digest).stat().st_size for each in image.layers] == [each.size for each in image.layers]
        result = compare(image, shelf, sides, 1, work)
        scaled = scale(image, 1, work)
    assert all(
        isinstance(result[name], float | int) and result[name] > 0  # type: ignore[operator]
        for name in ("parbake_s", "ctr_s", "ratio_vs_ctr", "limit_s", "ratio_to_limit", "peak_rss_mib")
    )
    assert (scaled["image"], set(scaled["seconds"])) == ("tiny", {"1", "2"})  # type: ignore[call-overload]
    assert result["buildah_s"] is None  # a side that is not there has no figure
    assert result["layers"] == 2
    assert [path.name for path in work.iterdir() if path.name != "config"] == ["volume"]
    assert not any((work / "volume").iterdir())  # nothing is mounted any more


def test_a_changed_layer_is_baked_again_and_nothing_more_than_once(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with serve_registry(tmp_path / "registry", free_port()) as host, disk.private_mounts():
        shelf = Shelf(host, tmp_path / "registry/content", work, Events())
        result = rebake.measure(shelf, TINY, "reflink", 1, work)
        assert len(shelf.put_on_top(TINY, "rebake", rebake.top_layer(work, 3)).layers) == 3
    assert result["changed_data_mib"] > 10  # type: ignore[operator]
    # All of the new layer's data must differ, however little else does.
    assert result["changed_blocks_mib"] > 10  # type: ignore[operator]
    assert [path.name for path in work.iterdir() if path.name != "config"] == ["place"]
    assert not any((work / "place").iterdir())


def test_blocks_are_compared_across_holes_and_ends(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    with before.open("wb") as file:
        file.truncate(9 * rebake.BLOCK)
        os.pwrite(file.fileno(), b"same", 0)
        os.pwrite(file.fileno(), b"old", 3 * rebake.BLOCK)  # changes
        os.pwrite(file.fileno(), b"gone", 5 * rebake.BLOCK - 1)  # becomes a hole, in two blocks
        os.pwrite(file.fileno(), bytes(100), 7 * rebake.BLOCK)  # zeros that become a hole are no change
    with after.open("wb") as file:
        file.truncate(9 * rebake.BLOCK + 1)  # and one block more
        os.pwrite(file.fileno(), b"same", 0)
        os.pwrite(file.fileno(), b"new", 3 * rebake.BLOCK)
        os.pwrite(file.fileno(), b"x", 9 * rebake.BLOCK)
    assert rebake.changed_blocks(before, after) == 4
