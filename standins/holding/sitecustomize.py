"""Holds a bake at a moment, for tests that kill or freeze it there: in a folder of PYTHONPATH, with PARBAKE_HOLDS.

PARBAKE_HOLDS is a folder. A file ``NAME`` in it has three words: the Bakefile that is baked, an audit event of Python
(docs.python.org, "Audit events table"), and how one of the event's words ends, as a regular expression. Each bake that
comes there leaves ``NAME.reached``, and stays until ``NAME`` is removed: a second try too, where a busy machine has
cost the first one.

Choose a moment at which nothing is locked that other bakes need: they would never come to theirs.
"""

from __future__ import annotations

import os
import re
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
    holds: dict[str, list[tuple[Path, re.Pattern[str]]]] = {}
    for path in folder.iterdir():
        if path.suffix != ".reached":
            try:
                bakefile, event, end = path.read_text().split()
            except FileNotFoundError:  # it has just been let go
                continue
            if bakefile in sys.orig_argv:
                holds.setdefault(event, []).append((path, re.compile(f"(?:{end})$")))

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        for path, end in holds.get(event, ()):
            if any(end.search(word) for word in _words(arguments)):
                _stay(path)

    if holds:
        sys.addaudithook(watch)


def _stay(path: Path) -> None:
    path.with_name(f"{path.name}.reached").touch()
    while path.exists():
        time.sleep(0.02)


if "bake" in sys.orig_argv and "PARBAKE_HOLDS" in os.environ:
    _install(Path(os.environ["PARBAKE_HOLDS"]))
