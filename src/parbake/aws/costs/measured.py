"""Figures that were measured, in the place of those that the model assumes: from the files of those who measure.

``parbake observe --json`` says how fast nodes pull and how long they boot, ``bench/ebs-check`` how a volume answers,
and the hydrate program's state (``/run/parbake/hydrate.json``) how fast one node's cold blocks came. What too few
starts say, or what two files say very differently, does not count, and ``decide`` says so. Deciding is pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from parbake.aws.costs.advise import Situation
from parbake.aws.costs.rates import Pull, Speeds, own_pull
from parbake.core.errors import InputError
from parbake.core.files import read_file
from parbake.core.model import MIB, Frozen
from parbake.core.printable import word

_MOST_BYTES = 64 << 20
_APART = 3.0  # times as much, from one file to another: they do not speak of the same nodes
_LEAST_PULL = 20_000_000  # bytes: of less the registry's answers are most of the time
_HINT = "give what `parbake observe --json`, `bench/ebs-check` or a node's /run/parbake/hydrate.json wrote, unchanged"

Kind = Literal["first touch", "cold blocks", "loaded read", "pull", "boot"]
_UNITS: dict[Kind, tuple[float, str]] = {
    "first touch": (1000, "ms"),
    "cold blocks": (1, "MiB/s"),
    "loaded read": (1000, "ms"),
    "pull": (1, "MB/s"),
    "boot": (1, "s"),
}
ENOUGH: dict[Kind, int] = {"first touch": 20, "cold blocks": 3, "loaded read": 20, "pull": 5, "boot": 5}
"""How many of a kind are enough: reads of a volume, nodes that loaded theirs, pulls, and nodes that booted."""


class Figure(Frozen):
    """One figure: a median of so many, in seconds, MiB/s or, of pulls, MB/s; ``source`` names its file."""

    kind: Kind
    value: float = Field(gt=0, allow_inf_nan=False)
    count: int = Field(gt=0)
    source: str = ""


class MeasuredStarts(Frozen):
    """What counts of the figures, and in words what it is and what does not count, and why."""

    figures: dict[Kind, float] = Field(default_factory=dict)
    words: tuple[str, ...] = ()

    @property
    def basis(self) -> str:
        """What a choice rests on."""
        if not self.figures:
            return "; ".join(("the model alone: nothing measured counts", *self.words))
        return "; ".join((*self.words, "all else is the model's"))

    def applied(self, at: Situation, speeds: Speeds, pulls: Sequence[Pull]) -> tuple[Situation, Speeds, Sequence[Pull]]:
        """Return what ``advise`` is given, with these figures in the place of what was assumed."""
        found = self.figures
        names: dict[str, Kind] = {"latency": "first touch", "cold_rate": "cold blocks", "loaded": "loaded read"}
        speeds = speeds.model_copy(update={name: found[kind] for name, kind in names.items() if kind in found})
        at = at.model_copy(update={"boot": found.get("boot", at.boot)})
        return at, speeds, own_pull(found["pull"]) if "pull" in found else pulls


def decide(figures: Iterable[Figure]) -> MeasuredStarts:
    """Decide which figures count: of each kind the median of its files', where they are enough and agree. Pure."""
    by_kind: dict[Kind, list[Figure]] = {}
    for each in figures:
        by_kind.setdefault(each.kind, []).append(each)
    counted, words = dict[Kind, float](), []
    for kind in sorted(by_kind):
        found = by_kind[kind]
        count, least, most = sum(each.count for each in found), *_ends(found)
        if most.value > _APART * least.value:
            words.append(f"{kind}: {_said(least)} and {_said(most)} contradict each other, so the model counts")
        elif count < ENOUGH[kind]:
            words.append(f"{kind}: {count} of the {ENOUGH[kind]} that are enough, so the model counts")
        else:
            counted[kind] = _middle(found)
            factor, unit = _UNITS[kind]
            words.append(f"{kind}: {counted[kind] * factor:.3g} {unit}, measured ({count})")
    return MeasuredStarts(figures=counted, words=tuple(words))


def _ends(found: Sequence[Figure]) -> tuple[Figure, Figure]:
    ordered = sorted(found, key=lambda each: each.value)
    return ordered[0], ordered[-1]


def _middle(found: Sequence[Figure]) -> float:
    """Return the median by weight: what half of all that was counted is at most."""
    left = sum(each.count for each in found) / 2
    for each in sorted(found, key=lambda each: each.value):
        left -= each.count
        if left <= 0:
            break
    return each.value


def _said(figure: Figure) -> str:
    factor, unit = _UNITS[figure.kind]
    return f"{figure.value * factor:.3g} {unit} ({figure.source})"


def read_measured(paths: Iterable[Path]) -> MeasuredStarts:
    """Return what counts of what files say; one that is named twice counts once. Raises InputError for an odd one."""
    contents: dict[bytes, Path] = {}
    for path in paths:
        try:
            contents.setdefault(read_file(path, _MOST_BYTES), path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}", hint=_HINT) from None
    return decide(figure for content, path in contents.items() for figure in figures_of(content, str(path)))


def figures_of(content: bytes, source: str) -> list[Figure]:
    """Return what the content of a file says; raises InputError where it is none of the known ones."""
    try:
        document = _ANY.validate_json(content)
        reader = next((reader for key, reader in _READERS.items() if key in document), None)
        if reader is None:
            raise InputError(f"{source}: these are no figures that parbake knows", hint=_HINT)
        found = reader(document)
        return [Figure(kind=kind, value=value, count=count, source=source) for kind, value, count in found if count]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"][-4:])) or "the document"
        raise InputError(f"{source}: {word(where)}: {word(first['msg'])}", hint=_HINT) from None


_ANY = TypeAdapter(dict[str, JsonValue])
type _Found = list[tuple[Kind, float, int]]


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Times(_Read):
    median: float = Field(gt=0, lt=1e6)
    count: int = Field(gt=0, lt=10**9)


class _EbsCheck(_Read):
    latency_ms: _Times
    loaded_ms: _Times
    cold_mib_s: dict[str, float] = Field(min_length=1, max_length=20)


def _of_ebs_check(document: Mapping[str, Any]) -> _Found:
    found = _EbsCheck.model_validate(document)
    touch, loaded = found.latency_ms, found.loaded_ms
    return [
        ("first touch", touch.median / 1000, touch.count),
        ("loaded read", loaded.median / 1000, loaded.count),
        ("cold blocks", max(found.cold_mib_s.values()), touch.count),
    ]


class _HydrateState(_Read):
    version: Literal[1]
    phase: str
    state: str = ""
    wanted: int = Field(default=0, ge=0, lt=1 << 60)
    errors: int = Field(default=0, ge=0)
    seconds: float = Field(default=0.0, ge=0, lt=1e9)


def _of_hydrate(document: Mapping[str, Any]) -> _Found:
    """One node's cold blocks: only of a node that has loaded all that it was to; a page read may load a whole block."""
    found = _HydrateState.model_validate(document)
    if (found.phase, found.state, found.errors) != ("done", "done", 0) or not found.wanted or not found.seconds:
        return []
    return [("cold blocks", found.wanted / MIB / found.seconds, 1)]


class _Container(_Read):
    pull_seconds: float | None = Field(default=None, ge=0, lt=1e7)
    pulled_bytes: int | None = Field(default=None, ge=0, lt=1 << 60)


class _Pod(_Read):
    containers: tuple[_Container, ...] = Field(max_length=1000, strict=False)


class _Node(_Read):
    launched: str | None = None
    registered: str | None = None


class _Observed(_Read):
    pods: tuple[_Pod, ...] = Field(strict=False)
    nodes: tuple[_Node, ...] = Field(default=(), strict=False)
    not_in_the_bake: tuple[_Container, ...] = Field(default=(), strict=False)


def _of_observe(document: Mapping[str, Any]) -> _Found:
    found = _Observed.model_validate(document)
    containers = [*found.not_in_the_bake, *(each for pod in found.pods for each in pod.containers)]
    pulls = [
        each.pulled_bytes / 1e6 / each.pull_seconds
        for each in containers
        if each.pull_seconds and each.pulled_bytes and each.pulled_bytes >= _LEAST_PULL
    ]
    boots = [seconds for node in found.nodes if (seconds := _between(node.launched, node.registered)) > 0]
    rows: list[tuple[Kind, list[float]]] = [("pull", pulls), ("boot", boots)]
    return [(kind, median(values), len(values)) for kind, values in rows if values]


def _between(first: str | None, then: str | None) -> float:
    try:
        return (datetime.fromisoformat(then or "") - datetime.fromisoformat(first or "")).total_seconds()
    except (ValueError, TypeError):  # not known, or one of them without its zone
        return 0.0


_READERS = {"latency_ms": _of_ebs_check, "phase": _of_hydrate, "pods": _of_observe}
