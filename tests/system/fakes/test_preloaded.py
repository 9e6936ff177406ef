"""A command of parbake that is a copy of one process does what a program of its own does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.fakes.preloaded import Preloaded

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Preloaded(tmp_path_factory.mktemp("preloaded")) as server:
        yield server.script


def told(parbake: str, words: str, folder: Path, env: Mapping[str, str]) -> tuple[int, str, str]:
    """Run it in a shell with an umask of its own; return all that it says."""
    command = ["sh", "-c", f"umask 027; {parbake} {words}"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "--version",
        "--help",
        "bake --help",
        "list --json",
        "show nothing",
        "plan",
        "no-such-command",
        "schema",
        "init .",
    ],
)
def test_it_says_the_same_with_the_same_code(words: str, preloaded: str, tmp_path: Path) -> None:
    text = "version: 1\nname: a\nbase: none\noutput: made\nimages: ['127.0.0.1:1/app:1']\n"
    answers = []
    for name, parbake in (("copy", preloaded), ("program", f"{sys.executable} -m parbake")):
        folder = tmp_path / name / "here"
        folder.mkdir(parents=True)
        if "init" not in words:
            (folder / "parbake.yaml").write_text(text)
        said = told(parbake, words, folder, {"PARBAKE_CACHE": str(tmp_path / name / "cache")})
        answers.append((said, [(path.name, path.stat().st_mode) for path in sorted(folder.iterdir())]))
    copied, started = answers
    assert str(copied) == str(started).replace("python -m parbake", "parbake").replace("/program/", "/copy/")


def test_what_it_is_given_is_its_callers(preloaded: str, tmp_path: Path) -> None:
    """Standard input, too."""
    code, out, _ = told(f"echo '{{}}' | {preloaded}", "lint - --json", tmp_path, {})
    again = told(f"echo '{{}}' | {sys.executable} -m parbake", "lint - --json", tmp_path, {})
    assert (code, out) == again[:2]
