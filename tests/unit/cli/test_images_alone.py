"""`parbake bake --image`: images without a Bakefile, and what `-q` prints of the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parbake.bakefile import Bakefile, load
from parbake.cli import run
from parbake.core.events import Events
from parbake.core.model import Published, Snapshot
from parbake.workflows import bake
from parbake.workflows.plan import BakeOptions, BakeResult
from standins.plans import record

APP, OTHER = "registry.example/team/app:1", "registry.example/other:2"
IN_EC2 = {"eu-west-1": Published(image="ami-1", snapshots=(Snapshot(id="snap-1"),))}
VOLUME = {"eu-west-1": Published(snapshots=(Snapshot(id="snap-1"),)), "eu-north-1": Published()}


@pytest.fixture
def baked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Bakefile, BakeOptions]]:
    """What bakes were asked for; they give a record, and do nothing."""
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[Bakefile, BakeOptions]] = []

    def instead(path: Path, events: Events, options: BakeOptions) -> BakeResult:
        events.note("at work")
        asked.append((load(path, options.overrides), options))
        made = record("a", passed=True)
        return BakeResult(Path("artefacts") / made.artefact, made, changed=True)

    monkeypatch.setattr(bake, "bake", instead)
    return asked


def test_images_alone_are_a_volume_that_is_verified(baked: list[tuple[Bakefile, BakeOptions]], tmp_path: Path) -> None:
    assert run(["bake", "--image", APP, "--image", OTHER, "--image", APP]) == 0
    [(bakefile, options)] = baked
    assert [entry.reference.written for entry in bakefile.images] == [APP, OTHER]
    assert (bakefile.name, bakefile.artefact.kind, bakefile.artefact.filesystem) == ("app", "volume", "ext4")
    assert (bakefile.output, bakefile.builder, options.verify) == (tmp_path / "artefacts", "local", True)


@pytest.mark.parametrize(("reference", "name"), [("null", "null"), ("a.example/own/a__b.c", "a-b.c"), ("y/yes", "yes")])
def test_the_name_is_that_of_the_first_image(
    reference: str, name: str, baked: list[tuple[Bakefile, BakeOptions]]
) -> None:
    assert run(["bake", "--image", reference]) == 0
    assert [each.name for each, _ in baked] == [name]


def test_options_count_and_the_folders_bakefile_is_left_aside(
    baked: list[tuple[Bakefile, BakeOptions]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("parbake.yaml").write_text("this: is none")
    assert run(["bake", "--image", APP, "--platform", "linux/arm64", "--store", "shared"]) == 0
    [(bakefile, _)] = baked
    assert (str(bakefile.platform), str(bakefile.store)) == ("linux/arm64", str(tmp_path / "shared"))
    assert "the parbake.yaml in this folder is left aside" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--image", APP, "-f", "parbake.yaml"], "--image bakes without a Bakefile, and --file names one"),
        (["--image", "Not/Lower"], "'Not/Lower'"),
        (["--image", ""], "''"),
        (["--image", f"{APP} {OTHER}"], "not a repository name"),
        (["--image", APP, "--platform", "nonsense"], "nonsense"),
    ],
)
def test_what_is_wrong_is_refused(
    words: list[str], says: str, baked: list[tuple[Bakefile, BakeOptions]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bake", *words]) == 2
    assert says in capsys.readouterr().err
    assert baked == []


@pytest.mark.usefixtures("baked")
def test_quiet_prints_the_name_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bake", "-q", "--image", APP]) == 0
    assert capsys.readouterr() == (f"{record('a').artefact}\n", "")
    assert run(["bake", "--quiet", "--image", APP, "--progress", "plain"]) == 0
    assert "at work" in capsys.readouterr().err
    assert run(["bake", "-q", "--image", APP, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["artefact"] == record("a").artefact


@pytest.mark.parametrize(("published", "id_"), [(IN_EC2, "ami-1"), (VOLUME, "snap-1")])
def test_quiet_prints_the_id_of_what_lies_in_ec2(
    published: dict[str, Published],
    id_: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("parbake.yaml").write_text(f"version: 1\nbase: none\nplatforms: [linux/amd64, linux/arm64]\nimages: ['{APP}']")
    made = record("a", passed=True).model_copy(update={"published": published})
    monkeypatch.setattr(bake, "bake", lambda *_: BakeResult(Path(made.artefact), made, changed=False))
    assert run(["bake", "-q"]) == 0
    assert capsys.readouterr().out.split() == [id_, id_]
