"""Write values in HCL, as a file of variables takes them. Pure.

Source: HCL native syntax specification, "Template Expressions" (``${`` and ``%{`` are doubled to stand for themselves).
"""

from __future__ import annotations

import json
from collections.abc import Mapping


def assignments(values: Mapping[str, object]) -> str:
    """Return one assignment a line, the equals signs below each other."""
    width = max((len(name) for name in values), default=0)
    return "".join(f"{name:{width}} = {expression(value)}\n" for name, value in values.items())


def expression(value: object) -> str:
    """Return a text, number, truth value, list or mapping as an HCL expression."""
    if isinstance(value, Mapping):
        if not value:
            return "{}"
        return "{\n" + "".join(f"  {text(str(key))} = {expression(each)}\n" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(expression(each) for each in value) + "]"
    return text(value) if isinstance(value, str) else json.dumps(value)


def text(value: str) -> str:
    """Return a quoted text that means itself."""
    return json.dumps(value, ensure_ascii=False).replace("${", "$${").replace("%{", "%%{")
