"""What follows from a fleet's file: its cells, and the same for those who have no engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from check_jsonschema.cli import main as check_jsonschema
from click.testing import CliRunner

from parbake import cli
from parbake.core.errors import InputError
from parbake.fleet import matrix
from parbake.fleet.cells import Cell, cells, chosen
from parbake.fleet.file import load

GOLDEN = Path(__file__).parent / "cases"
IMAGE = "registry.example.com/parbake@sha256:" + "0" * 64
TEXT = """\
version: 1
name: shop
store: {store}
architectures: [amd64, arm64]
bakefiles:
  - parbake.yaml
  - search/parbake.yaml
  - {{file: search/gpu.yaml, architectures: [amd64]}}
concurrency: {{cells: 8}}
"""
SOURCE = "source: {git: https://git.example.com/bakes.git}\n"


def fleet_in(folder: Path, *, store: str = "s3://shop-parbake/fleet", more: str = SOURCE) -> Path:
    (folder / "search").mkdir(exist_ok=True)
    for name in ("parbake.yaml", "search/parbake.yaml", "search/gpu.yaml"):
        (folder / name).write_text("version: 1\nimages: [r.example/app:1]\nbase: none\n")
    path = folder / "fleet.yaml"
    path.write_text(TEXT.format(store=store) + more)
    return path


def test_cells_are_bakefiles_times_architectures(tmp_path: Path) -> None:
    found = cells(load(fleet_in(tmp_path)), tmp_path)
    assert [(cell.name, cell.file, cell.platform) for cell in found] == [
        ("shop@amd64", "parbake.yaml", "linux/amd64"),
        ("shop@arm64", "parbake.yaml", "linux/arm64"),
        ("search@amd64", "search/parbake.yaml", "linux/amd64"),
        ("search@arm64", "search/parbake.yaml", "linux/arm64"),
        ("search/gpu@amd64", "search/gpu.yaml", "linux/amd64"),
    ]
    assert chosen(found, ()) == found
    assert [cell.name for cell in chosen(found, ("search", "shop@arm64"))] == [
        "shop@arm64",
        "search@amd64",
        "search@arm64",
    ]
    with pytest.raises(InputError, match="no such cell") as caught:
        chosen(found, ("serach",))
    assert "search/gpu@amd64" in caught.value.hint


def test_a_bakefile_elsewhere_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "fleet"
    inside.mkdir()
    path = fleet_in(inside)
    (tmp_path / "other.yaml").write_text("version: 1\nimages: [r.example/app:1]\n")
    path.write_text(path.read_text().replace("- parbake.yaml", "- ../other.yaml"))
    with pytest.raises(InputError, match="lies outside of"):
        cells(load(path), inside)


def exported(capsys: pytest.CaptureFixture[str], path: Path, *more: str) -> tuple[int, Any]:
    code = cli.run(["fleet", "matrix", "-f", str(path), *more])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("kind", "more"), [("github", ()), ("kubernetes", ("--image", IMAGE, "--cell", "search/gpu"))])
def test_the_export(kind: str, more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = exported(capsys, fleet_in(tmp_path), "--for", kind, *more)
    assert code == 0
    assert document == json.loads((GOLDEN / f"{kind}.json").read_text())


def test_github_takes_the_strategy(tmp_path: Path) -> None:
    fleet = load(fleet_in(tmp_path))
    job = {
        "runs-on": "ubuntu-latest",
        "strategy": matrix.for_github(fleet, cells(fleet, tmp_path)),
        "steps": [{"run": "x"}],
    }
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps({"on": "push", "jobs": {"bake": job}}))
    checked = CliRunner().invoke(check_jsonschema, ["--builtin-schema", "vendor.github-workflows", str(path)])
    assert checked.exit_code == 0, checked.output


def test_more_cells_than_a_matrix_takes(tmp_path: Path) -> None:
    many = [Cell(f"x{number}@amd64", "x.yaml", "linux/amd64") for number in range(257)]
    with pytest.raises(InputError, match="257 cells are more than the 256 jobs"):
        matrix.for_github(load(fleet_in(tmp_path)), many)


def test_names_of_jobs_are_those_that_kubernetes_takes() -> None:
    for cell in ("a/b.c@amd64", "x" * 200 + "@arm64", "y/" + "x" * 198 + "@arm64"):
        name = matrix._job_name("shop", cell)
        assert len(name) + 6 <= 63
        assert name.replace("-", "").isalnum()
    assert matrix._job_name("shop", "x" * 90 + "@arm64") != matrix._job_name("shop", "x" * 90 + "@amd64")


@pytest.mark.parametrize(
    ("store", "more", "arguments", "words"),
    [
        ("shared", SOURCE, ("--for", "kubernetes", "--image", IMAGE), "is a folder, which pods do not share"),
        ("s3://bucket/x", "", ("--for", "kubernetes", "--image", IMAGE), "the fleet has no `source`"),
        ("s3://bucket/x", SOURCE, ("--for", "kubernetes"), "the Jobs need parbake's image"),
        ("s3://bucket/x", SOURCE, ("--for", "gitlab"), "--for gitlab: no such kind"),
    ],
)
def test_what_cannot_be_exported(
    store: str,
    more: str,
    arguments: tuple[str, ...],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, error = exported(capsys, fleet_in(tmp_path, store=store, more=more), "--json", *arguments)
    assert (code, error["error"]) == (2, "InputError")
    assert words in error["message"]
    assert error["hint"]
