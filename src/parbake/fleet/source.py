"""Where workers get the Bakefiles: a folder that they have, or one commit of a repository, which is fetched once."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from parbake.core.errors import InputError
from parbake.core.run import run
from parbake.core.sealed import bind, is_bound
from parbake.core.workspace import WORK, cache_folder, lock, part_of, publish, remove_tree, work_folder
from parbake.fleet.engine.tasks import Root

if TYPE_CHECKING:
    from parbake.fleet.file import Source

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 300.0


def pinned(source: Source | None, folder: Path) -> Root:
    """Return where the Bakefiles of a run are: the folder, or the commit that ``source`` names now.

    Raises InputError where the repository has no such branch or tag, CommandFailed where it cannot be asked.
    """
    if source is None:
        return Root(folder=str(folder.absolute()))
    if _COMMIT.fullmatch(source.ref):
        return Root(git=source.git, commit=source.ref)
    answer = run(["git", "ls-remote", "--", source.git, source.ref, f"{source.ref}^{{}}"], timeout=_TIMEOUT).text
    found = {name: commit for commit, _, name in (line.partition("\t") for line in answer.splitlines())}
    for name in (f"refs/heads/{source.ref}", f"refs/tags/{source.ref}^{{}}", f"refs/tags/{source.ref}", "HEAD"):
        if name in found and (name != "HEAD" or source.ref == "HEAD"):
            return Root(git=source.git, commit=found[name])
    raise InputError(f"{source.git} has no branch or tag {source.ref}", hint="correct `source.ref`, or name a commit")


def checked_out(root: Root) -> Path:
    """Return the folder of a root; a commit is fetched into the cache when it is not there.

    Raises InputError for a folder that is not there, CommandFailed where the commit cannot be fetched.
    """
    if not root.git:
        folder = Path(root.folder)
        if not folder.is_dir():
            raise InputError(
                f"there is no folder {folder} on this machine",
                hint="write `source` into the fleet's file, so that every machine gets the Bakefiles",
            )
        return folder
    if not _COMMIT.fullmatch(root.commit):
        raise InputError(f"{root.commit!r} is not a commit")
    places = part_of(cache_folder(), "fleet-sources")
    place = part_of(places, hashlib.sha256(root.git.encode()).hexdigest()[:16]) / root.commit
    if is_bound(place):
        return place
    with lock(places / WORK / f"{place.parent.name}.lock", what=root.git), work_folder(places, "source") as work:
        if is_bound(place):
            return place
        remove_tree(place)
        made = work / "commit"
        run(["git", "init", "--quiet", str(made)])
        git = ["git", "-C", str(made)]
        run([*git, "fetch", "--quiet", "--depth", "1", "--", root.git, root.commit], timeout=_TIMEOUT)
        run([*git, "checkout", "--quiet", "FETCH_HEAD"])
        publish(made, place, mode=0o600)
        bind(place)
    return place
