"""A custom resource's structural schema at work: pruning, defaults, validation, CEL rules.

Not modelled: formats, CEL costs, transition rules inside lists (as in Kubernetes, where items of atomic lists have no
old self), ratcheting, messageExpression.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import cel
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

Schema = dict[str, Any]
_UNCHECKED = (
    "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation"
)
_KINDS = {
    bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null",
}  # fmt: skip
_KEPT = {"apiVersion", "kind", "metadata"}
_VALIDATORS = dict[int, tuple[Schema, Any]]()  # with the schema, whose number is nobody else's as long as it is here


def prune(schema: Schema, value: Any, path: str = "") -> list[str]:
    """Remove what the schema does not know; return the places of it."""
    gone: list[str] = []
    if isinstance(value, list):
        for index, item in enumerate(value):
            gone += prune(schema.get("items", {}), item, f"{path}[{index}]")
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return gone
    known, more = schema.get("properties", {}), schema.get("additionalProperties")
    for key in list(value):
        where = f"{path}.{key}" if path else key
        if key in known:
            if not (path == "" and key in _KEPT):
                gone += prune(known[key], value[key], where)
        elif isinstance(more, dict):
            gone += prune(more, value[key], where)
        elif not more and not (path == "" and key in _KEPT) and "properties" in schema:
            del value[key]
            gone.append(where)
    return gone


def default(schema: Schema, value: Any) -> None:
    """Fill in what the schema has defaults for."""
    if isinstance(value, list):
        for item in value:
            default(schema.get("items", {}), item)
    if isinstance(value, dict):
        for key, below in schema.get("properties", {}).items():
            if key not in value and "default" in below:
                value[key] = copy.deepcopy(below["default"])
            if key in value:
                default(below, value[key])
        for key in set(value) - set(schema.get("properties", {})):
            if isinstance(schema.get("additionalProperties"), dict):
                default(schema["additionalProperties"], value[key])


def problems(schema: Schema, value: Any, old: Any) -> list[str]:
    """Return what is wrong with an object, as the server words it."""
    found, unchecked = [], False
    for error in _validator(schema).iter_errors(value):
        found.append(_worded(error))
        unchecked |= error.validator != "pattern"
    return [*found, _UNCHECKED] if unchecked else [*found, *_rules(schema, value, old, "")]


def _validator(schema: Schema) -> Any:
    """Return what validates by a schema: one for each, since to make it takes longer than an object does."""
    made = _VALIDATORS.get(id(schema))
    if made is None:
        made = _VALIDATORS[id(schema)] = (schema, Draft202012Validator(_plain(schema)))
    return made[1]


def _worded(error: Any) -> str:
    where = _dotted(error.absolute_path)
    match error.validator:
        case "required":
            missing = re.findall(r"'([^']*)' is a required", error.message)
            return f"{where}.{missing[0]}: Required value".lstrip(".")
        case "enum":
            known = ", ".join(f'"{each}"' for each in error.validator_value)
            return f"{where}: Unsupported value: {json.dumps(error.instance)}: supported values: {known}"
        case "pattern":
            said = f"{where} in body should match '{error.validator_value}'"
            return f"{where}: Invalid value: {json.dumps(error.instance)}: {said}"
        case "type":
            kind = _KINDS[type(error.instance)]
            said = f'{where} in body must be of type {error.validator_value}: "{kind}"'
            return f'{where}: Invalid value: "{kind}": {said}'
        case "maxItems":
            return f"{where}: Too many: {len(error.instance)}: must have at most {error.validator_value} items"
        case _:
            return f"{where}: Invalid value: {error.instance!r}: {error.message}"


def _plain(schema: Any) -> Any:
    """Make JSON Schema of what Kubernetes calls so."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _plain(each) for key, each in schema.items() if not key.startswith("x-") and key != "format"}
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        kept["type"] = [schema["type"], "null"]
    return kept


def _dotted(path: Any) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _rules(schema: Schema, value: Any, old: Any, where: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", []):
        transition = "oldSelf" in rule["rule"]
        if transition and old is None:
            continue
        context = cel.Context({"self": value, **({"oldSelf": old} if transition else {})})
        context.add_function("find", _find)
        context.add_function("split", lambda text, by: text.split(by))
        if _compiled(rule["rule"]).execute(context) is not True:
            yield f"{where or '<nil>'}: Invalid value: {rule.get('message', 'failed rule: ' + rule['rule'])}"
    if isinstance(value, dict):
        for key, item in value.items():
            below = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if isinstance(below, dict):
                yield from _rules(below, item, (old or {}).get(key), f"{where}.{key}".lstrip("."))
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _rules(schema.get("items", {}), item, None, f"{where}[{index}]")


@cache
def _compiled(rule: str) -> Any:
    return cel.compile(rule)


def _find(text: str, pattern: str) -> str:
    match = re.search(pattern, text)
    return match[0] if match else ""
