"""What ``parbake init`` writes: a commented Bakefile that works as it stands, and a sample application if need be.

In the Bakefile's text, ``#key`` without a space is a key that can be switched on by removing the ``#``.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
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
_MOST_TO_FILL = 40
_LONGEST_COMMENT = 200
_PLAIN = re.compile(r"(--?(?=[A-Za-z]))?[A-Za-z0-9_./][A-Za-z0-9_./=@%+-]*(:[A-Za-z0-9_./=@%+-]+)*")
# What YAML, of either version, or its readers take for something else than text.
_NO_TEXT = re.compile(
    r"(?i)[-+.0-9][-+.:0-9_ex]*|0[xob].*|[0-9]{4}-.*|y|yes|n|no|on|off|true|false|null|~|\\.(inf|nan)"
)
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0"}
_IGNORE_FILES = (".dockerignore", ".containerignore")  # docker reads the first; buildah and podman read both
# Artefacts in the build context would be copied by `COPY .`, and change the image with every bake.
_IGNORED = f"artefacts\n{FILE_NAME}\n"


@dataclass(frozen=True, slots=True)
class InitImage:
    """An image for the starter.

    ``size`` is what travels, in bytes (0: unknown). ``build`` is the folder to build it in, relative to the Bakefile.
    ``uses`` says who runs it, for people, and ``on_every_node`` that a DaemonSet does. ``startup`` are keys that a
    Bakefile takes, ``fill`` variables that are to be filled in, with where they are from, and ``notes`` what else is to
    be known of how it starts. ``layers`` is how many of the lowest are baked (0: all).
    """

    reference: Reference
    size: int = 0
    build: str = ""
    uses: tuple[str, ...] = ()
    on_every_node: bool = False
    startup: Mapping[str, object] = field(default_factory=dict)
    fill: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    layers: int = 0


def starter(images: Sequence[InitImage], *, today: date, settings: Mapping[str, str] | None = None) -> str:
    """Return a commented Bakefile for these images that works as it stands.

    ``settings`` are keys in the place of their commented defaults, each as the lines that say it.
    An image that is there twice under the same normalised name is written once. Raises BadReference, and InputError
    when there is no image.
    """
    distinct = {entry.reference: entry for entry in reversed(images)}
    if not distinct:
        raise InputError("there is no image to bake", hint="name one with --image, or a folder of manifests")
    entries = sorted(distinct.values(), key=list(images).index)
    text = _file("parbake.yaml.in").decode().replace("{today}", today.isoformat())
    for key, lines in (settings or {}).items():
        shown = re.search(rf"^#{key}:.*\n(?:#  .*\n)*", text, flags=re.MULTILINE)
        text = text.replace(shown[0], f"{lines}\n") if shown else text
    return text.replace("{images}", "\n".join(_entry(entry) for entry in entries))


def _file(name: str) -> bytes:
    return resources.files(__package__).joinpath("files", name).read_bytes()


def _entry(entry: InitImage) -> str:
    lines = ["  # On every node, and first: worth the most in a bake."] if entry.on_every_node else []
    lines += [f"  # {_printable(use)}" for use in entry.uses[:_MOST_USES]]
    if len(entry.uses) > _MOST_USES:
        lines.append(f"  # and {len(entry.uses) - _MOST_USES} more")
    size = f" # {human_size(entry.size)} compressed" if entry.size else ""
    reference = entry.reference
    startup = _startup(entry)
    if entry.layers:
        return "\n".join([*lines, f"  - reference: {reference}{size}", f"    layers: {entry.layers}"])
    if not entry.build and not startup:
        return "\n".join([*lines, f"  - {reference}{size}"])
    lines.append(f"  - reference: {reference}{size}")
    if entry.build:
        lines.append(f"    build: {{context: {scalar(entry.build)}}}")
    return "\n".join([*lines, *startup])


def _startup(entry: InitImage) -> list[str]:
    """Return the lines of an image's ``startup``; a short one is one line."""
    if entry.startup.keys() <= {"up"} and not entry.fill and not entry.notes:
        return [f"    startup: {_flow(entry.startup)}"] if entry.startup else []
    lines = [f"      # {_printable(note[:1].upper() + note[1:])}." for note in entry.notes]
    env, rest = dict(_pairs(entry.startup.get("env"))), [*entry.startup.items()]
    if env or entry.fill:
        lines.append("      env:" if env else "      #env:")
        lines += [f"        {scalar(name)}: {scalar(value)}" for name, value in env.items()]
    if entry.fill:
        lines.append("        # To be filled in with what does for a proof, and is no secret: it is in the record.")
        fill = [*entry.fill.items()][:_MOST_TO_FILL]
        lines += [f"        #{_printable(name)}: ''  # {_printable(whence)}" for name, whence in fill]
    for key, value in rest:
        if key == "files":
            lines += ["      files:", *(line for path, file in _pairs(value) for line in _file_lines(path, file))]
        elif key != "env":
            lines.append(f"      {key}: {_flow(value)}")
    if not entry.startup and not entry.fill:
        return [line[2:] for line in lines]
    return ["    startup:" if entry.startup else "    #startup:", *lines]


def _file_lines(path: object, file: object) -> Iterator[str]:
    """Yield the lines of a file: its text as it stands where YAML takes it so."""
    content, mode = (file.get("content"), file.get("mode")) if isinstance(file, Mapping) else (file, None)
    key, text = f"        {scalar(path)}:", str(content)
    *lines, last = text.split("\n")
    plain = lines and lines[-1] and not last and not text.startswith((" ", "\n"))
    if mode:
        yield f"{key} {{mode: {scalar(mode)}, content: {scalar(text)}}}"
    elif plain and all(line.isprintable() and line == line.rstrip() for line in lines):
        yield f"{key} |"
        yield from (f"          {line}".rstrip() for line in lines)
    else:
        yield f"{key} {scalar(text)}"


def _pairs(value: object) -> Iterable[tuple[object, object]]:
    return value.items() if isinstance(value, Mapping) else ()


def _flow(value: object) -> str:
    """Write a value in one line of YAML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int) else scalar(value)


def scalar(value: object) -> str:
    """Write a text for YAML: plain where nobody could read it as anything else, or quoted."""
    text = str(value)
    if _PLAIN.fullmatch(text) and not _NO_TEXT.fullmatch(text):
        return text
    if text.isprintable() and text.isascii():
        return "'" + text.replace("'", "''") + "'"
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(letter: str) -> str:
    if letter in {'"', "\\"}:
        return f"\\{letter}"
    if letter.isprintable() or not letter.isascii():
        return letter if letter.isprintable() else f"\\U{ord(letter):08x}"
    return _ESCAPES.get(letter) or f"\\x{ord(letter):02x}"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:_LONGEST_COMMENT]


def discover(folder: Path) -> tuple[InitImage, ...]:
    """Return the image that a folder's own Containerfile (or Dockerfile) builds, or nothing."""
    if not any((folder / name).is_file() for name in _BUILD_FILES):
        return ()
    # What is left has no separator at its ends and none of two kinds in a row, as a repository's grammar asks.
    name = re.sub(r"[^a-z0-9]+", "-", folder.absolute().name.lower()).strip("-")[:100].rstrip("-")
    return (InitImage(Reference.parse(f"localhost/{name or 'app'}:1"), build="."),)


def write(
    folder: Path,
    images: Sequence[InitImage] = (),
    *,
    today: date,
    settings: Mapping[str, str] | None = None,
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
        entries = (
            InitImage(Reference("localhost", SAMPLE, "1"), build=SAMPLE, startup={"up": {"log": "^hello: ready"}}),
        )
    files[folder / FILE_NAME] = (starter(entries, today=today, settings=settings).encode(), 0o644)
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
