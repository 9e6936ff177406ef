"""The file of a fleet, ``fleet.yaml``: its keys, its JSON Schema, and how it is loaded."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic import field_validator as check

from parbake.bakefile.file import first_version
from parbake.bakefile.format import Format
from parbake.bakefile.json_schema import schema_of
from parbake.bakefile.sections import Section, Via
from parbake.bakefile.values import (
    ARCHITECTURES,
    Duration,
    File,
    Name,
    StoreText,
    close,
    described,
    text_schema,
    valid_name,
    wrong,
)
from parbake.core import atomic
from parbake.core.errors import InputError
from parbake.core.model import Platform
from parbake.fleet.places import BakesAtOnce, PlaceText, Quotas, are_distinct
from parbake.fleet.rollout import Rollout

DEFAULT_FILE = Path("fleet.yaml")
_MODE = 0o644
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9._/-]+")
_GIT_URL = r"(https|ssh|git)://[^\s]+|[\w.-]+@[\w.-]+:[^\s]+"
_GIT_REF = r"[A-Za-z0-9][A-Za-z0-9._/-]*"


def _architecture(text: str) -> str:
    if text not in ARCHITECTURES:
        raise wrong(f"{text!r} is not an architecture of container images", close(text, ARCHITECTURES))
    return text


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    for value, count in Counter(values).items():
        if count > 1:
            raise wrong(f"{value} is in the list {count} times", "name it once")
    return values


def _git_url(text: str) -> str:
    if not re.fullmatch(_GIT_URL, text):
        raise wrong(f"{text!r} is not the address of a Git repository", "write https://HOST/PATH.git")
    if re.match(r"https://[^/@]*:[^/@]*@", text):
        raise wrong("the address holds a password", "leave it out: let Git's credential helper give it")
    return text


def _git_ref(text: str) -> str:
    if not re.fullmatch(_GIT_REF, text) or ".." in text:
        raise wrong(f"{text!r} is not a branch, a tag or a commit", "such as main, or the 40 digits of a commit")
    return text


def _percent(value: object) -> object:
    match = re.fullmatch(r"([0-9]{1,3})%", value) if isinstance(value, str) else None
    if not match or int(match[1]) > 100:
        raise wrong(f"must be a share such as 10%, not {described(value)}", "from 0% to 100%")
    return int(match[1])


Percent = Annotated[int, BeforeValidator(_percent), text_schema("^[0-9]{1,3}%$", "10%")]
Architecture = Annotated[str, AfterValidator(_architecture), text_schema("^[a-z0-9]+$", "amd64", "arm64")]
Architectures = Annotated[tuple[Architecture, ...], Field(min_length=1), AfterValidator(_distinct)]
AtMost = Annotated[int, Field(ge=1, le=500)]


class Source(Section):
    """Where machines get the Bakefiles."""

    git: Annotated[
        str, AfterValidator(_git_url), text_schema("", "https://git.example.com/team/bakes.git", minLength=1)
    ]
    """The repository that holds this file and the Bakefiles. Passwords come from Git's credential helpers."""
    ref: Annotated[str, AfterValidator(_git_ref), text_schema(f"^{_GIT_REF}$", "main")] = "main"
    """A branch, a tag or a commit."""


class BakefileEntry(Section):
    """A Bakefile of the fleet."""

    file: File
    """The Bakefile, relative to this file."""
    architectures: Architectures | None = None
    """The architectures to bake it for, instead of the fleet's."""


class Concurrency(Section):
    """How much happens at once, over all machines."""

    cells: AtMost = 64
    """How many cells run at once."""


class Budget(Section):
    """How much may go wrong."""

    attempts: Annotated[int, Field(ge=1, le=20)] = 4
    """How often a bake is tried: again after the death of its machine, or an error that may pass. Then its key is in
    quarantine, and no run tries it, until `parbake fleet retry` or until it is another one."""
    failures: Percent = Field(default=10, json_schema_extra={"default": "10%"})
    """A run pauses when more of its cells than this have failed, at least five: something else is wrong then."""


def _entry(text: str) -> object:
    return {"file": text}


EntryText = Annotated[BakefileEntry, Via(BakefileEntry, short=_entry, short_schema={"type": "string", "minLength": 1})]


class Schedule(Section):
    """When runs begin by themselves. The engine knows of it from `parbake fleet apply`."""

    every: Duration
    """How often a run starts. It plans all cells, and bakes those that the store does not have."""
    jitter: Duration | None = None
    """Start up to this much later, at random, so that several fleets do not ask one registry at once."""
    overlap: Literal["skip", "queue"] = "skip"
    """What happens if the previous run is still under way: skip this one, or start it afterwards."""
    catch_up: Duration = Field(default=600.0, json_schema_extra={"default": "10m"})
    """How late a run that was missed while no engine ran may still start; of several, the last one does."""
    prune: Duration | None = None
    """How often old artefacts are removed, as the Bakefiles' `retention` says: from the store, and from EC2 where they
    are published. Without: never."""


class Fleet(Section):
    """Bakefiles, the architectures that they are baked for, and how they are baked on many machines (`fleet.yaml`)."""

    version: Annotated[Literal[1], BeforeValidator(first_version)]
    """The version of this format."""
    name: Name
    """The fleet's name. Default: the name of the file's folder, made valid."""
    store: StoreText
    """Where records and artefacts are shared: `s3://BUCKET/PREFIX`, or a folder that all machines mount. It replaces
    the Bakefiles' own."""
    source: Source | None = None
    """Where machines get the Bakefiles. Without: from this folder, which all of them must have."""
    architectures: Architectures = ("amd64",)
    """The architectures of the nodes."""
    bakefiles: Annotated[tuple[EntryText, ...], Field(min_length=1)]
    """The Bakefiles; a bare text is a path."""
    verify: bool = True
    """Boot every artefact and start its images, as `parbake bake` does. Without, what is baked counts as done, and
    rollouts refuse it."""
    places: Annotated[tuple[PlaceText, ...], AfterValidator(are_distinct)] = ()
    """Regions of EC2 that the artefacts are to be in, besides what the Bakefiles say; a bare text is a region. A cell
    is good when it is in all of them."""
    concurrency: Concurrency = Field(default_factory=Concurrency)
    """How much may run at once."""
    quotas: Quotas = Field(default_factory=Quotas)
    """Limits that hold over all workers."""
    budget: Budget = Field(default_factory=Budget)
    """How much may fail, and what happens then."""
    rollout: Rollout | None = None
    """How to roll out what a run has baked. Without: not at all."""

    @check("rollout")
    @classmethod
    def _is_of_what_is_proven(cls, value: Rollout | None, info: ValidationInfo) -> Rollout | None:
        if value and info.data.get("verify") is False:
            raise wrong("only verified artefacts are rolled out, but `verify` is false", "remove one of them")
        return value

    schedule: Schedule | None = None
    """When runs start by themselves. Without: only `parbake fleet run` starts them."""

    @check("bakefiles")
    @classmethod
    def _are_distinct(cls, entries: tuple[BakefileEntry, ...]) -> tuple[BakefileEntry, ...]:
        _distinct(tuple(str(entry.file) for entry in entries))
        return entries


@cache
def _schema() -> dict[str, Any]:
    return schema_of(Fleet, required=("version", "store", "bakefiles"))


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the file as users write it, shorthands included."""
    return copy.deepcopy(_schema())


def _defaults(folder: Path, _: object) -> dict[str, object]:
    return {"name": valid_name(folder.name) or "fleet"}


_FLEET = Format(
    noun="fleet file",
    usual=DEFAULT_FILE.name,
    hint="`parbake fleet init` writes a commented one",
    no_file="`parbake fleet init` writes one, -f names another",
    model=Fleet,
    schema=schema,
    not_text=frozenset(
        {
            "version",
            "verify",
            "cells",
            "attempts",
            "rest",
            "at_once",
            "count",
            "copies",
            "starts_per_second",
            *BakesAtOnce.model_fields,
        }
    ),
    missing={
        "version": "write version: 1",
        "bakefiles": "list the Bakefiles",
        "store": "write store: s3://BUCKET/PREFIX, or a folder",
        "file": "name the Bakefile",
        "git": "name the repository",
        "waves": "list the waves",
        "name": "name the wave",
        "command": "write the command, as a list of words",
        "every": "say how often, such as 30m",
        "region": "name the region",
    },
    empty={
        "bakefiles": ("must list at least one Bakefile", "write - search/parbake.yaml below it"),
        "architectures": ("must list at least one architecture", "write [amd64], or leave it out"),
        "waves": ("must list at least one wave", "write - {name: all, rest: true}"),
        "command": ("must be a command", "write it as a list of words"),
    },
    defaults=_defaults,
)


def load(path: Path) -> Fleet:
    """Read and check the file of a fleet; relative paths in it become absolute, from its folder.

    Raises BakefileError with every problem, or InputError when there is no file to read.
    """
    return _FLEET.load(path)


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
    return text if _PLAIN_TEXT.fullmatch(text) else json.dumps(text)
