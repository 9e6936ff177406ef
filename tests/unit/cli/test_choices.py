"""Completion in shells: every name and every choice that a command takes, and nothing that a shell would run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from parbake import cli, records
from parbake.cli import choices
from parbake.cli.app import app
from standins import clusters
from standins.plans import record

NAMES = ("RECORD", "CELL", "WAVE", "STYLE", "LEVEL", "KIND", "PROGRAM", "OS/ARCHITECTURE", "NAMES")
BAKEFILE = """\
version: 1
images: [r.example/app:1]
base: none
output: made
rollout: [{name: canary, file: a.json}, {name: rest, file: b.json}]
"""
FLEET = "version: 1\nstore: store\nbakefiles: [web/parbake.yaml]\nrollout: {waves: [{name: first, rest: true}]}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "made").mkdir()
    (tmp_path / "web").mkdir()
    (tmp_path / "web/parbake.yaml").write_text(BAKEFILE)
    (tmp_path / "parbake.yaml").write_text(BAKEFILE)
    (tmp_path / "fleet.yaml").write_text(FLEET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("_PARBAKE_COMPLETE", "complete_bash")
    return tmp_path


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def ask(line: str) -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        with pytest.raises(SystemExit) as ended:
            cli.run([])
        assert ended.value.code == 0
        said = capsys.readouterr()
        assert not said.err
        return said.out.split()

    return ask


def parameters(command: Any, path: str = "parbake") -> Iterator[tuple[str, Any]]:
    for each in command.params:
        yield f"{path} {each.opts[-1]}", each
    for name, below in (getattr(command, "commands", None) or {}).items():
        yield from parameters(below, f"{path} {name}")


def test_every_name_and_every_choice_is_completed() -> None:
    """Whoever adds an option with a list of words in its help, or an argument that names something, is told here."""
    found = dict(parameters(typer.main.get_command(app)))
    named = [name for name, each in found.items() if (each.metavar or "").strip("[].").split("|")[0] in NAMES]
    chosen = [name for name, each in found.items() if name.endswith((" --to", "--profile", "--drive", "--holding"))]
    assert len(named) > 30
    assert [name for name in [*named, *chosen] if found[name]._custom_shell_complete is None] == []


def test_records_are_completed_by_name_and_id(here: Path, complete: Any) -> None:
    made = record("web")
    (here / "made" / made.artefact).touch()
    records.write(here / "made", made)
    in_ec2 = clusters.machine_image("node", "ami-0123456789abcdef0")
    records.write(here / "made", in_ec2)
    shutil.copy(here / "made" / made.file_name, here / "made" / "$(touch owned).json")
    assert complete("parbake show ") == sorted(
        {made.artefact, made.plan.name, made.key[:12], in_ec2.artefact, "node", in_ec2.key[:12]}
    )
    assert complete("parbake verify no") == sorted({made.artefact, in_ec2.artefact, "node"})
    assert complete("parbake rollback --holding ami") == ["ami-0123456789abcdef0"]
    (here / "other.yaml").write_text(BAKEFILE.replace("made", "elsewhere"))
    assert complete("parbake show -f other.yaml ") == []


def test_what_files_name_is_completed(here: Path, complete: Any) -> None:
    assert complete("parbake rollout web --to ") == ["canary", "rest"]
    assert complete("parbake fleet plan --cell ") == ["web", "web@amd64"]
    assert complete("parbake fleet gate ") == ["first"]
    (here / "parbake.yaml").write_text("nothing that is right")
    assert complete("parbake rollout web --to ") == []
    assert complete("parbake show ") == []


def test_names_that_a_shell_would_evaluate_are_left_out() -> None:
    find = choices._found(lambda _: ["good-1", "$(touch x)", "`x`", "a b", "a;b", "a'b", "日本"], "parbake.yaml")
    context: Any = SimpleNamespace(params={})
    assert find(context) == ["good-1"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("parbake lint --format ", ["text", "json", "sarif"]),
        ("parbake bake --progress p", ["plain"]),
        ("parbake plan --platform linux/a", ["linux/amd64", "linux/arm64"]),
        ("parbake fleet matrix --for ", ["github", "kubernetes"]),
        (
            "parbake fleet worker --queues control,",
            ["control,control", "control,bake", "control,place", "control,roll"],
        ),
        ("parbake advise x --profile ", ["mild", "harsh"]),
        ("parbake fleet sch", ["schema"]),
    ],
)
def test_choices_are_completed(line: str, words: list[str], here: Path, complete: Any) -> None:
    assert here.exists()
    assert complete(line) == words


def test_another_word_is_refused_with_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["lint", "x.yaml", "--format", "pdf"]) == 2
    assert "--format pdf: no such style\n  next: choose text, json or sarif" in capsys.readouterr().err
