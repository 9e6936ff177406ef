"""Bakes from a registry whose connections break, lie and crawl: what is there in the end is whole, or nothing is."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parbake.core.errors import RegistryError, Unreachable
from parbake.images.layers import FolderSink, complete_folder, unpack
from parbake.images.registry import Patience, Registry
from standins.command import Corner
from standins.faulty_proxy import Chunked, Cut, Drip, Fault, FaultyProxy, Flip, Length, Stall, Status, WholeAnswer
from standins.images import image, layer, push
from standins.registry import DockerRegistry
from standins.registry_client import AMD64, PLAIN, layer_of, nobody, ref
from standins.trees import scan

__all__ = ["nobody"]  # a fixture for every test here

pytestmark = pytest.mark.root

DATA = random.Random(4).randbytes(900_000)
BUILT = image(
    layer({"etc/motd": b"hi\n"}), layer({"data": DATA, "more/": None, "more/data": DATA[:70_000]}), compression="none"
)
BLOB = BUILT.layers[1]
IMPATIENT = Patience(tries=3, first=0.01, longest=0.02, total=10, connect=2, stall=0.3, rate=1000)
BAKE = ("bake", "--no-verify", "--json", "--progress", "json")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyProxy]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry, FaultyProxy(registry.url) as running:
        push(registry.url, "team/app", BUILT, "1")
        yield running


@pytest.fixture
def corner(tmp_path: Path, proxy: FaultyProxy) -> Corner:
    proxy.faults.clear()
    proxy.only, proxy.spare_probes = BLOB.digest, True  # faults are for the one stream of the bake
    corner = Corner(tmp_path / "corner")
    corner.write("parbake.yaml", f"version: 1\nbase: none\nsize: 64MiB\nimages: ['{proxy.host}/team/app:1']\n")
    return corner


def check_tidy(corner: Corner) -> None:
    assert corner.left() == []
    assert corner.leaked() == []


def test_resets_at_random_bytes_are_mended(corner: Corner, proxy: FaultyProxy) -> None:
    chance = random.Random(7)
    resets = [Cut(chance.randrange(66_000, 120_000), polite=chance.random() < 0.3) for _ in range(4)]
    proxy.faults.extend([Length(-BLOB.size * 3 // 4), *resets, Status(503)])
    assert corner.bake()["changed"]
    assert not proxy.faults, "every fault was met"
    check_tidy(corner)


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ([Flip(BLOB.size // 2)], "the bytes that arrived have the digest"),
        ([Cut(BLOB.size // 3), Flip(10)], "the bytes that arrived have the digest"),
        ([Length(300)], f"says {BLOB.size} bytes"),
        ([Chunked(b"more")], "is longer"),
    ],
)
def test_wrong_content_bakes_nothing_and_the_next_bake_does(
    faults: list[Fault], says: str, corner: Corner, proxy: FaultyProxy
) -> None:
    proxy.faults.extend(faults)
    done = corner.parbake(*BAKE)
    assert done.code == 1
    assert done.document["error"] == "BadContent"
    assert says in done.document["message"]
    assert BLOB.digest in done.document["message"]
    assert list(corner.output.glob("*")) == []
    check_tidy(corner)
    assert corner.bake()["changed"]
    check_tidy(corner)


@pytest.fixture
def impatient(proxy: FaultyProxy) -> Iterator[Registry]:
    proxy.faults.clear()
    proxy.only, proxy.spare_probes = BLOB.digest, True  # faults are for the one stream of the bake
    with Registry({proxy.host: PLAIN}, patience=IMPATIENT) as client:
        yield client


def put(client: Registry, proxy: FaultyProxy, target: Path) -> None:
    """Stream the layer from the registry through the engine."""
    found = client.resolve(ref(proxy.host, "team/app:1"), AMD64)
    wanted = found.layers[1]
    with client.source(found).open(layer_of(found, 1)) as stream:
        complete_folder(target, unpack(stream, wanted, FolderSink(target), bound=1 << 24, progress=lambda _: None), ())


def test_a_slow_loris_is_left(impatient: Registry, proxy: FaultyProxy, tmp_path: Path) -> None:
    """A drip that would take hours, and silence in the middle: a new connection goes on, or the error says so."""
    proxy.faults.extend([Drip(0.01), Stall(BLOB.size // 2, 60)])
    (tmp_path / "mended").mkdir()
    put(impatient, proxy, tmp_path / "mended")
    assert (tmp_path / "mended/data").read_bytes() == DATA
    proxy.faults.extend([Drip(0.01)] * 3)
    (tmp_path / "slow").mkdir()
    with pytest.raises(Unreachable, match="bytes/s arrive"):
        put(impatient, proxy, tmp_path / "slow")


_FAULTS = st.one_of(
    st.builds(Cut, st.integers(0, BLOB.size), st.booleans()),
    st.builds(Status, st.sampled_from([429, 500, 503])),
    st.builds(Length, st.integers(-BLOB.size, 100)),
    st.builds(Flip, st.integers(0, BLOB.size - 1)),
    st.builds(Chunked, st.sampled_from([b"", b"x"])),
    st.builds(WholeAnswer),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(_FAULTS, max_size=6))
def test_any_faults_give_the_exact_tree_or_a_clean_error(
    impatient: Registry, proxy: FaultyProxy, tmp_path: Path, faults: list[Fault]
) -> None:
    whole = tmp_path / "whole"
    proxy.faults.clear()
    if not whole.exists():
        whole.mkdir()
        put(impatient, proxy, whole)
    proxy.faults.extend(faults)
    target = Path(tempfile.mkdtemp(dir=tmp_path))
    target.chmod(whole.stat().st_mode)
    try:
        put(impatient, proxy, target)
    except RegistryError:
        return  # any other kind of error fails the test
    finally:
        proxy.faults.clear()
    found, wanted = scan(target), scan(whole)
    del found[b"."], wanted[b"."]  # the roots are ours
    assert found == wanted
    shutil.rmtree(target)
