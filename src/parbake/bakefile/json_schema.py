"""The JSON Schema (draft 2020-12) of a kind of file, with the docstrings of its fields as descriptions.

pydantic can read these docstrings too (``use_attribute_docstrings``), but does so whenever a class is made: with every
command, which only costs time there.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from typing import Any, override

from pydantic.json_schema import GenerateJsonSchema

from parbake.bakefile.sections import Section

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _Described(GenerateJsonSchema):
    """Gives fields their docstrings, and no titles, which repeat each field's name: noise in an editor's help."""

    @override
    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    @override
    def model_schema(self, schema: Any) -> dict[str, Any]:
        found = super().model_schema(schema)
        for kind in schema["cls"].__mro__:
            if issubclass(kind, Section):
                for name, text in _docstrings(kind).items():
                    key = kind.model_fields[name].alias or name
                    if (field := found.get("properties", {}).get(key)) is not None:
                        field.setdefault("description", text)
        return found


def _docstrings(kind: type[Section]) -> dict[str, str]:
    """Return the docstrings of a class's own fields: texts that follow on an annotated name."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = inspect.cleandoc(text)
    return found


def schema_of(model: type[Section], *, required: Sequence[str]) -> dict[str, Any]:
    """Return the schema of a kind of file as users write it; ``required`` are the keys that it must have."""
    generated = model.model_json_schema(schema_generator=_Described)
    generated["required"] = list(required)
    return {"$schema": DIALECT, **_tidy(generated)}


def _tidy(schema: Any) -> Any:
    """Drop what helps no reader (defaults of null, our class names) and unwrap the lines of docstrings."""
    if isinstance(schema, list):
        return [_tidy(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if not (key == "default" and value is None)}
    if isinstance(kept.get("description"), str):
        kept["description"] = " ".join(kept["description"].split())
    return {key: _tidy(value) for key, value in kept.items() if key != "title" or not isinstance(value, str)}
