"""Machines that share a store: what one has baked the next takes over, and of two at once the first counts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from standins.command import Corner
from standins.faulty_proxy import FaultyProxy
from standins.images import image, layer, push
from standins.registry import DockerRegistry

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    data = random.Random(1).randbytes(2 << 20)
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as running:
        for tag in ("1", "2"):
            push(running.url, "app", image(layer({"app": data, "version": tag.encode()})), tag)
        yield running


@pytest.fixture
def pair(tmp_path: Path, registry: DockerRegistry) -> tuple[Corner, Corner]:
    corners = Corner(tmp_path / "one"), Corner(tmp_path / "two")
    for corner in corners:
        bakefile(corner, f"{registry.host}/app:1", tmp_path / "store")
    return corners


def bakefile(corner: Corner, reference: str, store: Path) -> None:
    text = f"version: 1\nname: node\nbase: none\nsize: 32MiB\nstore: {store}\nimages: ['{reference}']\n"
    corner.write("parbake.yaml", text)


def contents(corner: Corner) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in corner.output.iterdir() if path.is_file()}


def test_what_one_machine_has_baked_the_next_takes_over(
    pair: tuple[Corner, Corner], registry: DockerRegistry, tmp_path: Path
) -> None:
    one, two = pair
    made = one.bake()
    assert made["changed"] is True
    assert two.parbake("plan", "--json").document["exists"] is True
    with FaultyProxy(registry.url) as proxy:
        bakefile(two, f"{proxy.host}/app:1", tmp_path / "store")
        assert two.parbake("plan", "--json").document["exists"] is False, "another name, and another key"
    bakefile(two, f"{registry.host}/app:1", tmp_path / "store")
    taken = two.bake()
    assert taken["changed"] is False
    assert taken["blocks"] == made["blocks"]
    assert contents(two) == contents(one)
    assert two.left() == []
    assert two.leaked() == []


def test_of_two_bakes_at_once_one_record_counts(pair: tuple[Corner, Corner]) -> None:
    command = ("bake", "--no-verify", "--json", "--progress", "json")
    with ExitStack() as stack:
        runs = [stack.enter_context(corner.start(*command)) for corner in pair]
        done = [run.finish() for run in runs]
    assert [each.code for each in done] == [0, 0]
    assert done[0].document["blocks"] == done[1].document["blocks"]
    assert done[0].document["started_at"] == done[1].document["started_at"]
    assert contents(pair[0]) == contents(pair[1])
    assert sum(each.document["changed"] for each in done) == 1
    for corner in pair:
        assert corner.left() == []


def test_a_run_that_was_killed_before_it_shared_is_finished(pair: tuple[Corner, Corner]) -> None:
    one, two = pair
    with one.start("bake", "--no-verify", "--json", "--progress", "json") as run:
        run.wait_for("stage-start", "store")
        run.kill()
    assert one.bake()["changed"] is False
    assert two.bake()["changed"] is False
    assert contents(two) == contents(one)


def test_a_key_that_was_expected(pair: tuple[Corner, Corner], registry: DockerRegistry, tmp_path: Path) -> None:
    one, _ = pair
    known = one.parbake("build", "--json").document
    assert known["images"] == [
        {"reference": f"{registry.host}/app:1", "digest": known["images"][0]["digest"], "built": False}
    ]
    assert known["key"] == one.parbake("plan", "--json").document["key"]
    bakefile(one, f"{registry.host}/app:2", tmp_path / "store")
    moved = one.parbake("bake", "--no-verify", "--json", "--expect-key", known["key"])
    assert (moved.code, moved.document["error"]) == (1, "Moved")
    assert known["key"] in moved.document["message"]
    assert not one.output.exists()
    bakefile(one, f"{registry.host}/app:1", tmp_path / "unused")
    other = f"--store={tmp_path / 'other'}"
    made = one.parbake("bake", "--no-verify", "--json", "--expect-key", known["key"], other)
    assert made.document["key"] == known["key"]
    assert sorted(path.name for path in tmp_path.glob("*/artefacts")) == ["artefacts"] * 2
    assert list((tmp_path / "other" / "artefacts").iterdir())
    assert not (tmp_path / "unused").exists()
    wrong = one.parbake("bake", "--store", "ftp://x", "--json")
    assert (wrong.code, wrong.document["error"]) == (2, "InputError")
    assert wrong.document["message"] == "--store: 'ftp://x' is not the URL of an S3 bucket"
