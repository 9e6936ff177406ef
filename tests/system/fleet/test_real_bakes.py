"""Real bakes whose workers die, freeze, are told to stop or are cancelled, at moments of the bake, not of the clock.

Where a worker dies or freezes, it bakes four cells at once, each of which is held at another moment: so one death is
four.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator

import pytest

from parbake import records
from parbake.bakefile import load
from parbake.core.errors import Interrupted
from parbake.fleet.engine import runs
from parbake.records.store import refreshed_output, session_store
from standins.faulty_proxy import FaultyProxy, Stall
from standins.images import image, layer, push
from standins.leaks import files, work_folders
from standins.real_fleets import Machine, RealFleet
from standins.registry import DockerRegistry

pytestmark = [pytest.mark.root, pytest.mark.slow(60)]

MOMENTS = {
    "fills": r"os.mkdir (?<!/layout)/blobs",  # not those of the pause image, for which all others wait
    "checks": "subprocess.Popen /e2fsck",
    "appears": r"os.rename \.raw",  # in the folder of artefacts
    "shares": r"os.link \.raw\.json",  # its entry in the store
}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyProxy]:
    """A registry that can fall silent."""
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry, FaultyProxy(registry.url) as proxy:
        app = image(layer({"app": random.Random(1).randbytes(1 << 20)}))
        push(registry.url, "app", app, "1")
        proxy.only, proxy.spare_probes = f"/blobs/{app.layers[0].digest}", True
        yield proxy


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFleet]:
    with RealFleet(tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet


@pytest.fixture
def fleet(engine: RealFleet, proxy: FaultyProxy) -> Iterator[RealFleet]:
    """A test that fails leaves the next one neither runs nor a registry that is silent."""
    yield engine
    proxy.faults.clear()
    engine.end_all()


def cells_of(fleet: RealFleet, proxy: FaultyProxy, names: Iterable[str]) -> list[str]:
    """Write Bakefiles, whose artefacts nobody has made yet; return their cells."""
    usual = f"version: 1\nstore: {fleet.store}\nbase: none\nsize: 32MiB\nimages: ['{proxy.host}/app:1']\n"
    fleet.commit({name: f"{usual}name: {name}\n" for name in names})
    return [f"{name}@amd64" for name in names]


def holds(prefix: str) -> dict[str, str]:
    return {f"{prefix}-{name}": moment for name, moment in MOMENTS.items()}


def digests(machine: Machine, fleet: RealFleet, prefix: str) -> dict[str, str]:
    """Return what each artefact is that is on a machine, as `parbake list` and rollouts find it there."""
    found = {}
    for name in holds(prefix):
        bakefile = load(machine.checkout(fleet.at) / name / "parbake.yaml")
        for _, record in records.find(refreshed_output(bakefile)):
            assert record.blocks
            found[name] = record.blocks.digest
    return found


def kept(fleet: RealFleet, prefix: str) -> dict[str, str]:
    """Return what the store has."""
    shared = (session_store(load(fleet.root / name / "parbake.yaml")) for name in holds(prefix))
    found = [record for each in shared if each for record in each.records()]
    assert len(found) == 4, "one of each"
    return {record.plan.name: record.blocks.digest for record in found if record.blocks}


def test_what_dies_with_a_worker_is_finished_by_another(fleet: RealFleet, proxy: FaultyProxy) -> None:
    cells = cells_of(fleet, proxy, holds("killed"))
    with fleet.machine("one") as one, fleet.held(holds("killed")):
        fleet.start(cells)
        fleet.until_held(*holds("killed"))
        one.kill()
        assert one.left() == []
        fleet.release()
        fleet.wait_until(lambda: fleet.status().workers["bake"] == 0, "the status of a queue that nobody works for")
        with fleet.machine("two") as two:
            ended = fleet.end()
        assert (ended.counts.failed, ended.counts.done) == (0, 4)
        there = kept(fleet, "killed")
        assert digests(two, fleet, "killed") == there
        unfinished = [name for name in there if work_folders(one.checkout(fleet.at) / name)]
        assert unfinished
        for name in unfinished:  # whoever bakes there next removes what the dead have left
            bake = ("bake", "--no-verify", "--json", "-f", f"{name}/parbake.yaml")
            done = one.parbake(fleet.at, *bake)
            assert (done.code, json.loads(done.stdout)["changed"]) == (0, False)
        assert digests(one, fleet, "killed") == kept(fleet, "killed") == there
        assert one.work_folders() == two.work_folders() == []
    assert two.left() == []


def test_a_worker_that_was_frozen_changes_nothing_when_it_comes_back(fleet: RealFleet, proxy: FaultyProxy) -> None:
    """Each of its bakes was at another moment; whoever reads finds the one record, on its machine, too."""
    cells = cells_of(fleet, proxy, holds("frozen"))
    with fleet.machine("three") as frozen, fleet.held(holds("frozen")):
        fleet.start(cells, name="frozen")
        fleet.until_held(*holds("frozen"))
        assert len(frozen.bakes()) == 4
        frozen.freeze()
        fleet.release()
        with fleet.machine("four") as four:
            ended = fleet.end("frozen")
            assert (ended.counts.failed, ended.counts.done) == (0, 4)
            there = kept(fleet, "frozen")
            frozen.thaw()
            fleet.wait_until(lambda: not frozen.bakes(), "the end of the frozen bakes")
            assert kept(fleet, "frozen") == digests(four, fleet, "frozen") == there
            assert digests(frozen, fleet, "frozen").items() <= there.items()
            assert frozen.worker.alive
            assert frozen.left() == []
            assert frozen.work_folders() == []


def until_both_fill(fleet: RealFleet, name: str) -> None:
    """Wait until both bakes of a run wait for a registry that has fallen silent in the middle of a layer."""

    def filling() -> bool:
        return [each.progress.get("stage") for each in fleet.status(name).running] == ["fill"] * 2

    fleet.wait_until(filling, "two bakes that fill")


def test_a_run_that_is_cancelled_leaves_nothing_of_its_bakes(fleet: RealFleet, proxy: FaultyProxy) -> None:
    cells = cells_of(fleet, proxy, ["cancelled-1", "cancelled-2"])
    before = fleet.entries
    proxy.faults.extend([Stall(100_000, 3600)] * 20)
    with fleet.machine("five") as five:
        fleet.start(cells, name="cancelled")
        until_both_fill(fleet, "cancelled")
        assert len(five.bakes()) == 2
        fleet.ask(lambda client: runs.cancel(client, "cancelled"))
        with pytest.raises(Interrupted, match="the run of cancelled was cancelled"):
            fleet.end("cancelled")
        assert fleet.status("cancelled").state == "canceled"
        assert five.bakes() == {}
        assert five.left() == []
        assert five.work_folders() == []
        assert not list(five.cache.rglob("*.raw"))
    proxy.faults.clear()
    assert fleet.entries == before


def test_a_worker_that_is_told_to_stop_hands_its_bakes_on_and_leaves_nothing(
    fleet: RealFleet, proxy: FaultyProxy
) -> None:
    cells = cells_of(fleet, proxy, ["stopped-1", "stopped-2"])
    before = len(fleet.entries)
    proxy.faults.extend([Stall(100_000, 3600)] * 20)
    with fleet.machine("six", grace=0.5) as six:
        fleet.start(cells, name="stopped")
        until_both_fill(fleet, "stopped")
        six.tell_to_stop()
        fleet.wait_until(lambda: not six.worker.alive, "the worker's end")
        proxy.faults.clear()
        assert six.worker.code == 0
        assert six.left() == []
        assert six.work_folders() == []
        with fleet.machine("seven"):
            ended = fleet.end("stopped")
    assert (ended.counts.baked, ended.counts.failed) == (2, 0)
    assert len(fleet.entries) == before + 2
    assert files(six.folder / "tmp") == set()
