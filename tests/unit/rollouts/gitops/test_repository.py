"""Commits by the real git, in repositories of the test's own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from parbake.core.errors import InputError
from parbake.rollouts.gitops import Edit, Repository, write


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["/usr/bin/git", "-C", str(folder), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # nobody's settings, and nobody to commit as
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))  # as in a hook of another repository
    folder = tmp_path / "repo"
    (folder / "nodes").mkdir(parents=True)
    (folder / "nodes/class.yaml").write_bytes(b"ami: ami-1\r\n")
    (folder / "nodes/run.sh").write_text("#!/bin/sh\n")
    (folder / "nodes/run.sh").chmod(0o755)
    (folder / "notes.json").write_text("{}")
    (folder / "latin.yaml").write_bytes(b"a: \xe9")
    monkeypatch.delenv("GIT_DIR")
    git(tmp_path, "init", "-q", "-b", "main", str(folder))
    git(folder, "add", ".")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "one")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    found = Repository.open(folder / "nodes" / "class.yaml")
    monkeypatch.delenv("GIT_DIR")
    assert found.folder == folder
    return found


EDIT = Edit("nodes/class.yaml", "ami: ami-1\r\n", "ami: ami-2\r\n")


BRANCH = "parbake/search"


def test_a_branch_gets_a_commit_and_the_work_tree_stays(repository: Repository) -> None:
    repository.commit(EDIT, message="bake ami-2", branch=BRANCH)
    assert repository.read("nodes/class.yaml", BRANCH) == "ami: ami-2\r\n"
    assert (repository.folder / "nodes/class.yaml").read_bytes() == b"ami: ami-1\r\n"
    assert repository.head() == "main"
    assert git(repository.folder, "status", "--porcelain") == ""
    assert git(repository.folder, "log", "-1", "--format=%s|%an|%P", BRANCH) == (
        f"bake ami-2|parbake|{git(repository.folder, 'rev-parse', 'main')}"
    )
    # Only the one file differs, and modes stay.
    assert git(repository.folder, "diff", "--name-only", "main", BRANCH) == "nodes/class.yaml"
    # Once more: on top of the branch as it is.
    repository.commit(Edit(EDIT.path, EDIT.after, "ami: ami-3\r\n"), message="bake ami-3", branch=BRANCH)
    repository.commit(Edit(EDIT.path, "x", "x"), message="nothing", branch=BRANCH)
    assert git(repository.folder, "rev-list", "--count", f"main..{BRANCH}") == "2"


def test_the_branch_that_is_checked_out(repository: Repository) -> None:
    (repository.folder / "notes.json").write_text("{ }")  # of the user: neither committed nor lost
    repository.commit(EDIT, message="bake ami-2", branch="main")
    assert git(repository.folder, "log", "-1", "--format=%s", "main") == "bake ami-2"
    assert git(repository.folder, "status", "--porcelain") == "M notes.json"
    assert (repository.folder / EDIT.path).read_bytes() == b"ami: ami-2\r\n"
    (repository.folder / EDIT.path).write_text("ami: mine\n")
    with pytest.raises(InputError, match="changes that are not committed"):
        repository.commit(Edit(EDIT.path, "ami: mine\n", "ami: ami-3\n"), message="x", branch="main")


def test_what_changed_in_the_meantime_is_not_overwritten(repository: Repository) -> None:
    repository.commit(EDIT, message="first", branch="b")
    with pytest.raises(InputError, match="branch b was changed in the meantime"):
        repository.commit(EDIT, message="second, from the same beginning", branch="b")
    with pytest.raises(InputError, match="was changed in the meantime"):
        write(repository.folder, Edit(EDIT.path, "something else", "new"))
    git(repository.folder, "worktree", "add", "-q", str(repository.folder.parent / "tree"), "b")
    with pytest.raises(InputError, match="checked out in another work tree"):
        repository.commit(Edit(EDIT.path, EDIT.after, "x"), message="x", branch="b")


def test_what_lies_beside_a_file_is_what_git_knows(repository: Repository) -> None:
    (repository.folder / "nodes" / "new.yaml").write_text("a: 1\n")
    assert repository.beside("nodes/class.yaml", "main") == ("nodes/class.yaml", "nodes/run.sh")
    assert {"nodes", "notes.json"} <= set(repository.beside("notes.json", "main"))


def test_a_patch_is_what_git_applies(repository: Repository) -> None:
    edits = [EDIT, Edit("notes.json", "{}", '{"a": 1}'), Edit("latin.yaml", "same", "same")]
    (repository.folder.parent / "all.patch").write_bytes("".join(edit.diff for edit in edits).encode())
    git(repository.folder, "apply", str(repository.folder.parent / "all.patch"))
    assert (repository.folder / "notes.json").read_text() == '{"a": 1}'
    assert (repository.folder / EDIT.path).read_bytes() == EDIT.after.encode()


def test_writing_keeps_links_and_modes(repository: Repository) -> None:
    (repository.folder / "link.sh").symlink_to("nodes/run.sh")
    write(repository.folder, Edit("link.sh", "#!/bin/sh\n", "#!/bin/sh\ntrue\n"))
    assert (repository.folder / "link.sh").is_symlink()
    assert (repository.folder / "nodes/run.sh").read_text() == "#!/bin/sh\ntrue\n"
    assert (repository.folder / "nodes/run.sh").stat().st_mode & 0o777 == 0o755
    assert {path.name for path in repository.folder.iterdir()} == {
        ".git", "nodes", "notes.json", "latin.yaml", "link.sh"}  # fmt: skip


def test_where_there_is_no_repository_or_no_file(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not in a git repository"):
        Repository.open(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        Repository.open(tmp_path / "gone" / "file.yaml")
    with pytest.raises(InputError, match=r"there is no file gone.yaml in branch main"):
        repository.read("gone.yaml", "main")
    with pytest.raises(InputError, match=r"latin.yaml is not UTF-8"):
        repository.read("latin.yaml", "main")
