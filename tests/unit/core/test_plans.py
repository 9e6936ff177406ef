"""What is decided from wishes and answers, one frozen plan a case: key, sizes and cautions included.

A changed key means that everybody bakes everything again: change these files only with a reason to.
`UPDATE_GOLDEN=1 pytest tests/unit/core/test_plans.py` writes them anew.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from parbake.core.model import GIB, MIB, Artefact, Base, HttpProbe, Image, Platform, Startup
from parbake.core.plan import cautions, make_plan, measure
from standins.plans import image, layer

FOLDER = Path(__file__).with_name("cases")
AMD64 = Platform(architecture="amd64")
VOLUME = {"base": Base(kind="none"), "artefact": Artefact(kind="volume")}
DEBIAN = Base(kind="debian", identity="sha256:" + "d" * 64, size=2 * GIB)
PAUSE = image("localhost/parbake/pause:1", layers=(layer("pause", size=10240, raw_size=10240),), layout="/here")


def two_images_that_share() -> list[Image]:
    shared = layer("debian", size=50 * MIB, raw_size=120 * MIB)
    api = layer("api", below="debian", size=300 * MIB, raw_size=900 * MIB)
    worker = layer("worker", below="debian", size=5 * MIB, raw_size=9 * MIB)
    startup = Startup(args=("--serve",), env={"A": "b"}, up=HttpProbe(port=8080, path="/healthz"))
    return [
        image("registry.example/worker:1", layers=(shared, worker), also_by_digest=True),
        image("registry.example/api:2", layers=(shared, api), startup=startup),
    ]


CASES: dict[str, dict[str, Any]] = {
    "volume": {**VOLUME, "images": [image()], "sandbox": PAUSE},
    "volume-xfs-without-sandbox": {
        "base": Base(kind="none"),
        "artefact": Artefact(kind="volume", filesystem="xfs"),
        "images": [image()],
    },
    "machine-image-with-shared-layers": {
        "base": DEBIAN,
        "artefact": Artefact(kind="machine-image", format="qcow2"),
        "images": two_images_that_share(),
        "sandbox": PAUSE,
    },
    "keep-layers": {**VOLUME, "images": two_images_that_share(), "sandbox": PAUSE, "keep_layers": True},
    "unknown-sizes": {**VOLUME, "images": [image(layers=(layer("x", size=GIB, raw_size=0),))], "sandbox": PAUSE},
    "fixed-and-tight": {**VOLUME, "images": [image()], "sandbox": PAUSE, "fixed_size": 45 * MIB},
    "own-base": {
        "base": Base(kind="file", identity="sha256:" + "b" * 64, path="/images/node.qcow2", size=20 * GIB),
        "artefact": Artefact(kind="machine-image", format="vmdk"),
        "images": [image(layers=(layer("big", size=4400 * MIB, raw_size=7200 * MIB),))],
    },
}


@pytest.mark.parametrize("name", CASES)
def test_the_plan_is_the_one_that_was_written_down(name: str) -> None:
    wishes = {"name": "node", "platform": AMD64, "sandbox": None, **CASES[name]}
    plan = make_plan(**wishes)
    sizes = asdict(measure(plan.all_images, keep_layers=plan.keep_layers))
    decided = {"sizes": sizes, "cautions": list(cautions(plan)), "name": plan.artefact_name, **plan.to_json()}
    path = FOLDER / f"{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(json.dumps(decided, indent=2) + "\n")
    assert decided == json.loads(path.read_text())


def test_no_file_is_left_without_a_case() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(CASES)
