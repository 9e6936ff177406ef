"""An edit as a patch, in its file, or as a commit on a branch of a git repository.

A branch that is not checked out gets its commit without a look at the work tree: blobs, a tree and a commit are written
as objects, and the branch is moved only from where it was read (``git update-ref`` with the old value).
Sources: git-hash-object(1), git-update-index(1), git-commit-tree(1), git-update-ref(1).
"""

from __future__ import annotations

import difflib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from parbake.core import atomic, run
from parbake.core.errors import CommandFailed, InputError

_GIT_SECONDS = 120.0
_NOBODY = {"NAME": "parbake", "EMAIL": "parbake@localhost"}


@dataclass(frozen=True, slots=True)
class Edit:
    """A file before and after. ``path`` is relative to the repository (or to where the patch is applied)."""

    path: str
    before: str
    after: str

    @property
    def changes(self) -> bool:
        """Whether anything is different."""
        return self.before != self.after

    @property
    def diff(self) -> str:
        """The difference as a unified diff, as ``git apply`` and ``patch -p1`` take it; empty when there is none."""
        old, new = self.before.splitlines(keepends=True), self.after.splitlines(keepends=True)
        lines = difflib.unified_diff(old, new, f"a/{self.path}", f"b/{self.path}")
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def write(folder: Path, edit: Edit) -> None:
    """Write an edit into its file below a folder, beside and renamed.

    Mode and owner of the file stay, and a link stays a link. Raises InputError when the file is no longer what the edit
    began with, or lies elsewhere (``inside``).
    """
    top, path = inside(folder / edit.path)
    if path.read_bytes() != edit.before.encode():
        raise InputError(f"{folder / edit.path} was changed in the meantime", hint="run the same command again")
    status = path.stat()
    owner = status.st_uid, status.st_gid
    atomic.replace(path, edit.after, mode=stat.S_IMODE(status.st_mode), owner=owner, beneath=top)


def inside(path: Path) -> tuple[Path, Path]:
    """Return the folder that a manifest belongs to, and where the manifest itself lies; both without links.

    The folder is the work tree of the git repository that the path is in, by its words, or else the one that the
    manifest is in. Raises InputError for a manifest that is a link out of it, or lies behind one: whoever can write to
    the repository would choose what is read and changed elsewhere.
    """
    path = path.absolute()
    # In a submodule that is two: a folder that is a link may have a repository of its own behind it.
    tops = [folder for folder in path.parents if os.path.lexists(folder / ".git")] or [path.parent]
    tops, found = [Path(os.path.realpath(top)) for top in tops], Path(os.path.realpath(path))
    for top in tops:
        if not found.is_relative_to(top) or ".git" in found.relative_to(top).parts:
            raise InputError(f"{path} leads to {found}, which is not a manifest in {top}", hint="name the file itself")
    return tops[0], found


class Repository:
    """A git repository with a work tree at ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """Find the repository that a path is in; raises InputError when it is in none."""
        inside = path if path.is_dir() else path.parent
        if not inside.is_dir():
            raise InputError(f"there is no folder {inside}", hint="name the folder of a git repository")
        try:
            top = run.run(["git", "rev-parse", "--show-toplevel"], cwd=inside, env=_environment()).text
        except CommandFailed as error:
            raise InputError(
                f"{path} is not in a git repository: {error.output}", hint="name another folder"
            ) from error
        return cls(Path(top))

    def head(self) -> str:
        """Return the branch that is checked out; empty where HEAD is detached."""
        return self._git("symbolic-ref", "--quiet", "--short", "HEAD", check=False)

    def read(self, path: str, branch: str) -> str:
        """Return a file as a branch has it; a new branch begins as HEAD.

        Raises InputError when there is no such file, or when it is not UTF-8.
        """
        try:
            return self._run("cat-file", "blob", f"{self._tip(branch) or 'HEAD'}:{path}").stdout.decode()
        except CommandFailed as error:
            hint = "name a file of the repository"
            raise InputError(f"there is no file {path} in branch {branch}", hint=hint) from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 at byte {error.start}", hint="save it as UTF-8") from error

    def beside(self, path: str, branch: str) -> tuple[str, ...]:
        """Return the paths of the files in the same folder as a branch has it; a new one begins as HEAD."""
        folder = path.rpartition("/")[0]
        listed = self._git(
            "ls-tree", "-z", "--name-only", self._tip(branch) or "HEAD", "--", f"{folder}/" if folder else "."
        )
        return tuple(filter(None, listed.split("\0")))

    def commit(self, edit: Edit, *, message: str, branch: str) -> None:
        """Commit an edit on a branch, which is made from HEAD when it does not exist.

        The edit must have begun with that branch's file (``read``). Raises InputError when the file or the branch was
        changed meanwhile, or is changed and not committed.
        """
        if edit.changes:
            (self._commit_here if branch == self.head() else self._commit_elsewhere)(edit, message, branch)

    def _commit_here(self, edit: Edit, message: str, branch: str) -> None:
        if dirty := self._git("status", "--porcelain", "--", edit.path):
            raise InputError(
                f"{self.folder} has changes that are not committed on {branch}: {dirty}",
                hint="commit or stash them, then run again",
            )
        write(self.folder, edit)
        self._git("commit", "--quiet", "--only", "--file", "-", "--", edit.path, stdin=message, who=True)

    def _commit_elsewhere(self, edit: Edit, message: str, branch: str) -> None:
        self._git("check-ref-format", "--branch", branch)
        listed = self._git("worktree", "list", "--porcelain")
        if f"branch refs/heads/{branch}" in listed.splitlines():
            raise InputError(f"the branch {branch} is checked out in another work tree", hint="run the command there")
        old = self._tip(branch)
        parent = old or self._git("rev-parse", "HEAD^{commit}")
        with tempfile.TemporaryDirectory(prefix="parbake-git-") as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
            self._git("read-tree", parent, env=index)
            if self.read(edit.path, branch) != edit.before:
                raise _moved(branch)
            blob = self._git("hash-object", "-w", "--no-filters", "--stdin", stdin=edit.after)
            mode = self._git("ls-tree", parent, "--", edit.path).split(" ", 1)[0]
            self._git("update-index", "--cacheinfo", f"{mode},{blob},{edit.path}", env=index)
            tree = self._git("write-tree", env=index)
        signed = ["-S"] if self._git("config", "--type=bool", "commit.gpgsign", check=False) == "true" else []
        made = self._git("commit-tree", *signed, tree, "-p", parent, "-F", "-", stdin=message, who=True)
        try:
            self._git("update-ref", "-m", "parbake", f"refs/heads/{branch}", made, old or "0" * len(made))
        except CommandFailed as error:
            raise _moved(branch) from error

    def _tip(self, branch: str) -> str:
        return self._git("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}^{{commit}}", check=False)

    def _git(
        self, *words: str, stdin: str | None = None, env: dict[str, str] | None = None, check: bool = True,
        who: bool = False,
    ) -> str:  # fmt: skip
        extra = {**(env or {}), **(self._somebody() if who else {})}
        return self._run(*words, stdin=stdin, env=extra, check=check).text

    def _run(
        self, *words: str, stdin: str | None = None, env: dict[str, str] | None = None, check: bool = True
    ) -> run.Result:
        given = None if stdin is None else stdin.encode()
        environment = {**_environment(), **(env or {})}
        command = ["git", *words]
        return run.run(command, cwd=self.folder, stdin=given, env=environment, check=check, timeout=_GIT_SECONDS)

    def _somebody(self) -> dict[str, str]:
        """Return a name to commit under where git knows none, as on machines of CI."""
        if self._run("var", "GIT_COMMITTER_IDENT", check=False).code == 0:
            return {}
        return {f"GIT_{role}_{part}": value for role in ("AUTHOR", "COMMITTER") for part, value in _NOBODY.items()}


def _moved(branch: str) -> InputError:
    return InputError(f"the branch {branch} was changed in the meantime", hint="run the same command again")


def _environment() -> dict[str, str]:
    """Return the user's environment, since git, ssh and their helpers have settings there; but no other repository."""
    steering = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE", "GIT_PREFIX"}
    return {**{key: value for key, value in os.environ.items() if key not in steering}, "LC_ALL": "C.UTF-8"}
