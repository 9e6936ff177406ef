"""What ``parbake init`` writes: a commented Bakefile that works as it stands, and a sample application if need be.

In the Bakefile's text, ``#key`` without a space is a key that can be switched on by removing the ``#``.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from importlib import resources
from pathlib import Path

from parbake.core import atomic
from parbake.core.errors import DiskFull, EnvironmentProblem, InputError
from parbake.core.reference import Reference
from parbake.core.units import human_size

FILE_NAME = "parbake.yaml"
SAMPLE = "hello"
"""The folder of the sample application."""

_BUILD_FILES = ("Containerfile", "Dockerfile")
_MOST_USES = 3
_IGNORE_FILES = (".dockerignore", ".containerignore")  # docker reads the first; buildah and podman read both
# Artefacts in the build context would be copied by `COPY .`, and change the image with every bake.
_IGNORED = f"artefacts\n{FILE_NAME}\n"


@dataclass(frozen=True, slots=True)
class InitImage:
    """An image for the starter.

    ``size`` is what travels, in bytes (0: unknown). ``build`` is the folder to build it in, relative to the Bakefile.
    ``log`` is the regular expression of the line that says it is up. ``uses`` says who runs it, for people, and
    ``on_every_node`` that a DaemonSet does; ``only_mounted`` that no container runs it, and pods have it as a volume.
    """

    reference: str
    size: int = 0
    build: str = ""
    log: str = ""
    uses: tuple[str, ...] = ()
    on_every_node: bool = False
    only_mounted: bool = False


def starter(images: Sequence[InitImage], *, today: date) -> str:
    """Return a commented Bakefile for these images that works as it stands.

    An image that is there twice under the same normalised name is written once. Raises BadReference, and InputError
    when there is no image.
    """
    distinct = {str(Reference.parse(entry.reference)): entry for entry in reversed(images)}
    if not distinct:
        raise InputError("there is no image to bake", hint="name one with --image, or a folder of manifests")
    entries = sorted(distinct.values(), key=list(images).index)
    text = _file("parbake.yaml.in").decode().replace("{today}", today.isoformat())
    return text.replace("{images}", "\n".join(_entry(entry) for entry in entries))


def _file(name: str) -> bytes:
    return resources.files(__package__).joinpath("files", name).read_bytes()


def _entry(entry: InitImage) -> str:
    lines = ["  # On every node, and first: worth the most in a bake."] if entry.on_every_node else []
    lines += [f"  # {_printable(use)}" for use in entry.uses[:_MOST_USES]]
    if len(entry.uses) > _MOST_USES:
        lines.append(f"  # and {len(entry.uses) - _MOST_USES} more")
    size = f" # {human_size(entry.size)} compressed" if entry.size else ""
    # `null` is a good name for an image, and nothing in YAML.
    reference = entry.reference if entry.reference != "null" else _quoted(entry.reference)
    if not entry.build and not entry.log and not entry.only_mounted:
        return "\n".join([*lines, f"  - {reference}{size}"])
    lines.append(f"  - reference: {reference}{size}")
    if entry.build:
        lines.append(f"    build: {{context: {_quoted(entry.build)}}}")
    if entry.log:
        lines.append(f"    startup: {{up: {{log: {_quoted(entry.log)}}}}}")
    elif entry.only_mounted:
        lines.append("    startup: {up: mounted}")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def discover(folder: Path) -> tuple[InitImage, ...]:
    """Return the image that a folder's own Containerfile (or Dockerfile) builds, or nothing."""
    if not any((folder / name).is_file() for name in _BUILD_FILES):
        return ()
    # What is left has no separator at its ends and none of two kinds in a row, as a repository's grammar asks.
    name = re.sub(r"[^a-z0-9]+", "-", folder.absolute().name.lower()).strip("-")[:100].rstrip("-")
    return (InitImage(f"localhost/{name or 'app'}:1", build="."),)


def write(
    folder: Path,
    images: Sequence[InitImage] = (),
    *,
    today: date,
    force: bool = False,
    busybox: Path = Path("/bin/busybox"),
) -> tuple[Path, ...]:
    """Write a Bakefile into a folder (created if missing) and return all that was written, the Bakefile last.

    Without ``images`` the folder's own Containerfile is used (a ``.dockerignore`` keeps artefacts out of its build),
    and without one a sample application is written that builds from the static ``busybox`` without any network. Raises
    InputError when a file is there already (unless ``force``), EnvironmentProblem without a static busybox or a
    writable folder, DiskFull. A failure leaves nothing; what a killed run left is finished by running again.
    """
    files: dict[Path, tuple[bytes, int]] = {}
    entries = tuple(images) or discover(folder)
    if not images and entries and not any((folder / name).exists() for name in _IGNORE_FILES):
        files[folder / _IGNORE_FILES[0]] = (_IGNORED.encode(), 0o644)
    if not entries:
        files = {folder / SAMPLE / name: content for name, content in _sample(busybox).items()}
        entries = (InitImage(f"localhost/{SAMPLE}:1", build=SAMPLE, log="^hello: ready"),)
    files[folder / FILE_NAME] = (starter(entries, today=today).encode(), 0o644)
    present = [str(path) for path, (content, _) in files.items() if _is_anothers(path, content)]
    if present and not force:
        raise InputError(
            f"{', '.join(present)}: there already", hint="use --force to overwrite, or start in an empty folder"
        )
    made: list[Path] = []
    try:
        _make_folders(folder, made)
        for path, (content, mode) in files.items():
            _make_folders(path.parent, made)
            _write(path, content, mode, made, beneath=folder)
    except OSError as error:
        _undo(made)
        where = f"{error.filename or folder}: {error.strerror}"
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(f"cannot write {where}", hint="free some space, or choose another folder") from None
        raise EnvironmentProblem(f"cannot write {where}", hint="choose a folder that you may write to") from None
    except BaseException:
        _undo(made)
        raise
    return tuple(files)


def _make_folders(folder: Path, made: list[Path]) -> None:
    if not folder.is_dir():
        _make_folders(folder.parent, made)
        folder.mkdir()
        made.append(folder)


def _is_anothers(path: Path, content: bytes) -> bool:
    """Whether a file is there that is not ours from a run that was killed before it wrote the Bakefile, its last."""
    if not os.path.lexists(path):
        return False
    try:
        return path.name == FILE_NAME or path.is_symlink() or path.read_bytes() != content
    except OSError:
        return True


def _write(path: Path, content: bytes, mode: int, made: list[Path], *, beneath: Path) -> None:
    if not os.path.lexists(path):
        made.append(path)
    atomic.replace(path, content, mode=mode, beneath=beneath)


def _undo(made: list[Path]) -> None:
    for path in reversed(made):
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


def _sample(busybox: Path) -> dict[str, tuple[bytes, int]]:
    """Return the files of the sample application: content and mode by name."""
    if not is_static_program(busybox):
        raise EnvironmentProblem(
            f"the sample application needs a statically linked busybox, and {busybox} is not",
            hint="apt-get install busybox-static, or name an image with --image REFERENCE",
        )
    return {
        "Containerfile": (_file("Containerfile"), 0o644),
        "busybox": (busybox.read_bytes(), 0o755),
        "index.html": (_file("index.html"), 0o644),
        "serve.sh": (_file("serve.sh"), 0o644),
    }


def is_static_program(path: Path) -> bool:
    """Whether a file is an ELF program that asks for no interpreter (no PT_INTERP; System V ABI, chapter 5)."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
            wide, order = head[4:5] == b"\x02", "<" if head[5:6] == b"\x01" else ">"
            if head[:4] != b"\x7fELF" or len(head) < (64 if wide else 52):
                return False
            (offset,) = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", head, 32 if wide else 28)
            size, count = struct.unpack_from(f"{order}HH", head, 54 if wide else 42)
            file.seek(offset)
            headers = file.read(size * count)
    except (OSError, ValueError, OverflowError):
        return False
    if size < 4 or not count or len(headers) < size * count:
        return False
    return all(struct.unpack_from(f"{order}I", headers, index * size)[0] != _PT_INTERP for index in range(count))


_PT_INTERP = 3
