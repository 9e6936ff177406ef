"""Runs that meet: again, side by side, in one output folder, on one cache, with `clean` and `prune` among them; and
places for artefacts that are none.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from parbake.core.workspace import WORK
from parbake.machine import disk
from standins import disks
from standins.command import Corner, Done, Running, digests_of
from standins.faulty_proxy import FaultyProxy, Stall
from standins.images import image, layer, push
from standins.leaks import files
from standins.registry import DockerRegistry

pytestmark = [pytest.mark.root, pytest.mark.slow]

BAKE = ("bake", "--no-verify", "--json", "--progress", "json")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    data = random.Random(1).randbytes(2 << 20)
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as running:
        for tag in ("1", "2", "3"):
            push(running.url, "app", image(layer({"app": data, "version": tag.encode()})), tag)
        yield running


@pytest.fixture
def corner(tmp_path: Path) -> Corner:
    return Corner(tmp_path / "corner")


def bakefile(corner: Corner, reference: str, *, name: str = "node", file: str = "parbake.yaml", more: str = "") -> None:
    corner.write(file, f"version: 1\nname: {name}\nbase: none\nsize: 32MiB\nimages: ['{reference}']\n{more}")


def check_tidy(corner: Corner) -> None:
    assert corner.left() == []
    assert corner.leaked() == []


def inodes(corner: Corner) -> dict[str, tuple[int, int]]:
    """Return what tells a file that was left alone from one that was written again."""
    found = {path.name: path.stat() for path in corner.output.iterdir()}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def test_again_is_nothing_to_do(corner: Corner, registry: DockerRegistry) -> None:
    bakefile(corner, f"{registry.host}/app:1")
    first = corner.bake()
    assert first["changed"] is True
    before = inodes(corner)
    with corner.start(*BAKE) as run:
        again = run.finish()
        assert run.seen == []
    assert {**again.document, "changed": True} == first
    bakefile(corner, f"{registry.host}/app:1", more="verify: canary\n")
    with corner.start("bake", "--json", "--progress", "json") as run:
        proven_later = run.finish()
    assert (proven_later.document["changed"], proven_later.document["verdict"]) == (False, None)
    assert inodes(corner) == before
    assert corner.bake("--force")["changed"] is True
    check_tidy(corner)


def test_what_a_run_left_that_was_killed_when_all_was_done_goes(corner: Corner, registry: DockerRegistry) -> None:
    bakefile(corner, f"{registry.host}/app:1")
    corner.bake()
    left = corner.output / WORK / "0123456789ab.1.deadbeef"
    left.mkdir(parents=True)
    (left / "image.raw").write_bytes(bytes(4096))
    assert corner.bake()["changed"] is False
    assert not left.exists()
    check_tidy(corner)


@pytest.mark.parametrize("length", [100, 180, 900])
def test_an_output_folder_with_a_long_path(length: int, corner: Corner, registry: DockerRegistry) -> None:
    """Longer than a socket's name may be."""
    path = str(corner.folder)
    while len(path) < length:
        path += f"/{'long' * 25}"[: max(2, length - len(path))]
    bakefile(corner, f"{registry.host}/app:1", more=f"output: {path}\n")
    made = corner.bake()
    assert made["artefact_path"].startswith(path)
    assert len(path) >= length
    check_tidy(corner)


def test_a_damaged_artefact_is_told_before_it_is_booted(corner: Corner, registry: DockerRegistry) -> None:
    bakefile(corner, f"{registry.host}/app:1")
    made = corner.bake()
    artefact = Path(made["artefact_path"])
    assert made["blocks"]["digest"] == digests_of(artefact)["parbakeBlocks1"]
    with artefact.open("r+b") as file:
        file.seek(3 * (512 << 10) + 77)
        file.write(b"!")
    done = corner.parbake("verify", "node", "--json", "--progress", "json")
    assert done.code == 3
    assert done.document["problems"] == ["1 block of 512 KiB differs from its record: 3"]
    assert done.document["intact"] is False
    assert "bake it again: `parbake bake --force`" in done.said
    assert corner.parbake("list", "--json").document[0]["verified"] is False
    assert corner.bake("--force")["verdict"] is None
    check_tidy(corner)


def test_nothing_to_do_needs_no_content(corner: Corner, registry: DockerRegistry) -> None:
    """What a no-op asks the registry for is documents: no layer travels."""
    with FaultyProxy(registry.url) as proxy:
        bakefile(corner, f"{proxy.host}/app:1")
        document = corner.bake()
        layer_of = document["plan"]["images"][0]["layers"][0]
        del proxy.requests[:]
        assert corner.bake()["changed"] is False
        ranges = [sent.get("range") for _, path, sent in proxy.requests if layer_of["digest"] in path]
    assert all(ranges), "the ends of layers are looked at for their sizes, no layer is fetched whole"


def test_a_moved_tag_is_another_artefact(corner: Corner, registry: DockerRegistry) -> None:
    bakefile(corner, f"{registry.host}/app:moving")
    keys = []
    for tag in ("1", "2", "1"):
        push(registry.url, "app", image(layer({"version": tag.encode()})), "moving")
        keys.append(corner.bake()["key"])
    assert keys[0] == keys[2] != keys[1]
    assert len(corner.parbake("list", "--json").document) == 2
    check_tidy(corner)


def stalled(corner: Corner, proxy: FaultyProxy) -> Running:
    """Start a bake that has come to the middle of a layer and waits there until it is killed or ``proxy`` ends."""
    proxy.faults.extend([Stall(300_000, 3600)] * 20)
    run = corner.start(*BAKE)
    assert proxy.stalled.wait(300)
    return run


def test_two_bakes_of_one_bakefile(corner: Corner, registry: DockerRegistry) -> None:
    """The second waits and says so; when the first is killed it takes over, and the third has nothing left to do."""
    with FaultyProxy(registry.url) as proxy, ExitStack() as stack:
        bakefile(corner, f"{proxy.host}/app:1")
        first = stack.enter_context(stalled(corner, proxy))
        proxy.faults.clear()
        second, third = (stack.enter_context(corner.start(*BAKE)) for _ in range(2))
        assert "waiting" in second.wait_for("note", "another parbake is working on")["text"]
        third.wait_for("note", "another parbake is working on")
        first.kill()
        assert first.finish().code == -signal.SIGKILL
        done = [run.finish() for run in (second, third)]
    assert [item.code for item in done] == [0, 0], done
    assert sorted(item.document["changed"] for item in done) == [False, True]
    assert len({json.dumps({**item.document, "changed": None}) for item in done}) == 1
    assert corner.parbake("clean", "--json").code == 0
    check_tidy(corner)


def test_different_bakes_share_output_and_cache(corner: Corner, registry: DockerRegistry) -> None:
    """At once, also with builds on one builder's store: each makes its artefact, and nobody else's."""
    corner.write("app/Containerfile", "FROM scratch\nCOPY data /data\n")
    corner.write("app/data", "x")
    for number in (1, 2, 3):
        bakefile(corner, f"{registry.host}/app:{number}", name=f"pulled{number}", file=f"pulled{number}.yaml")
    for number in (1, 2):
        built = f"[{{reference: 'localhost/built{number}:1', build: {{context: app, args: {{N: '{number}'}}}}}}]"
        text = f"version: 1\nname: built{number}\nbase: none\nsize: 32MiB\nimages: {built}\n"
        corner.write(f"built{number}.yaml", text)
    names = ["pulled1", "pulled2", "pulled3", "built1", "built2"]
    with ExitStack() as stack:
        runs = [stack.enter_context(corner.start(*BAKE, "-f", f"{name}.yaml")) for name in names]
        done = [run.finish() for run in runs]
    assert [item.code for item in done] == [0] * len(names), done
    listed = corner.parbake("list", "--json").document
    assert {item["artefact"].rpartition("-")[0] for item in listed} == set(names)
    assert {item["key"] for item in listed} == {item.document["key"] for item in done}
    assert len(files(corner.output)) == 3 * len(names)  # record and list of blocks
    check_tidy(corner)


def test_cleaning_leaves_living_runs_alone(corner: Corner, registry: DockerRegistry) -> None:
    """Neither `clean`, nor `clean --caches`, nor another bake in the same folder touches what a running bake has."""
    with FaultyProxy(registry.url) as proxy, ExitStack() as stack:
        bakefile(corner, f"{proxy.host}/app:1")
        run = stack.enter_context(stalled(corner, proxy))
        proxy.faults.clear()
        (work,) = [path for path in (corner.output / ".parbake").iterdir() if path.is_dir()]
        inside = files(work)
        assert corner.parbake("clean", "--json").document["removed"] == []
        assert corner.parbake("clean", "--caches", "--json").code == 0
        bakefile(corner, f"{registry.host}/app:2", name="other", file="other.yaml")
        assert corner.bake("-f", "other.yaml")["changed"] is True
        assert inside <= files(work)
        proxy.ended.set()  # the layer goes on
        done = run.finish()
    assert done.code == 0, done
    assert done.document["changed"] is True
    check_tidy(corner)


def test_the_work_folder_can_be_kept(corner: Corner, registry: DockerRegistry) -> None:
    """Until `clean`: other runs, which remove what killed ones left, know that it was kept."""
    bakefile(corner, f"{registry.host}/app:1")
    corner.bake("--keep-workspace")
    (kept,) = (corner.output / ".parbake").iterdir()
    corner.bake("--force")
    assert kept.is_dir()
    assert corner.parbake("clean", "--json").document["removed"] == [str(kept)]
    check_tidy(corner)


def test_prune_and_clean_by_hand(corner: Corner, registry: DockerRegistry) -> None:
    made: list[str] = []
    for tag in ("1", "2", "3"):
        time.sleep(1.01 if made else 0)  # records know the second in which they were made
        bakefile(corner, f"{registry.host}/app:{tag}")
        made.append(corner.bake()["artefact"])
    assert [item["artefact"] for item in corner.parbake("list", "--json").document] == made

    planned = corner.parbake("prune", "--keep", "1", "--dry-run", "--json").document
    assert [(item["artefact"], item["keep"]) for item in planned["decisions"]] == [
        (made[2], True),
        (made[1], False),
        (made[0], False),
    ]
    assert planned["freed"] > 4 << 20
    assert len(corner.parbake("list", "--json").document) == 3

    said = corner.parbake("prune", "--keep", "2")
    assert said.code == 0
    assert f"{made[0]}" in said.stdout
    assert "removed" in said.stdout
    assert [item["artefact"] for item in corner.parbake("list", "--json").document] == made[1:]
    assert files(corner.output) == {name + end for name in made[1:] for end in ("", ".json", ".blocks")}

    assert corner.parbake("prune", "--keep", "0", "--json").document["freed"] > 2 << 20
    assert corner.parbake("prune", "--keep", "0", "--json").document == {"freed": 0, "decisions": []}
    assert files(corner.output) == set()
    assert corner.parbake("clean").stdout.strip() == "nothing was left over"

    with corner.start(*BAKE) as run:
        run.wait_for("stage-start", "fill")
        run.kill()
        run.finish()
    said = corner.parbake("clean")
    assert f"removed {corner.output / '.parbake'}" in said.stdout
    assert corner.parbake("clean", "--json").document["removed"] == []
    removed = corner.parbake("clean", "--caches", "--json").document["removed"]
    assert str(corner.cache / "pause") in removed
    assert files(corner.cache) == set()
    check_tidy(corner)


def test_prune_keeps_what_another_run_is_at(corner: Corner, registry: DockerRegistry) -> None:
    with FaultyProxy(registry.url) as proxy, ExitStack() as stack:
        bakefile(corner, f"{proxy.host}/app:1")
        corner.bake()
        proxy.faults.extend([Stall(300_000, 3600)] * 20)
        run = stack.enter_context(corner.start(*BAKE, "--force"))
        run.wait_for("task-start", "layer")
        (decision,) = corner.parbake("prune", "--keep", "0", "--json").document["decisions"]
        assert decision["keep"] is True
        assert decision["reason"] == "another parbake is working on it"
        proxy.ended.set()
        assert run.finish().code == 0
    assert len(corner.parbake("list", "--json").document) == 1
    check_tidy(corner)


# -- places that are none


def check_refused(done: Done, code: int, *words: str) -> None:
    assert done.code == code, done
    document = done.document
    assert document["hint"], done
    for word in words:
        assert word in document["message"], done


@pytest.mark.parametrize("place", ["artefacts", "artefacts/deeper"])
def test_the_output_folder_is_a_file(place: str, corner: Corner, registry: DockerRegistry) -> None:
    corner.write("artefacts", "mine")
    bakefile(corner, f"{registry.host}/app:1", more=f"output: {place}\n")
    check_refused(corner.parbake(*BAKE), 2, "artefacts")
    assert corner.output.read_text() == "mine"
    assert corner.leaked() == []


def test_the_output_folder_cannot_be_written(corner: Corner, registry: DockerRegistry) -> None:
    """Reading goes on: what is there is listed, planned and pruned as a dry run; and a no-op finds it."""
    bakefile(corner, f"{registry.host}/app:1")
    made = corner.bake()["artefact"]
    with disk.private_mounts():
        disks.sh("mount", "--bind", corner.output, corner.output)
        disks.sh("mount", "-o", "remount,bind,ro", corner.output)
        corner.look()
        assert [item["artefact"] for item in corner.parbake("list", "--json").document] == [made]
        assert corner.parbake("plan", "--json").document["exists"] is True
        assert corner.parbake("prune", "--keep", "0", "--dry-run", "--json").code == 0
        assert corner.bake()["changed"] is False
        check_refused(corner.parbake("prune", "--keep", "0", "--json"), 1, "Read-only", str(corner.output))
        bakefile(corner, f"{registry.host}/app:2")
        check_refused(corner.parbake(*BAKE), 1, "Read-only", str(corner.output))
        assert corner.leaked() == []
    assert corner.bake()["changed"] is True
    check_tidy(corner)


def test_the_cache_cannot_be_written(corner: Corner, registry: DockerRegistry) -> None:
    bakefile(corner, f"{registry.host}/app:1")
    corner.cache.mkdir()
    with disk.private_mounts():
        disks.sh("mount", "--bind", corner.cache, corner.cache)
        disks.sh("mount", "-o", "remount,bind,ro", corner.cache)
        check_refused(corner.parbake(*BAKE), 1, "Read-only", str(corner.cache))
    assert corner.bake()["changed"] is True


def test_output_and_cache_on_different_disks(corner: Corner, registry: DockerRegistry) -> None:
    """Nothing is renamed from one to the other; the base, which the cache holds, is copied."""
    tree = disks.root_tree(corner.folder / "tree")
    for name in ("usr/bin/containerd", "etc/containerd/config.toml"):
        corner.write(f"tree/{name}", "")
    disks.machine(corner.folder / "base.raw", "dos", "ext4", tree)
    with disk.private_mounts():
        for place in (corner.output, corner.cache):
            place.mkdir()
            disks.sh("mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", place)
        corner.look()
        assert corner.output.stat().st_dev != corner.cache.stat().st_dev
        corner.write(
            "parbake.yaml",
            f"version: 1\nbase: {{file: base.raw}}\nartefact: vmdk\nsize: 96MiB\nimages: ['{registry.host}/app:1']\n",
        )
        assert corner.bake()["changed"] is True
        assert corner.bake()["changed"] is False
        check_tidy(corner)
