"""Bakes with a cache of layers: shared, verified, and safe however a bake ends."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from standins.command import Corner
from standins.faulty_proxy import FaultyProxy, Stall
from standins.images import Built, image, layer, push
from standins.registry import DockerRegistry

pytestmark = [pytest.mark.root, pytest.mark.slow]

BAKE = ("bake", "--no-verify", "--json", "--progress", "json")


@cache
def base() -> bytes:
    return layer({"base": random.Random(11).randbytes(3 << 20)})


@cache
def one() -> Built:
    return image(base(), layer({"one": b"1" * 100_000}))


@cache
def two() -> Built:
    return image(base(), layer({"two": b"2" * 100_000}))


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyProxy]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry, FaultyProxy(registry.url) as running:
        push(registry.url, "one", one(), "1")
        push(registry.url, "two", two(), "1")
        yield running


@pytest.fixture
def corner(tmp_path: Path, proxy: FaultyProxy) -> Corner:
    proxy.faults.clear()
    proxy.requests.clear()
    corner = Corner(tmp_path / "corner", PARBAKE_LAYER_CACHE="100MiB")
    for name in ("one", "two"):
        bakefile = f"version: 1\nname: {name}\nbase: none\nsize: 64MiB\nimages: ['{proxy.host}/{name}:1']\n"
        corner.write(f"{name}.yaml", bakefile)
    return corner


def whole_layers(proxy: FaultyProxy) -> list[str]:
    """Return which layers were fetched since the last call: not the few bytes that tell a size."""
    fetched = [
        path.rpartition("/")[2]
        for method, path, headers in proxy.requests
        if method == "GET" and "/blobs/" in path and "range" not in headers
    ]
    proxy.requests.clear()
    layers = {blob.digest for built in (one(), two()) for blob in built.layers}
    return sorted(layers.intersection(fetched))


def cached(corner: Corner) -> list[Path]:
    return sorted(path for path in (corner.cache / "layers").glob("sha256-*"))


def check_tidy(corner: Corner) -> None:
    assert corner.left() == []
    assert corner.leaked() == []


def test_layers_are_fetched_once_for_all_bakes(corner: Corner, proxy: FaultyProxy) -> None:
    corner.bake("-f", "one.yaml")
    assert len(whole_layers(proxy)) == 2
    corner.bake("-f", "two.yaml")
    assert whole_layers(proxy) == [two().layers[1].digest]
    for name in ("one", "two"):
        corner.bake("-f", f"{name}.yaml", "--force")
    assert whole_layers(proxy) == []
    check_tidy(corner)

    total = sum(path.stat().st_size for path in cached(corner))
    shown = corner.parbake("prune", "--cache", "--dry-run", "--json").document
    assert (shown["freed"], shown["left"], len(shown["layers"])) == (total, 0, 3)
    assert "would be freed" in corner.parbake("prune", "--cache", "--dry-run").stdout
    assert len(cached(corner)) == 3
    assert corner.parbake("prune", "--cache", "--cache-size", "1GiB", "--json").document["freed"] == 0
    assert corner.parbake("prune", "--cache", "--json").document["freed"] == total
    assert cached(corner) == []
    assert corner.parbake("prune", "--cache-size", "1GiB").code == 2
    assert len(corner.parbake("list", "-f", "one.yaml", "--json").document) == 2, "artefacts stay"


def test_a_damaged_layer_is_fetched_again(corner: Corner, proxy: FaultyProxy) -> None:
    corner.bake("-f", "one.yaml")
    for path in cached(corner):
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(b"damage")
    whole_layers(proxy)
    with corner.start(*BAKE, "-f", "one.yaml", "--force") as run:
        done = run.finish()
        warnings = [event["text"] for event in run.seen if event["kind"] == "warning"]
    assert done.code == 0, done
    assert any("was damaged and has been removed: baking again" in text for text in warnings)
    check_tidy(corner)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle_of_a_layer(number: int, corner: Corner, proxy: FaultyProxy) -> None:
    """What was half there is not taken for a layer, and goes with the next bake."""
    proxy.only = one().layers[0].digest
    proxy.faults.extend([Stall(2_500_000, 3600)] * 5)
    proxy.stalled.clear()
    with corner.start(*BAKE, "-f", "one.yaml") as run:
        assert proxy.stalled.wait(300)  # progress is told now and then only, perhaps not before the silence
        run.kill(number)
        run.finish()
    assert not any(path.name.endswith(one().layers[0].digest[7:]) for path in cached(corner))
    if number == signal.SIGINT:
        assert corner.left() == []
    proxy.faults.clear()
    corner.bake("-f", "one.yaml")
    check_tidy(corner)
    assert len(cached(corner)) == 2


def test_two_bakes_side_by_side(corner: Corner, proxy: FaultyProxy) -> None:
    with corner.start(*BAKE, "-f", "one.yaml") as one, corner.start(*BAKE, "-f", "two.yaml") as two:
        assert corner.parbake("prune", "--cache", "--json").code == 0
        assert (one.finish().code, two.finish().code) == (0, 0)
    check_tidy(corner)
    for name in ("one", "two"):
        corner.bake("-f", f"{name}.yaml", "--force")
    whole_layers(proxy)
    for name in ("one", "two"):
        corner.bake("-f", f"{name}.yaml", "--force")
    assert whole_layers(proxy) == []


def test_a_size_that_is_none(corner: Corner) -> None:
    corner.env["PARBAKE_LAYER_CACHE"] = "a lot"
    done = corner.parbake(*BAKE, "-f", "one.yaml")
    assert done.code == 2
    assert "PARBAKE_LAYER_CACHE: 'a lot' is not a valid size" in done.document["message"]
    check_tidy(corner)
