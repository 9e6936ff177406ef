"""What to bake, on the command line: from a history and the images of a layout to a Bakefile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parbake.bakefile import load
from parbake.cli import run
from parbake.core.plan import snapshot_size
from standins import images

BASE, ONE, TWO = (images.layer({name: name.encode() * 1000}) for name in ("base", "one", "two"))
SERVED = {"shop.example/one:1": images.image(BASE, ONE), "shop.example/two:1": images.image(BASE, TWO)}
GONE = "shop.example/gone:1"


def pod(image: str, number: int) -> dict[str, Any]:
    at = f"2026-11-{1 + number % 28:02}T00:00:00Z"
    return {
        "metadata": {"namespace": "shop", "name": f"p{image}{number}", "creationTimestamp": at},
        "spec": {"nodeName": f"node-{number}", "containers": [{"image": image}]},
    }


@pytest.fixture(autouse=True)
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images.write_layout(tmp_path / "layout", SERVED)
    starts = {"shop.example/one:1": 28, "shop.example/two:1": 27, GONE: 5}
    pods = [pod(image, number) for image, count in starts.items() for number in range(count)]
    Path("pods.json").write_text(json.dumps({"items": pods}))


def told(capsys: pytest.CaptureFixture[str], *more: str, code: int = 0) -> Any:
    words = ("suggest", "pods.json", "--layout", "layout", "--platform", "linux/amd64")
    assert run([*words, *more, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_with_room_for_all_of_it_images_are_baked_whole(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "--output", "node")
    assert [(each["reference"], each["whole"]) for each in found["images"]] == [(name, True) for name in SERVED]
    assert found["suggested"]["share_saved"] == 1
    assert found["left_out"].keys() == {GONE}
    base, one, two = (len(images.compress(layer, "gzip")) for layer in (BASE, ONE, TWO))
    assert found["suggested"]["bytes_saved"] == 28 * base + 28 * one + 27 * two, "a node fetches what two share once"
    bakefile = load(Path("node/parbake.yaml"))
    assert [(str(each.reference), each.layers) for each in bakefile.images] == [(name, None) for name in SERVED]


def test_with_little_room_what_both_share_is_baked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three layers are as large as each other: the base is fetched twice as often as what stands on it."""
    from parbake.core.model import Platform
    from parbake.core.reference import Reference
    from parbake.images.registry import Layout

    image = Layout(Path("layout")).resolve(Reference.parse("shop.example/one:1"), Platform.parse("linux/amd64"))
    monkeypatch.setattr("parbake.cli.suggest.GIB", snapshot_size(image.layers[0]))
    found = told(capsys, "--budget", "1", "--output", "node")
    [only] = found["images"]
    assert (only["layers"], only["of_layers"], only["whole"]) == (1, 2, False)
    assert found["suggested"]["bytes_saved"] > 0
    assert found["most_started"]["bytes_saved"] == 0, "no whole image fits"
    assert [each.layers for each in load(Path("node/parbake.yaml")).images] == [1]
    assert run(["suggest", "pods.json", "--layout", "layout", "--platform", "linux/amd64", "--budget", "1"]) == 0
    text = capsys.readouterr().out
    assert "lowest 1 of 2" in text
    assert f"left out: {GONE}" in text


def test_wrong_input_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for words, says in (
        (["suggest"], "there is no history"),
        (["suggest", "pods.json", "--minutes", "5"], "add --from-cluster"),
        (["suggest", "nothing.json"], "No such file"),
    ):
        assert run(words) == 2
        assert says in capsys.readouterr().err
    Path("pods.json").write_text(json.dumps({"items": [pod(GONE, 1)]}))
    assert "no image of the history is to be had any more" in told(capsys, code=2)["message"]
