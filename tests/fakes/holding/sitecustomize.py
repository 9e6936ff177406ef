"""Holds a bake at a moment, for tests that kill or freeze it there: in a folder of PYTHONPATH, with PARBAKE_HOLDS.

PARBAKE_HOLDS is a folder. A file ``NAME`` in it has three words: the Bakefile that is baked, an audit event of Python
(docs.python.org, "Audit events table"), and how one of the event's words ends. The first bake that passes there leaves
``NAME.reached`` with its process id, and stays until ``NAME`` is removed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def _words(arguments: tuple[object, ...]) -> list[str]:
    found: list[str] = []
    for each in arguments:
        if isinstance(each, list | tuple):
            found += _words(tuple(each))
        elif isinstance(each, str | bytes | os.PathLike):
            found.append(f"/{os.fsdecode(each)}")  # a name that is relative to an opened folder stands alone
    return found


def _install(folder: Path) -> None:
    holds: dict[str, list[tuple[Path, str]]] = {}
    for path in folder.iterdir():
        if path.suffix != ".reached" and not path.name.startswith("."):
            bakefile, event, end = path.read_text().split()
            if bakefile in sys.orig_argv:
                holds.setdefault(event, []).append((path, end))

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        for path, end in holds.get(event, ()):
            if any(word.endswith(end) for word in _words(arguments)):
                _stay(path)

    if holds:
        sys.addaudithook(watch)


def _stay(path: Path) -> None:
    draft, reached = path.with_name(f".{path.name}.{os.getpid()}"), path.with_name(f"{path.name}.reached")
    draft.write_text(str(os.getpid()))
    try:
        os.link(draft, reached)
    except FileExistsError:  # another one was first
        return
    finally:
        draft.unlink()
    while path.exists():
        time.sleep(0.02)


if "bake" in sys.orig_argv and "PARBAKE_HOLDS" in os.environ:
    _install(Path(os.environ["PARBAKE_HOLDS"]))
