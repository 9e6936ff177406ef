"""Every command that takes a record: which it is where a name is given or nothing, and that it says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from parbake import records
from parbake.cli import app, run
from parbake.records import Record
from standins.plans import record

BAKEFILE = """\
version: 1
name: node
images: [registry.example/b:1]
rollout: [{file: {path: out/node.json}}]
"""
OTHERS = {"FOLDER": "there", "REGION": "eu-west-1", "PATH": "pod.yaml"}
"""What commands want besides, by what their help calls it."""
MORE = {
    "coverage": ("--manifests", "none.yaml"),
    "trace": ("--trace", "none.trace"),
    "rollout": ("--dry-run",),
    "observe": ("--context", "nowhere"),
}


def commands(group: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command that names a record, with its path."""
    for name, each in group.commands.items():
        if hasattr(each, "commands"):
            yield from commands(each, *path, name)
        elif any("RECORD" in (parameter.metavar or "") for parameter in each.params):
            yield (*path, name), each


FOUND = dict(commands(typer.main.get_command(app.app)))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Record, Record]:
    """Two artefacts of one Bakefile: an older one that is verified, and a newer one that is not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    Path("parbake.yaml").write_text(BAKEFILE)
    Path("pod.yaml").write_text("kind: Pod\n")
    Path("artefacts").mkdir()
    found = (record("a", at=1, passed=True), record("b", at=2), record("c", name="node-b", at=3))
    for each in found:
        (Path("artefacts") / each.artefact).write_bytes(b"disk")
        records.write(Path("artefacts"), each)
    return found[:2]


def called(path: tuple[str, ...], command: Any, *selector: str) -> list[str]:
    """Return a call of a command: with what it wants besides, an option of its own for the record if that is one."""
    words = [*path, *MORE.get(path[-1], ())]
    named = [each for each in command.params if "RECORD" in (each.metavar or "")]
    if named[0].param_type_name == "option":
        words += [word for each in selector for word in (named[0].opts[-1], each)]
    else:
        words += selector
    return words + [OTHERS[each.metavar] for each in command.params if each.metavar in OTHERS]


def test_the_commands_that_take_a_record_are_known() -> None:
    assert {path[-1] for path in FOUND} == {
        "verify", "show", "trace", "hydrate", "advise", "report", "rollout", "copy", "lint", "kubelet-config", "gcp",
        "gke", "azure", "coverage", "observe",
    }  # fmt: skip


@pytest.mark.parametrize("path", FOUND, ids=" ".join)
@pytest.mark.parametrize("selector", [(), ("node",)], ids=["without", "by name"])
def test_the_newest_artefact_is_meant_and_said(
    path: tuple[str, ...], selector: tuple[str, ...], made: tuple[Record, Record], capsys: pytest.CaptureFixture[str]
) -> None:
    verified, newest = made
    run(called(path, FOUND[path], *selector))
    said = [line.strip() for line in capsys.readouterr().err.splitlines() if line.strip().startswith("takes ")]
    taken = verified if path[-1] == "rollout" else newest
    proven = "verified" if path[-1] == "rollout" else "not verified"
    if path[-1] in {"kubelet-config", "observe"} and not selector:
        assert said == [], "it is what the Bakefile says, or of all records"
    else:
        assert said == [f"takes {taken.artefact}, baked {taken.finished_at}, {proven}"]


def document(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    assert run([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_json_says_which_it_was(made: tuple[Record, Record], capsys: pytest.CaptureFixture[str]) -> None:
    verified, newest = made
    assert document(capsys, "report")["records"] == [newest.artefact]
    assert document(capsys, "report", "", verified.artefact)["records"] == [newest.artefact, verified.artefact]
    assert document(capsys, "rollout", "--dry-run")["records"] == [verified.artefact]
    assert document(capsys, "lint", "pod.yaml", "--bake", "node", code=3)["records"] == [newest.artefact]


def test_a_document_of_others_gets_no_field(made: tuple[Record, Record], capsys: pytest.CaptureFixture[str]) -> None:
    statement = document(capsys, "show")
    assert statement == json.loads((Path("artefacts") / made[1].file_name).read_bytes())
    assert "records" not in document(capsys, "export", "kubelet-config", "node")
    assert "records" not in document(capsys, "lint", "pod.yaml", "--format", "sarif", code=3)


def test_the_list_marks_what_a_name_means(made: tuple[Record, Record], capsys: pytest.CaptureFixture[str]) -> None:
    verified, newest = made
    meant = {each["artefact"]: each["meant"] for each in document(capsys, "list")}
    assert (meant[verified.artefact], meant[newest.artefact]) == (["rollout"], ["newest"])
    run(["list"])
    lines = capsys.readouterr().out.splitlines()
    marks = {line.split()[0]: line.split()[-1] for line in lines[1:-1]}
    assert (marks[verified.artefact], marks[newest.artefact]) == (">", "*")
    assert lines[-1] == "* the newest artefact of its Bakefile; > the one that `rollout` takes"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("words", [["show"], ["hydrate", "there"], ["rollout"]])
def test_without_a_record_and_a_bakefile_it_is_said(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(words) == 2
    assert "Bakefile" in capsys.readouterr().err


@pytest.mark.usefixtures("made")
def test_a_folder_cannot_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["hydrate"]) == 2
    assert "missing argument FOLDER" in capsys.readouterr().err
    assert not list(Path().glob("*.sh"))
