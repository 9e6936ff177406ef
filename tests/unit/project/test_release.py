"""A release is made of what is committed, with its changes written down, once; a dry run changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from parbake.core.errors import InputError
from parbake.core.run import run
from tools.release import release

FILES = {
    "pyproject.toml": '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
    '[project]\nname = "parbake"\nversion = "1.2.0"\nrequires-python = ">=3.12"\n'
    '[tool.hatch.build.targets.wheel]\npackages = ["src/parbake"]\n',
    "src/parbake/__init__.py": '__version__ = "1.2.0"\n',
    "CHANGELOG.md": "# Changes\n\n## [1.2.0] - 2026-12-03\n\n- More.\n\n## [1.1.0] - 2026-11-01\n\n- Less.\n",
    ".gitignore": "/dist/\n",
}


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    return run(["git", *who, *arguments], cwd=folder).text.strip()


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "Changes")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder, programs = tmp_path / "project", tmp_path / "bin"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "init", "-q")
    commit(folder)
    programs.mkdir()
    (programs / "buildah").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/built\n')
    (programs / "buildah").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@example.com")
    return folder


def test_a_dry_run_shows_what_would_be_run_and_changes_nothing(project: Path, tmp_path: Path) -> None:
    told = "\n".join(release(project, dry_run=True))
    assert told.startswith(
        f"parbake 1.2.0, commit {git(project, 'rev-parse', '--short', 'HEAD')}\nwould run: env SOURCE"
    )
    assert [word in told for word in ("hatchling build", "-t parbake:1.2.0", "v1.2.0 --message")] == [True] * 3
    assert (git(project, "tag"), (project / "dist").exists(), (tmp_path / "built").exists()) == ("", False, False)


def test_a_release_builds_a_wheel_and_an_image_and_tags_the_commit(project: Path, tmp_path: Path) -> None:
    told = release(project, dry_run=False)
    wheel = project / "dist/parbake-1.2.0-py3-none-any.whl"
    first = wheel.read_bytes()
    assert [told[-2].endswith("dist/parbake-1.2.0-py3-none-any.whl"), told[-1]] == [
        True,
        "then: git push origin v1.2.0",
    ]
    assert "-f deploy/Containerfile -t parbake:1.2.0 ." in (tmp_path / "built").read_text()
    assert git(project, "rev-parse", "v1.2.0^{commit}") == git(project, "rev-parse", "HEAD")
    with pytest.raises(InputError, match=r"there is a tag v1\.2\.0"):
        release(project, dry_run=False)
    git(project, "tag", "--delete", "v1.2.0")
    release(project, dry_run=False)
    assert wheel.read_bytes() == first, "the same commit gives the same bytes"


def unfinished(folder: Path) -> None:
    text = (folder / "CHANGELOG.md").read_text()
    (folder / "CHANGELOG.md").write_text(text.replace("2026-12-03", "Unreleased"))
    commit(folder)


def silent(folder: Path) -> None:
    text = (folder / "CHANGELOG.md").read_text()
    (folder / "CHANGELOG.md").write_text(text.replace("- More.\n", ""))
    commit(folder)


def of_another_program(folder: Path) -> None:
    (folder / "src/parbake/__init__.py").write_text('__version__ = "1.1.0"\n')
    commit(folder)


def changed(folder: Path) -> None:
    (folder / "notes.txt").touch()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (unfinished, "no line `## .1.2.0. - YYYY-MM-DD`: it says 'Unreleased'"),
        (silent, "says nothing of what is new in 1.2.0"),
        (of_another_program, "pyproject.toml says 1.2.0, and src/parbake/__init__.py 1.1.0"),
        (changed, "the work tree has changes:\n.. notes.txt"),
    ],
)
def test_what_is_not_ready_is_refused(project: Path, make: Callable[[Path], None], says: str) -> None:
    make(project)
    with pytest.raises(InputError, match=says):
        release(project, dry_run=True)
