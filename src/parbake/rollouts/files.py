"""JSON and tfvars for other tools (Terraform, Pulumi, scripts). The file itself says what it held before."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any, override

from parbake.bakefile.targets import FileTarget
from parbake.core import atomic
from parbake.core.errors import InputError, TargetMoved
from parbake.rollouts.protocol import (
    Change,
    History,
    Offer,
    Rollout,
    RolloutProgress,
    TargetState,
    TargetStatus,
    already_back,
    gibibytes,
    names_in,
)

_NOTE = "# parbake: "
Said = dict[str, Any]
"""What a file says, by key."""
_KEYS = ("image", "snapshot", "volume_size", "region", "architecture", "artefact", "key", "user_data")


def values(offer: Offer) -> Said:
    """Return what a file says of an offer. Pure.

    ``volume_size`` is in GiB, the least that a volume may have; ``user_data`` is a cloud-boothook that mounts it.
    """
    size = gibibytes(offer.snapshot_size or offer.image_size)
    return {
        "image": offer.image,
        "snapshot": offer.snapshot,
        "volume_size": size,
        "region": offer.region,
        "architecture": "+".join(offer.architectures),
        "artefact": offer.name,
        "key": "+".join(offer.keys),
        "user_data": offer.mount,
    }


def render(kind: str, said: Said, history: History[Said]) -> str:
    """Return the file's text. Pure."""
    note = history.fields()
    if kind == "json":
        return json.dumps({**said, **note}, indent=2) + "\n"
    text = json.dumps(note, sort_keys=True, separators=(",", ":"))
    lines = [f"parbake_{key} = {_hcl(value)}" for key, value in said.items()]
    return "\n".join(["# Written by parbake rollout.", f"{_NOTE}{text}", *lines]) + "\n"


def parse(kind: str, text: str) -> tuple[Said, History[Said]]:
    """Return what a file says, and its history; raises InputError when parbake did not write it. Pure."""
    try:
        if kind == "json":
            document = json.loads(text)
            said = {key: document[key] for key in _KEYS}
            return said, History(document.get("previous"), document.get("left"))
        pairs = re.findall(r"^parbake_(\w+) = (.*)$", text, re.MULTILINE)
        note = re.findall(rf"^{_NOTE}(.*)$", text, re.MULTILINE)[0]
        return {key: _from_hcl(value) for key, value in pairs}, History(**json.loads(note))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"not a file of parbake: {error}", hint="name another file, or remove it") from error


def _hcl(value: object) -> str:
    """Write a text or a number for Terraform, where ``${`` and ``%{`` begin templates (HCL, "Template Expressions")."""
    return re.sub(r"([$%])(?=\{)", r"\1\1", json.dumps(value))


def _from_hcl(text: str) -> Any:
    return json.loads(re.sub(r"([$%])\1(?=\{)", r"\1", text))


class ValuesForTools(Rollout):
    """One file."""

    def __init__(self, target: FileTarget) -> None:
        assert target.as_ in {"json", "tfvars"}
        self.path: Path = target.path
        self.kind = str(target.as_)
        self.where = target.path.name

    @override
    def plan(self, offer: Offer) -> Change:
        text, said, past = self._read()
        wanted = values(offer)
        before = _held(said)
        if said == wanted:
            return Change(self.where, before, offer.held)
        history = History(offer.way_back(before, said, past.previous) or None)
        return self._change(text, render(self.kind, wanted, history), before, offer.held)

    @override
    def plan_rollback(self) -> Change:
        text, said, history = self._read()
        before = history.way_back(self.where)
        if before is None:
            return already_back(self.where, _held(said))
        return self._change(text, render(self.kind, before, History(left=said)), _held(said), _held(before))

    @override
    def write(self, change: Change) -> None:
        """Write the file beside, and rename it."""
        if self._read()[0] != change.payload["before"]:
            raise TargetMoved(f"{self.path} was changed in the meantime")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic.replace(self.path, change.payload["after"], mode=0o644)

    @override
    def follow(self, wanted: TargetState) -> RolloutProgress:
        """Say that it is done: who reads the file is not known."""
        del wanted
        return RolloutProgress(0, 0, done=True)

    @override
    def status(self) -> TargetStatus:
        _, said, history = self._read()
        return TargetStatus(self.where, _held(said), history.states(_held))

    def _read(self) -> tuple[str, Said, History[Said]]:
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return "", {}, History()
        try:
            return text, *parse(self.kind, text)
        except InputError as error:
            raise InputError(f"{self.path}: {error.message}", hint=error.hint) from error

    def _change(self, before: str, after: str, held: TargetState, wanted: TargetState) -> Change:
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), self.where, self.where, lineterm="")
        return Change(self.where, held, wanted, "\n".join(lines), {"before": before, "after": after})


def _held(said: Said) -> TargetState:
    return TargetState(
        images=[said.get("image", "")],
        snapshot=said.get("snapshot", ""),
        artefacts=names_in(said.get("artefact", "")),
        keys=said.get("key", "").split("+"),
    )
