"""Make a release of what is committed here; `make release` runs it. Nothing leaves this machine: pushing is yours.

It refuses a work tree with changes, a changelog without the version and its day, and a version that has a tag. Then it
builds the wheel and the container image, and tags the commit. With ``--dry-run`` it checks, and shows the commands.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
import sys
from pathlib import Path

from parbake.core.errors import InputError, ParbakeError
from parbake.core.run import run

_VERSION = re.compile(r'^version = "([0-9]+\.[0-9]+\.[0-9]+)"$', re.MULTILINE)
_CODE_VERSION = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)


def version_of(folder: Path) -> str:
    """Return the version to release; raises InputError where package and program disagree, or anything is not ready."""
    found = _VERSION.findall((folder / "pyproject.toml").read_text())
    if len(found) != 1:
        raise InputError("pyproject.toml has no version such as 1.2.0", hint='write version = "1.2.0"')
    version = str(found[0])
    (code,) = _CODE_VERSION.findall((folder / "src/parbake/__init__.py").read_text())
    if code != version:
        raise InputError(
            f"pyproject.toml says {version}, and src/parbake/__init__.py {code}", hint="write the same into both"
        )
    _need_changes(folder, version)
    if changed := _git(folder, "status", "--porcelain"):
        raise InputError(f"the work tree has changes:\n{changed}", hint="commit them, or take them back")
    if _git(folder, "tag", "--list", f"v{version}"):
        raise InputError(f"there is a tag v{version}", hint="raise the version in pyproject.toml and __init__.py")
    return version


def _need_changes(folder: Path, version: str) -> None:
    """Raise InputError unless the changelog says what is new in a version, under the day of its release."""
    head = f"## [{version}] - "
    day, _, changes = (folder / "CHANGELOG.md").read_text().partition(head)[2].partition("\n")
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", day):
        raise InputError(
            f"CHANGELOG.md has no line `{head}YYYY-MM-DD`" + (f": it says {day!r}" if day else ""),
            hint="write the day of the release there, above what is new",
        )
    if not re.search(r"^- ", changes.partition("\n## ")[0], re.MULTILINE):
        raise InputError(
            f"CHANGELOG.md says nothing of what is new in {version}", hint="write it in lines that start with -"
        )


def commands(folder: Path, version: str) -> list[list[str]]:
    """Return what makes the release: a wheel with the same bytes on each machine, an image, and the tag last."""
    moment = _git(folder, "log", "-1", "--format=%ct")
    return [
        ["env", f"SOURCE_DATE_EPOCH={moment}", sys.executable, "-m", "hatchling", "build", "--target", "wheel"],
        ["buildah", "build", "--timestamp", moment, "-f", "deploy/Containerfile", "-t", f"parbake:{version}", "."],
        ["git", "tag", "--annotate", f"v{version}", "--message", f"parbake {version}"],
    ]


def release(folder: Path, *, dry_run: bool) -> list[str]:
    """Release what is committed in a folder; return what to tell. Raises InputError, CommandFailed."""
    version = version_of(folder)
    told = [f"parbake {version}, commit {_git(folder, 'rev-parse', '--short', 'HEAD')}"]
    for command in commands(folder, version):
        told.append(("would run: " if dry_run else "ran: ") + shlex.join(command))
        if not dry_run:
            run(command, cwd=folder, timeout=3600)
    if not dry_run:
        wheel = folder / "dist" / f"parbake-{version}-py3-none-any.whl"
        told.append(f"{hashlib.sha256(wheel.read_bytes()).hexdigest()}  {wheel.relative_to(folder)}")
    return [*told, f"then: git push origin v{version}"]


def _git(folder: Path, *arguments: str) -> str:
    return run(["git", *arguments], cwd=folder).text.strip()


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description="Check, build and tag a release of what is committed here.")
    parser.add_argument("--dry-run", action="store_true", help="check, and show what would be run")
    try:
        told = release(Path.cwd(), dry_run=parser.parse_args().dry_run)
    except ParbakeError as error:
        sys.stderr.write(f"{error.message}\n  next: {error.hint}\n")
        return error.exit_code
    sys.stdout.write("\n".join(told) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
