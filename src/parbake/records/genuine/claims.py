"""What a record says of itself, and the list of blocks beside its artefact: no keys, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parbake.core.errors import InputError
from parbake.records import folder
from parbake.records.record import Record
from parbake.records.statements import to_statement


def contradiction(text: bytes, record: Record) -> str:
    """Return where the statement ``text`` and the record in it do not say the same; empty where they do.

    What is compared follows from the record's fields: subject, materials, key, and the artefact's name.
    """
    document: dict[str, Any] = json.loads(text)
    if any(not (there.image or there.snapshots) for there in record.published.values()):
        return "it names no published image or snapshot"
    expected: dict[str, Any] = to_statement(record)
    for name in ("_type", "subject", "predicateType"):
        if document.get(name) != expected[name]:
            return f"its {name} is not what its own fields say"
    try:
        definition = document["predicate"]["buildDefinition"]
        said = (
            definition["externalParameters"]["key"],
            document["predicate"]["runDetails"]["metadata"]["invocationId"],
        )
        materials = definition["resolvedDependencies"]
    except (LookupError, TypeError):
        return "its predicate is not that of a bake"
    if materials != expected["predicate"]["buildDefinition"]["resolvedDependencies"]:
        return "its materials are not those of its plan"
    if record.key != record.plan.key or said != (record.key, record.key):
        return "its key is not that of its plan"
    named = record.artefact == record.plan.artefact_name
    return _of_another_startup(record) if named else "its artefact is not named as its plan says"


def _of_another_startup(record: Record) -> str:
    startups = record.plan.startups
    for each in record.verdict.images if record.verdict else ():
        if each.startup and each.startup != startups.get(each.reference, each.startup):
            return f"its verdict is of another `startup` of {each.reference} than its plan's"
    return ""


def listed(artefact: Path, record: Record) -> str:
    """Return why the list of blocks beside an artefact is not the record's; empty where it is, or where there is none.

    The artefact's own bytes are not read: ``parbake verify`` does that.
    """
    if record.blocks is None or not folder.blocks_path(artefact).exists():
        return ""
    if folder.blocks_of(artefact, record) is None:
        return f"{folder.blocks_path(artefact).name} is not the list of blocks that the record names"
    if artefact.is_file() and artefact.stat().st_size != record.size:
        return f"{artefact.name} has {artefact.stat().st_size} bytes, and the record says {record.size}"
    return ""


def of_file(path: Path) -> tuple[Record, str]:
    """Read a record; return it, and where it contradicts itself. Raises InputError when it is none."""
    record = folder.read(path)
    try:
        text = folder.text_of(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", hint="run the same command again") from error
    if path.name != record.file_name:
        return record, f"it is the record of {record.artefact}"
    return record, contradiction(text, record)
