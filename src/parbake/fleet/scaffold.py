"""``parbake fleet init``: a commented file of the Bakefiles that lie below a folder."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

from parbake.bakefile.values import valid_name
from parbake.core import atomic
from parbake.core.errors import InputError
from parbake.core.model import Platform
from parbake.fleet.file import DEFAULT_FILE

_MODE = 0o644
_PLAIN = re.compile(r"[A-Za-z0-9._/-]+")


def write(folder: Path, *, force: bool = False) -> Path:
    """Write ``fleet.yaml`` for the Bakefiles (``parbake.yaml``) below a folder; return its path.

    Raises InputError when there is none, or when the file exists (unless ``force``).
    """
    path = folder / DEFAULT_FILE
    if path.exists() and not force:
        raise InputError(f"{path} exists", hint="--force replaces it")
    found = sorted(each.relative_to(folder) for each in folder.rglob("parbake.yaml") if not _hidden(each, folder))
    if not found:
        raise InputError(f"there is no Bakefile below {folder}", hint="`parbake init FOLDER` writes one")
    text = (files("parbake.fleet") / "files/fleet.yaml.in").read_text()
    atomic.replace(
        path,
        text.format(
            name=valid_name(folder.absolute().name) or "fleet",
            architecture=Platform.host().architecture,
            bakefiles="\n".join(f"  - {_quoted(str(each))}" for each in found),
        ),
        mode=_MODE,
    )
    return path


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
