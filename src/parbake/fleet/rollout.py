"""How a fleet hands out what it has baked: the keys of ``rollout`` in its file."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic import field_validator as check

from parbake.bakefile.sections import Section, Via
from parbake.bakefile.values import Duration, Name, Words, described, span_schema, text_schema, wrong
from parbake.core.errors import InputError
from parbake.fleet import windows

_PATTERN = r"[A-Za-z0-9_.*?/-]+/[a-z0-9.*?-]+"
_SPAN = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?")
_LONGEST_SPAN = 90 * 86400
_PERSON = r"[A-Za-z0-9_.@+-]{1,64}"
_ARN = r"arn:aws[a-z-]*:(iam|sts)::[0-9]{12}:(user|role|assumed-role)/[A-Za-z0-9_.@+=,/*-]{1,256}"


def _span(value: object) -> object:
    """Read a time that may be days, as seconds."""
    if isinstance(value, float):
        return value
    match = _SPAN.fullmatch(value) if isinstance(value, str) and value else None
    if match is None:
        raise wrong(f"must be a time such as 30m, 72h or 7d, not {described(value)}")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not 0 < total <= _LONGEST_SPAN:
        raise wrong(f"{value!r} is not between 1s and 90d")
    return float(total)


def _pattern(text: str) -> str:
    if not re.fullmatch(_PATTERN, text):
        raise wrong(f"{text!r} names no target of a Bakefile", "write BAKEFILE/TARGET, such as search/canary or */eu-*")
    return text


def _person(text: str) -> str:
    if text.startswith("arn:") and not re.fullmatch(_ARN, text):
        hint = "such as arn:aws:iam::222222222222:role/release, or …:user/*"
        raise wrong(f"{text!r} is not the ARN of a user or a role", hint)
    if not text.startswith("arn:") and not re.fullmatch(_PERSON, text):
        raise wrong(f"{text!r} is not the name of a user", "letters, digits and _ . @ + -")
    return text


def _window(text: str) -> str:
    try:
        windows.parse(text)
    except InputError as error:
        raise wrong(error.message, error.hint) from None
    return text


Span = Annotated[float, BeforeValidator(_span), span_schema(("[0-9]+d", "[0-9]+h", "[0-9]+m", "[0-9]+s"), "30m", "72h")]
Pattern = Annotated[str, AfterValidator(_pattern), text_schema(f"^{_PATTERN}$", "search/canary", "*/eu-*")]
Person = Annotated[
    str, AfterValidator(_person), text_schema(f"^({_PERSON}|{_ARN})$", "ann", "arn:aws:iam::222222222222:role/release")
]
WindowText = Annotated[
    str, AfterValidator(_window), text_schema(f"^{windows.PATTERN}$", "Mon-Thu 08:00-16:00 Europe/Berlin")
]


class Gate(Section):
    """What is asked when a wave has soaked; first of all its targets, whether their nodes still run what they hold."""

    command: Annotated[Words, Field(min_length=1)]
    """A command, run in the folder of this file by a worker of the queue `roll`, with PARBAKE_FLEET, PARBAKE_WAVE and
    PARBAKE_GENERATION in its environment: 0 lets the rollout go on, any other code is a failure."""
    timeout: Duration = Field(default=600.0, json_schema_extra={"default": "10m"})
    """How long it may take."""


class Approval(Section):
    """Who must say yes before the next wave begins."""

    by: tuple[Person, ...] = ()
    """Who may approve: users and roles of AWS by their ARNs (`*` stands for any text), which they prove; or names,
    which are believed of whoever has the fleet's key. Default: anybody."""
    count: Annotated[int, Field(ge=1, le=10)] = 1
    """How many must approve, each once."""
    within: Span | None = None
    """Without an approval in this time the wave fails. Default: it waits."""

    @check("count")
    @classmethod
    def _are_enough(cls, value: int, info: ValidationInfo) -> int:
        by = info.data.get("by")
        if by and value > len(set(by)):
            raise wrong(f"{value} must approve, and `by` names only {len(set(by))}", "name more in `by`")
        return value


def _approval(text: str) -> object:
    return {} if text == "anybody" else {"by": (text,)}


class Wave(Section):
    """Targets that get the artefacts together, and what must hold before the next wave begins."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["targets"]}, {"required": ["rest"]}]})

    name: Name
    """The wave's name."""
    targets: tuple[Pattern, ...] = ()
    """Its targets, as BAKEFILE/TARGET: the Bakefile as its cells are named, a target of its `rollout`. `*` stands for
    any text. A target belongs to the first wave that names it."""
    rest: bool = False
    """All targets that no other wave names."""
    at_once: Annotated[int, Field(ge=1, le=50)] = 1
    """How many targets are written and followed at once."""
    soak: Span | None = None
    """How long to wait after its last target."""
    gate: Gate | None = None
    """The check that runs then."""
    approve: (
        Annotated[
            Approval,
            Via(Approval, short=_approval, short_schema={"type": "string", "examples": ["anybody", "ann"]}),
        ]
        | None
    ) = None
    """Who must approve then; a bare text is one name, or `anybody`."""

    @check("rest")
    @classmethod
    def _one_way(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("targets"):
            raise wrong("a wave has `targets` or the `rest`, not both", "remove one of them")
        return value


class Rollout(Section):
    """How what was baked is handed to the targets of the Bakefiles: in waves, each target to its end."""

    waves: Annotated[tuple[Wave, ...], Field(min_length=1)]
    """The waves, in order."""
    windows: tuple[WindowText, ...] = ()
    """When targets may be started: days, hours and a time zone (default: UTC). A rollback runs at any time."""
    when_newer: Literal["wait", "supersede"] = "wait"
    """What happens when a run has made something newer while a rollout is under way: it waits for its end, or takes its
    place between two targets. What a superseded rollout has written was never proven: the way back leads to what was
    there before it."""
    on_failure: Literal["pause", "rollback"] = "pause"
    """What happens when a target does not follow, a gate says no, or nobody approves in time: wait for somebody, or
    return all that was written, in reverse order."""

    @check("waves")
    @classmethod
    def _go_together(cls, waves: tuple[Wave, ...]) -> tuple[Wave, ...]:
        twice = [name for name, count in Counter(wave.name for wave in waves).items() if count > 1]
        if twice:
            raise wrong(f"two waves are named {twice[0]!r}", "give each a name of its own")
        for wave in waves:
            if not wave.targets and not wave.rest:
                raise wrong(f"the wave {wave.name} has no targets", "write targets: [BAKEFILE/TARGET], or rest: true")
        if sum(wave.rest for wave in waves) > 1:
            raise wrong("two waves have the `rest`", "only one wave may have it")
        return waves
