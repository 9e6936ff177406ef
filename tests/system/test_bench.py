"""The benchmark's own code, on an image that costs nothing. Figures are not judged, only that they are figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.bake import compare
from bench.images import Recipe, Shelf
from bench.sides import Ctr, Parbake, Side
from parbake import disk
from parbake.demo import free_port, serve_registry
from parbake.events import Events
from tests.support.images import layer

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
    assert all(
        isinstance(result[name], float | int) and result[name] > 0  # type: ignore[operator]
        for name in ("parbake_s", "ctr_s", "ratio_vs_ctr", "limit_s", "ratio_to_limit", "peak_rss_mib")
    )
    assert result["buildah_s"] is None  # a side that is not there has no figure
    assert result["layers"] == 2
    assert [path.name for path in work.iterdir() if path.name != "config"] == ["volume"]
    assert not any((work / "volume").iterdir())  # nothing is mounted any more
