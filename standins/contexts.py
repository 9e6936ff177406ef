"""Build contexts written from a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Spec:
    context: Path
    file: Path
    args: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    network: Literal["private", "host", "none"] | None = None
    compression: Literal["zstd", "gzip"] = "zstd"


def write_files(folder: Path, files: Mapping[str, str | bytes | None]) -> None:
    """Write files below a folder; None makes a folder."""
    for name, content in files.items():
        path = folder / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def spec(folder: Path, containerfile: str, files: Mapping[str, str | bytes | None]) -> Spec:
    """Write a context (its Containerfile included) and return its specification."""
    folder.mkdir(parents=True, exist_ok=True)
    write_files(folder, {"Containerfile": containerfile, **files})
    return Spec(folder, folder / "Containerfile")
