from __future__ import annotations

import pytest
from pydantic import ValidationError

from parbake.core.errors import InputError
from parbake.core.model import Artefact, Base, Plan, Platform, Startup, TcpProbe
from standins.plans import digest, image, layer, plan


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("Linux/ARM64", "linux/arm64"),
    ],
)
def test_platforms_are_normalised_as_containerd_does(text: str, normalised: str) -> None:
    assert str(Platform.parse(text)) == normalised


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "linux/arm/v7/x"])
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(InputError):
        Platform.parse(text)


def test_a_plan_survives_json() -> None:
    made = plan(images=(image(startup=Startup(up=TcpProbe(port=80), env={"A": "b"})),), sandbox=image("localhost/p:1"))
    assert Plan.model_validate_json(made.model_dump_json()) == made


SAME = [
    plan(base=Base(kind="none", path="/somewhere/else", size=7)),
    plan(size=2 << 30),
    plan(images=(image(startup=Startup(args=("x",))),)),
    plan(images=(image(layout="/a/folder"),)),
    plan(images=(image(layers=(layer("registry.example/app:1", raw_size=0),)),)),
]
OTHER = [
    plan(name="other"),
    plan(base=Base(kind="debian", identity="x")),
    plan(artefact=Artefact(kind="volume", filesystem="xfs")),
    plan(artefact=Artefact(kind="machine-image")),
    plan(platform=Platform(architecture="arm64")),
    plan(images=(image("registry.example/app:2"),)),
    plan(images=(image(layers=()),)),
    plan(images=(image(also_by_digest=True),)),
    plan(sandbox=image("localhost/pause:1")),
    plan(keep_layers=True),
    plan(size_is_fixed=True),
]


@pytest.mark.parametrize("other", SAME)
def test_what_does_not_shape_the_artefact_is_not_in_the_key(other: Plan) -> None:
    assert other.key == plan().key


@pytest.mark.parametrize("other", OTHER)
def test_what_shapes_the_artefact_is_in_the_key(other: Plan) -> None:
    assert other.key != plan().key


def test_the_key_never_changes_by_itself() -> None:
    """A new release that gave every plan another key would bake everybody's artefacts again."""
    assert plan().key == "4901c311fb77ef4971ee52f6e27e5972cd9ab587c43a7073faa26da0c0cec96f"
    assert plan().artefact_name == f"node-{plan().key[:12]}.raw"


def test_names_of_an_image() -> None:
    by_digest = "registry.example/app@" + digest("x")
    assert image().names == ("registry.example/app:1",)
    assert image(by_digest).names == (by_digest,)
    both = image("registry.example/app:1@" + digest("x"))
    assert both.names == ("registry.example/app:1", by_digest)
    also = image(also_by_digest=True)
    assert also.names == ("registry.example/app:1", f"registry.example/app@{also.target.digest}")


def test_size_counts_a_repeated_layer_once() -> None:
    one = layer("one")
    assert image(layers=(one, one)).size == image(layers=(one,)).size


def test_a_volume_is_raw() -> None:
    with pytest.raises(ValidationError, match="a volume is raw"):
        Artefact(kind="volume", format="qcow2")
