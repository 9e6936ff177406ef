"""What contributors are told is there: paths, names, commands, and the forms that they fill in."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from parbake.core import yamltext
from standins.documents import ROOT

TOLD = (ROOT / "CONTRIBUTING.md").read_text()
FORMS = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").iterdir() if path.name != "config.yml"]


def test_every_path_is_there() -> None:
    named = set(re.findall(r"`((?:src|tests|docs|tools)/[\w/.-]+)`", TOLD))
    named |= set(re.findall(r"pytest -q (\S+)", TOLD))
    assert len(named) > 20
    missing = [each for each in named if "NAME" not in each and not list(ROOT.glob(each))]
    assert not missing


def test_every_name_is_one_of_the_file_that_is_named_before_it() -> None:
    for path, names in {
        "bakefile/targets.py": ("_KINDS", "Kind", "Target", "takes_several_images", "takes_files"),
        "bakefile/file.py": ("BUILDERS", "Bakefile"),
        "rollouts/protocol.py": ("Rollout", "Offer", "Change", "History"),
        "builders/__init__.py": ("Builder", "Publisher", "RemoteBuilder"),
        "cli/app.py": ("command", "Result"),
    }.items():
        assert all(f"`{name}`" in TOLD or f"`{name}." in TOLD or f"`@{name}()`" in TOLD for name in names), path
        nodes = list(ast.walk(ast.parse((ROOT / "src/parbake" / path).read_text())))
        defined = {each.name for each in nodes if isinstance(each, ast.ClassDef | ast.FunctionDef)}
        assert set(names) <= defined | {each.id for each in nodes if isinstance(each, ast.Name)}, path


def test_every_stand_in_is_there() -> None:
    folder = ROOT / "standins"
    told = (folder / "README.md").read_text()
    named = set(re.findall(r"`((?:aws/|kubernetes/)?[a-z_0-9]+\.py|[a-z]+/)`", told))
    assert len(named) > 20
    assert [each for each in named if not (folder / each).exists()] == []


def test_every_target_of_make_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", TOLD):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_asks_in_ways_that_there_are(path: Path) -> None:
    (document,) = yamltext.parse(path.read_text()).documents
    form: Any = document.data
    assert set(form) == {"name", "description", "body"}
    asked = [each for each in form["body"] if each["type"] != "markdown"]
    assert len({each["id"] for each in asked}) == len(asked) > 0
    for each in form["body"]:
        assert each["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert each["attributes"].get("label") or each["type"] == "markdown"
    assert any(each.get("validations", {}).get("required") for each in asked)
