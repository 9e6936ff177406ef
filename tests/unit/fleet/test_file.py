"""Fleet files: all that is wrong, at once and with lines, one small file a case; the schema; what init writes."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
from ruamel.yaml import YAML

from parbake import cli
from parbake.core.errors import BakefileError, InputError
from parbake.fleet import file
from parbake.fleet.file import load, schema

CASES = sorted((Path(__file__).parent / "cases").glob("*.yaml"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    world = tmp_path / "shop"
    (world / "search").mkdir(parents=True)
    (world / "search/parbake.yaml").write_text("version: 1\nimages: [r.example/app:1]\nbase: none\n")
    return world


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_what_is_wrong_is_said_in_order_of_lines(case: Path, folder: Path) -> None:
    path = folder / "fleet.yaml"
    path.write_bytes(case.read_bytes())
    with pytest.raises(BakefileError) as caught:
        load(path)
    assert caught.value.message.replace(str(folder), "FOLDER") + "\n" == case.with_suffix(".txt").read_text()
    assert caught.value.exit_code == 2
    lines = [problem.line for problem in caught.value.problems]
    assert lines == sorted(lines)


def test_every_case_has_its_answer_and_no_answer_is_left_over() -> None:
    assert {path.stem for path in (Path(__file__).parent / "cases").glob("*.txt")} == {case.stem for case in CASES}


def test_what_is_missing_has_defaults_and_paths_begin_at_the_file(folder: Path) -> None:
    path = folder / "fleet.yaml"
    path.write_text("version: 1\nstore: shared\nbakefiles: [search/parbake.yaml]\n")
    fleet = load(path)
    assert fleet.name == "shop"
    assert fleet.store == str(folder / "shared")
    assert fleet.architectures == ("amd64",)
    assert fleet.bakefiles[0].file == folder / "search/parbake.yaml"
    assert fleet.concurrency.cells == 64


def test_no_file_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no fleet file") as caught:
        load(tmp_path / "fleet.yaml")
    assert "parbake fleet init" in caught.value.hint


def test_numbers_are_read_as_such() -> None:
    """All scalars are text but those that `load` knows by name: a new key must be among them."""
    document = schema()
    found = set()
    for part in (document, *document["$defs"].values()):
        for key, value in part["properties"].items():
            types = {each.get("type") for each in (value, *value.get("anyOf", ()))} - {"null", None}
            if types and types <= {"boolean", "integer", "number"}:
                found.add(key)
    assert found == file._FLEET.not_text


def test_every_key_is_described() -> None:
    document = schema()
    jsonschema.Draft202012Validator.check_schema(document)
    for part in (document, *document["$defs"].values()):
        assert part["description"]
        for value in part["properties"].values():
            assert value["description"]


def test_init_writes_what_loads_and_fits_the_schema(folder: Path) -> None:
    (folder / "gpu node").mkdir()
    (folder / "gpu node/parbake.yaml").write_text("version: 1\nimages: [r.example/app:2]\nbase: none\n")
    (folder / ".hidden").mkdir()
    (folder / ".hidden/parbake.yaml").write_text("")
    path = file.write(folder)
    fleet = load(path)
    assert [entry.file.relative_to(folder) for entry in fleet.bakefiles] == [
        Path("gpu node/parbake.yaml"),
        Path("search/parbake.yaml"),
    ]
    written = path.read_text()
    plain = YAML(typ="safe").load(written)
    jsonschema.validate(plain, schema())
    uncommented = "\n".join(
        line[1:] if line[:1] == "#" and line[1:2].isalpha() else line for line in written.splitlines()
    )
    path.write_text(uncommented)
    assert set(YAML(typ="safe").load(uncommented)) == set(type(fleet).model_fields), "every key is explained"
    load(path)
    with pytest.raises(InputError, match="exists"):
        file.write(folder)
    file.write(folder, force=True)
    with pytest.raises(InputError, match="there is no Bakefile below"):
        file.write(folder / "search/empty")


def test_the_commands_init_and_schema(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["fleet", "init", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"written": [str(folder / "fleet.yaml")]}
    assert cli.run(["fleet", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()
