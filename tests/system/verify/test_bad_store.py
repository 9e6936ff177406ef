"""What can be wrong with a store is in the verdict, image by image; how such a volume boots is for tests/vm/verify."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from parbake.containerd import Client
from parbake.containerd.labels import PINNED, reference_labels
from parbake.core.events import Events
from parbake.core.model import (
    Artefact,
    Base,
    ExitProbe,
    ImageVerdict,
    Plan,
    Platform,
    RunningProbe,
    TcpProbe,
    Verdict,
)
from standins.base import default_base
from standins.booted_here import BootedHere
from standins.containerd_support import Made, busybox, fill, filling, pause
from standins.starts import described, shell

__all__ = ["default_base"]

pytestmark = pytest.mark.root

SANDBOX = "registry.test/pause:9"
GOOD, BROKEN, LATE, MUTE, LOOSE, LAZY, OTHER, NONE = (
    f"registry.test/{name}:1" for name in ("good", "broken", "late", "mute", "loose", "lazy", "other", "none")
)


def fill_lazily(client: Client, name: str, made: Made) -> None:
    """Content without snapshots, as a pull that was cut off leaves it."""
    with client.lease("test"):
        client.content.write(made.config, made.blobs[made.config.digest])
        labels = reference_labels(made.manifest_document)
        client.content.write(made.manifest, made.blobs[made.manifest.digest], labels)
        client.images.put(name, made.manifest, PINNED)


@pytest.fixture(scope="module")
def verdict(default_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    assert default_base.exists()
    folder = tmp_path_factory.mktemp("store")
    volume = folder / "volume.raw"
    made = busybox(Cmd=["/bin/sh", "-c", "echo no such file: settings >&2; exit 7"])
    layered, loose, lazy = busybox({"other": b"1"}), busybox({"loose": b"1"}), busybox({"lazy": b"1"})
    ends = shell("echo $WORD done", up=ExitProbe(), env={"WORD": "well"})
    plan = Plan(
        name="node",
        platform=Platform.host(),
        base=Base(kind="none"),
        artefact=Artefact(kind="volume"),
        images=(
            described(made, GOOD, ends),
            described(made, BROKEN),
            described(made, LATE, shell("echo no database; sleep 2; exit 4", up=RunningProbe(seconds=0.2), watch=3)),
            described(made, MUTE, shell("sleep 1000", up=TcpProbe(port=9), timeout=1)),
            described(loose, LOOSE, shell("sleep 1000", watch=0.2)),
            described(lazy, LAZY, ends),
            described(layered, OTHER, ends),
            described(made, NONE),
        ),
        sandbox=described(pause(), SANDBOX),
        size=256 << 20,
    )
    with filling(volume, plan.size) as client:
        for name in (GOOD, BROKEN, LATE, MUTE, OTHER):
            fill(client, name, made)
        fill(client, LOOSE, loose)
        client.images.put(LOOSE, loose.manifest, {next(iter(PINNED)): ""})
        fill_lazily(client, LAZY, lazy)
        fill(client, SANDBOX, pause())
    with BootedHere(volume, plan, events=Events(), folder=folder / "run") as verification:
        return verification.verdict()


@pytest.fixture
def image(verdict: Verdict) -> Callable[[str], ImageVerdict]:
    def find(reference: str) -> ImageVerdict:
        [found] = [image for image in verdict.images if image.reference == reference]
        return found

    return find


def test_one_bad_image_is_enough(verdict: Verdict, image: Callable[[str], ImageVerdict]) -> None:
    assert not verdict.passed
    assert image(GOOD).problems == ()
    assert image(GOOD).output.strip() == "well done"
    assert verdict.problems == ()


def test_a_bad_image_fails_with_its_own_words(image: Callable[[str], ImageVerdict]) -> None:
    [problem] = image(BROKEN).problems
    assert problem.startswith("it ended with code 7")
    assert image(BROKEN).output == "no such file: settings"


def test_what_crashes_after_it_was_up_is_looked_at_once_more(image: Callable[[str], ImageVerdict]) -> None:
    assert image(LATE).problems == ("it was up, and ended with code 4 (Error) 2 s after its start",)
    assert image(LATE).output == "no database"


def test_what_never_listens_is_not_up(image: Callable[[str], ImageVerdict]) -> None:
    [problem] = image(MUTE).problems
    assert "not up within" in problem
    assert "port 9" in problem


def test_a_bad_store_fails(image: Callable[[str], ImageVerdict]) -> None:
    assert image(NONE).problems == ("the runtime's store (namespace k8s.io) has no image of this name",)
    assert any("not pinned" in problem for problem in image(LOOSE).problems)
    assert any("the plan says" in problem for problem in image(OTHER).problems)
    lazy = image(LAZY)
    assert not lazy.unpacked
    assert any("not unpacked" in problem for problem in lazy.problems)
    assert len(lazy.problems) > 1, "it cannot start either"
