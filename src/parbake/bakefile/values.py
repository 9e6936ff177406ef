"""How single values of a Bakefile are read: sizes, durations, platforms, references, paths, and what is wrong with one.

Each reader takes what the user wrote and returns what the model holds, or raises the error that ``wrong`` makes:
pydantic collects these over the whole file. What a reader cannot read is left to pydantic's own type check.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from parbake.core.errors import BadReference, InputError
from parbake.core.model import MIB, Platform
from parbake.core.reference import Reference
from parbake.core.units import UNITS

WRONG = "parbake"
"""The type that pydantic's list of errors shows for those made here."""

# Go's names for the architectures of container images that exist in numbers.
ARCHITECTURES = ("amd64", "arm64", "arm", "386", "ppc64le", "s390x", "riscv64", "loong64", "mips64le")

_SMALLEST_SIZE = 16 * MIB
_LARGEST_SIZE = 64 << 40  # the largest volume that clouds offer
_DURATION = re.compile(r"(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+(?:\.[0-9]+)?)s)?(?:([0-9]+)ms)?")
_LONGEST_DURATION = 24 * 3600.0
_MOST_DAYS = 3650

NAME = r"[a-z0-9][a-z0-9.-]{0,62}"
REGION = r"[a-z]{2,}(-[a-z]+)+-[0-9]"
STORE_URL = r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_.=-]+)*/?"
_ENVIRONMENT_NAME = r"[A-Za-z_][A-Za-z0-9_.-]*"
_CONTAINER_PATH = r"(/[A-Za-z0-9_@%+=~.-]+)+"  # what no tool's list of mounts reads as more than a path
_KERNELS = {"proc", "sys", "dev"}
_USER = r"([0-9]{1,10}|[A-Za-z_][A-Za-z0-9_.-]{0,31})(:[0-9]{1,10})?"
_PACKAGE = r"[a-z0-9][a-z0-9+.-]+"  # Debian policy 5.6.1


@dataclass(slots=True)
class Reading:
    """What reading one file needs to know: where relative paths begin, and what was seen higher up in the file."""

    folder: Path
    platform: Platform | None = None
    """The node's platform, once it is read."""
    seen: dict[str, None] = field(default_factory=dict)
    """The image references so far, normalised."""


def wrong(message: str, suggestion: str = "") -> PydanticCustomError:
    """Make the error that says what is wrong with a value, and what to write instead."""
    return PydanticCustomError(WRONG, "{message}", {"message": message, "suggestion": suggestion})


def matching(pattern: str, what: str, advice: str) -> AfterValidator:
    """Check that a text is ``what``: that all of it matches a pattern."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise wrong(f"{text!r} is not {what}", advice)
        return text

    return AfterValidator(check)


def close(word: str, known: Iterable[str]) -> str:
    """Suggest the known word that was probably meant, or name them all."""
    words = list(known)
    matches = difflib.get_close_matches(word.lower(), words, n=1)
    if matches:
        return f"did you mean {matches[0]!r}?"
    return f"known: {', '.join(words)}" if words else ""


def described(value: object) -> str:
    """Name a value as its author sees it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, tuple | list):
        return "a list"
    if isinstance(value, str):
        return f"the text {value!r}"
    return f"the number {value}"


def _name(text: str) -> str:
    if not re.fullmatch(NAME, text):
        valid = valid_name(text)
        raise wrong(
            f"{text!r} is not a valid name: up to 63 of a-z, 0-9, '.', '-', the first a letter or a digit",
            f"such as {valid}" if valid else "",
        )
    return text


def valid_name(text: str) -> str:
    """Make a valid artefact name of any text; empty when nothing of it can be used."""
    return re.sub(r"[^a-z0-9.-]+", "-", text.lower()).lstrip("-.")[:63].rstrip("-.")


def _finished(value: object, kind: type) -> object:
    """Let pass what is not text and needs no reading."""
    if isinstance(value, kind):
        return value
    raise wrong(f"must be text, not {described(value)}", "give it a value or remove it" if value is None else "")


def size(value: object) -> object:
    """Read ``auto`` as 0, and a size as bytes, whole MiB."""
    if not isinstance(value, str):
        return _finished(value, int)
    if value == "auto":
        return 0
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", value)
    if match is None:
        raise wrong(f"{value!r} is not a valid size", "write auto, or a number and its unit, such as 20GiB")
    number, unit = match.groups()
    if unit not in UNITS:
        letter = unit[:1].upper()
        meant = f"{number}{letter if letter in {'K', 'M', 'G', 'T'} else 'G'}iB"
        what = f"has the unit {unit!r}, which is none of KiB, MiB, GiB, TiB, KB, MB, GB, TB" if unit else "has no unit"
        raise wrong(f"{value!r} {what}", f"did you mean {meant}?")
    size = int(Decimal(number) * UNITS[unit])
    if "i" in unit and size % MIB:
        raise wrong(f"{value!r} is not a whole number of MiB", f"write {-(-size // MIB)}MiB")
    size -= size % MIB  # decimal units never come out even
    if not _SMALLEST_SIZE <= size <= _LARGEST_SIZE:
        raise wrong(f"{value!r} is not between 16MiB and 64TiB", "write auto to let parbake choose")
    return size


def _duration(value: object) -> object:
    """Read a duration as seconds."""
    if not isinstance(value, str):
        return _finished(value, float)
    match = _DURATION.fullmatch(value)
    if not match or not value:
        unit = re.fullmatch(r"[0-9.]+", value)
        raise wrong(
            f"{value!r} {'has no unit' if unit else 'is not a valid duration'}",
            f"write {value}s for seconds" if unit else "write 90s, 2m, 1m30s or 500ms",
        )
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    total = hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
    if not 0 < total <= _LONGEST_DURATION:
        raise wrong(f"{value!r} is not between 1ms and 24h")
    return total


def _platform(value: object) -> object:
    if not isinstance(value, str):
        return _finished(value, Platform)
    try:
        platform = Platform.parse(value)
    except InputError as error:
        raise wrong(error.message, error.hint) from None
    if platform.os != "linux":
        raise wrong(f"{value!r}: parbake bakes only for Linux nodes", f"write linux/{platform.architecture}")
    if platform.architecture not in ARCHITECTURES:
        raise wrong(
            f"{value!r}: {platform.architecture!r} is not an architecture of container images",
            close(platform.architecture, ARCHITECTURES),
        )
    return platform


def reference(value: object) -> object:
    """Read an image reference."""
    try:
        return Reference.parse(value) if isinstance(value, str) else _finished(value, Reference)
    except BadReference as error:
        raise wrong(error.message, error.hint) from None


def registry_host(text: str) -> str:
    """Check ``host[:port]`` and return it as image references are normalised (``docker.io``)."""
    bare = re.sub(r"^[a-z]+://", "", text).split("/")[0]
    with suppress(BadReference):
        registry = Reference.parse(f"{text}/a/b").registry
        if text in {registry, "index.docker.io"}:
            return registry
    reason = "is not a valid registry host" if bare == text else "is not a host: it has a scheme or a path"
    raise wrong(f"{text!r} {reason}", f"write {bare}" if bare not in {text, ""} else "write host or host:port")


def _mirror(text: str) -> str:
    host, _, path = text.partition("/")
    if "://" in text or text.endswith("/"):
        bare = re.sub(r"^[a-z]+://", "", text).rstrip("/")
        raise wrong(f"{text!r} has a scheme or ends with '/'", f"write {bare}")
    registry_host(host)
    if path:
        reference(f"{text}/a")
    return text


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        advice = "quote it with '…', and escape ( [ . * with \\"
        raise wrong(f"{text!r} is not a valid regular expression: {error}", advice) from None
    return text


def _path(value: object, info: ValidationInfo) -> object:
    """Read a path; relative ones begin at the Bakefile's folder."""
    if not isinstance(value, str):
        return _finished(value, Path)
    if not value:
        raise wrong("an empty path")
    reading: Reading | None = info.context
    return reading.folder / value if reading else Path(value)


def status(path: Path) -> os.stat_result | None:
    """Return what a path is, None when it is nothing that can be reached."""
    with suppress(OSError, ValueError):
        return path.stat()
    return None


def existing_file(path: Path, info: ValidationInfo) -> Path:
    """Check that a path is a regular file, when a file is read; return it."""
    found = status(path)
    if info.context and found is None:
        raise wrong(f"there is no file {path}", "a relative path begins at this file's folder")
    if info.context and found is not None and not stat.S_ISREG(found.st_mode):
        raise wrong(f"{path} is {'a folder' if stat.S_ISDIR(found.st_mode) else 'not a regular file'}", "name a file")
    return path


def _public_key(path: Path, info: ValidationInfo) -> Path:
    if info.context:
        from parbake.core.signing import public_key  # loads only where a key is named

        try:
            public_key(path)
        except InputError as error:
            raise wrong(error.message, error.hint) from None
    return path


def _existing_folder(path: Path, info: ValidationInfo) -> Path:
    found = status(path)
    if info.context and found is None:
        raise wrong(f"there is no folder {path}", "a relative path begins at this file's folder")
    if info.context and found is not None and not stat.S_ISDIR(found.st_mode):
        raise wrong(f"{path} is a file", "name its folder")
    return path


def _folder_to_be(path: Path, info: ValidationInfo) -> Path:
    found = status(path)
    if info.context and found is not None and not stat.S_ISDIR(found.st_mode):
        raise wrong(f"{path} is a file", "name a folder; it is created if missing")
    return path


def _store(value: object, info: ValidationInfo) -> object:
    """Read where a store is: the URL of a bucket, or a folder, which becomes absolute."""
    if not isinstance(value, str):
        return _finished(value, str)
    if "://" not in value:
        if not value:
            raise wrong("an empty path")
        return str(_folder_to_be(Path(str(_path(value, info))), info))
    if not re.fullmatch(STORE_URL, value):
        raise wrong(
            f"{value!r} is not the URL of an S3 bucket",
            "write s3://BUCKET/PREFIX, or a folder",
        )
    return value.rstrip("/")


def store_address(text: str) -> str:
    """Return where a store is that a user names on the command line. Raises InputError."""
    try:
        return TypeAdapter(StoreText).validate_python(text, context=Reading(Path.cwd()))
    except ValidationError as error:
        context = error.errors()[0].get("ctx", {})
        raise InputError(f"--store: {context.get('message', error)}", hint=context.get("suggestion", "")) from None


def _words(value: object) -> object:
    if isinstance(value, str):
        raise wrong(f"must be a list of words, not the text {value!r}", f"write [{', '.join(value.split())}]")
    return value


def _variables(value: object) -> object:
    if isinstance(value, tuple | list):
        raise wrong("must be a mapping, not a list", "write NAME: value, one a line")
    return value


def _container_path(text: str) -> str:
    """Check the path of something that is put into a container: it must stay below the container's root."""
    parts = text.split("/")[1:]
    if not re.fullmatch(_CONTAINER_PATH, text) or not {".", ".."}.isdisjoint(parts) or parts[0] in _KERNELS:
        raise wrong(
            f"{text!r} is not the path of something that can be put into a container",
            "write such as /etc/app/app.yaml: no '..', no spaces, and not in /proc, /sys or /dev",
        )
    return text


def _days(least: int) -> Callable[[object], object]:
    def read(value: object) -> object:
        """Read a span of days: ``90d``."""
        match = re.fullmatch(r"([0-9]{1,4})d", value) if isinstance(value, str) else None
        if not match or not least <= int(match[1]) <= _MOST_DAYS:
            raise wrong(f"must be days, such as 90d, not {described(value)}", f"from {least}d to {_MOST_DAYS}d")
        return int(match[1])

    return read


def text_schema(pattern: str = "", *examples: str, **more: Any) -> WithJsonSchema:
    """Return the JSON Schema of a text."""
    schema: dict[str, Any] = {"type": "string", **({"pattern": pattern} if pattern else {}), **more}
    return WithJsonSchema({**schema, "examples": list(examples)} if examples else schema)


def span_schema(units: Sequence[str], *examples: str) -> WithJsonSchema:
    """Return the JSON Schema of a time: one of the units at least, in their order.

    It does without looking ahead, which helm's regular expressions (Go's) do not know.
    """
    ways = (unit + "".join(f"({later})?" for later in units[place:]) for place, unit in enumerate(units, 1))
    return text_schema(f"^({'|'.join(ways)})$", *examples)


_PATH_SCHEMA = text_schema(minLength=1)
_SCALAR_SCHEMA = WithJsonSchema({"type": ["string", "number", "boolean"]})

Name = Annotated[str, AfterValidator(_name), text_schema(f"^{NAME}$")]
Region = Annotated[str, matching(REGION, "an AWS region", "such as eu-west-1"), text_schema(f"^{REGION}$", "eu-west-1")]
SIZE_SCHEMA = text_schema(r"^[0-9]+(\.[0-9]+)? ?([KMGT]i?|k)B?$", "40Gi", "20GiB")
Size = Annotated[int, BeforeValidator(size), text_schema(r"^(auto|[0-9]+(\.[0-9]+)? ?([KMGT]i?|k)B)$", "auto", "20GiB")]
Days = Annotated[int, BeforeValidator(_days(1)), text_schema("^[0-9]{1,4}d$", "90d")]
MaybeDays = Annotated[int, BeforeValidator(_days(0)), text_schema("^[0-9]{1,4}d$", "0d", "14d")]
Duration = Annotated[
    float,
    BeforeValidator(_duration),
    span_schema(("[0-9]+h", "[0-9]+m", r"[0-9]+(\.[0-9]+)?s", "[0-9]+ms"), "90s", "1m30s"),
]
PlatformText = Annotated[
    Platform,
    BeforeValidator(_platform),
    text_schema(r"^[Ll]inux/[A-Za-z0-9_]+(/[A-Za-z0-9]+)?$", "linux/amd64", "linux/arm64"),
]
ReferenceText = Annotated[
    Reference, BeforeValidator(reference), text_schema("^[^ ]+$", "registry.example.com/team/app:1.4")
]
RegistryHost = Annotated[str, AfterValidator(registry_host)]
Mirror = Annotated[str, AfterValidator(_mirror), text_schema("^[^ ]+[^ /]$", "mirror.example.com/hub")]
Package = Annotated[
    str,
    matching(_PACKAGE, "a valid Debian package name", "lower-case letters, digits, '+', '-', '.'"),
    text_schema(f"^{_PACKAGE}$"),
]
Expression = Annotated[str, AfterValidator(_expression), text_schema("", "listening on port [0-9]+")]
Port = Annotated[int, Field(ge=1, le=65535)]
Words = Annotated[tuple[Annotated[str, _SCALAR_SCHEMA], ...], BeforeValidator(_words)]
Scalar = Annotated[str, _SCALAR_SCHEMA]
Variables = Annotated[
    dict[
        Annotated[
            str,
            matching(_ENVIRONMENT_NAME, "a valid variable name", "letters, digits and '_', not starting with a digit"),
        ],
        Scalar,
    ],
    BeforeValidator(_variables),
]
ContainerKey = Annotated[str, AfterValidator(_container_path)]
ContainerPath = Annotated[ContainerKey, text_schema(f"^{_CONTAINER_PATH}$", "/srv/data")]
Mode = Annotated[
    str,
    matching("0?[0-7]{3}", "a mode", 'octal, such as "0644"'),
    text_schema("^0?[0-7]{3}$", "0644", type=["string", "integer"]),
]
User = Annotated[
    str,
    matching(f"({_USER})?", "a user", "a number or a name of the image's, with :GROUP (a number) if need be"),
    text_schema(f"^({_USER})?$", "10001", "10001:10001", type=["string", "integer"]),
]
PathText = Annotated[Path, BeforeValidator(_path), _PATH_SCHEMA]
File = Annotated[Path, BeforeValidator(_path), AfterValidator(existing_file), _PATH_SCHEMA]
PublicKeyFile = Annotated[File, AfterValidator(_public_key)]
Folder = Annotated[Path, BeforeValidator(_path), AfterValidator(_existing_folder), _PATH_SCHEMA]
StoreText = Annotated[str, BeforeValidator(_store), text_schema("", "s3://shop-parbake/node", minLength=1)]
FolderToBe = Annotated[Path, BeforeValidator(_path), AfterValidator(_folder_to_be), _PATH_SCHEMA]
