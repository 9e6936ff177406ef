"""Findings as SARIF, which code hosts show beside the lines. Pure.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) 2.1.0.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from parbake.workflows.lint.rules import RULES, Finding

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def document(findings: Sequence[Finding], *, version: str, folder: Path) -> dict[str, Any]:
    """Return a log with one run; paths below ``folder`` are written relative to it, as code hosts want them."""
    places = {rule.id: place for place, rule in enumerate(RULES)}
    rules = [
        {
            "id": rule.id,
            "shortDescription": {"text": rule.short},
            "help": {"text": rule.help},
            "defaultConfiguration": {"level": rule.level},
        }
        for rule in RULES
    ]
    results = [
        {
            "ruleId": each.rule.id,
            "ruleIndex": places[each.rule.id],
            "level": each.level,
            "message": {"text": f"{each.what}: {each.message}" if each.what else each.message},
            "locations": [_location(each, folder)],
        }
        for each in findings
    ]
    driver = {"name": "parbake", "semanticVersion": version, "rules": rules}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _location(each: Finding, folder: Path) -> dict[str, Any]:
    location: dict[str, Any] = {"logicalLocations": [{"fullyQualifiedName": each.what or each.source}]}
    if Path(each.source).exists():
        absolute = Path(os.path.abspath(each.source))  # noqa: PTH100 - resolve() would follow links away
        inside = absolute.is_relative_to(folder)
        uri = quote(PurePath(absolute.relative_to(folder)).as_posix()) if inside else absolute.as_uri()
        physical: dict[str, Any] = {"artifactLocation": {"uri": uri}}
        if each.line:
            physical["region"] = {"startLine": each.line}
        location["physicalLocation"] = physical
    return location
