"""What is told of fleets, as text for people and as JSON for programs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from parbake.cli.text.artefacts import table
from parbake.core.printable import word
from parbake.fleet.preview import Outlook, State

_STATES: dict[State, str] = {
    "there": "there",
    "unverified": "there, not verified",
    "bake": "to bake",
    "build": "to build and bake",
    "wrong": "wrong",
}


def outlook_json(name: str, found: Sequence[Outlook]) -> dict[str, object]:
    """Return what a run would do, cell by cell, and how many cells are in each state."""
    cells = [
        {
            "cell": each.cell.name,
            "file": each.cell.file,
            "platform": each.cell.platform,
            "state": each.state,
            "key": each.key or None,
            "artefact_name": each.artefact or None,
            "problem": each.problem or None,
        }
        for each in found
    ]
    counts = Counter(each.state for each in found)
    return {"fleet": name, "counts": {state: counts[state] for state in _STATES}, "cells": cells}


def outlook_text(found: Sequence[Outlook]) -> str:
    """Return that for people."""
    rows = ((each.cell.name, each.key[:12] or "-", _STATES[each.state]) for each in found)
    problems = [
        f"{each.cell.name}: {word(each.problem)}" + (f"\n  next: {word(each.hint)}" if each.hint else "")
        for each in found
        if each.problem
    ]
    counts = Counter(each.state for each in found)
    said = ", ".join(f"{counts[state]} {words}" for state, words in _STATES.items() if counts[state])
    return "\n\n".join([table(rows, header=("cell", "key", "state")), *problems, f"{len(found)} cells: {said}"])
