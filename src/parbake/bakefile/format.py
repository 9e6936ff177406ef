"""Load a file that users write: every problem at once, in the order of lines, in words for people.

A ``Format`` says what the file is: a Bakefile (``loader``), a fleet (``parbake.fleet``).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from parbake.bakefile.values import WRONG, Reading, close, described
from parbake.core.errors import BakefileError, InputError, Problem
from parbake.core.yamltext import Document, Where, dotted, parse

_LARGEST_FILE = 1 << 20
_MOST_NODES = 50_000

# pydantic's error types, as "must be …" says them.
_EXPECTED = {
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
}


@dataclass(frozen=True)
class Format[Model: BaseModel]:
    """A kind of file.

    ``noun`` is what users call it, ``usual`` the name that it usually has, ``hint`` the next step where it is wrong.
    ``not_text`` are keys whose values are numbers or truths, ``numbers`` those of lists of numbers; all else is text
    for the model, whatever YAML makes of it: 1.20 is a version and no number. Below ``of_the_user`` keys are the
    user's own.
    ``missing`` says what to write where a key is missing, ``empty`` what is wrong with an empty list and what to write.
    ``defaults`` are keys that the text may leave out, by the file's folder and what the text has.
    """

    noun: str
    usual: str
    hint: str
    no_file: str
    model: type[Model]
    schema: Callable[[], dict[str, Any]]
    not_text: frozenset[str]
    numbers: frozenset[str] = frozenset()
    of_the_user: frozenset[str] = frozenset()
    missing: Mapping[str, str] = field(default_factory=dict)
    empty: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    defaults: Callable[[Path, Mapping[str, object]], dict[str, object]] = lambda *_: {}

    def load(self, path: Path, overrides: Mapping[str, str] | None = None, *, text: str = "") -> Model:
        """Read and check a file; relative paths in it become absolute, from its folder. ``overrides`` replace keys.

        With ``text`` no file is read: it is what a file of that name would say. Checks also what only the text or
        the folder can tell. Raises BakefileError with every problem, or InputError when there is no file to read.
        """
        parsed = parse(text or self._read(path), as_text=self._is_text, most=_MOST_NODES)
        problems = list(parsed.problems)
        loaded: Model | None = None
        if len(parsed.documents) > 1:
            extra = parsed.documents[1]
            problems.append(Problem("file", "a second document begins here", extra.line, "keep one, remove the ---"))
        elif parsed.documents:
            loaded, found = self._validate(parsed.documents[0], path.absolute().parent, overrides or {})
            problems += found
        elif not problems:
            problems.append(Problem("file", "is empty", 1))
        if problems or loaded is None:
            in_order = sorted(problems, key=lambda problem: (problem.line, problem.where))
            raise BakefileError(str(path), tuple(in_order), hint=self.hint)
        return loaded

    def _read(self, path: Path) -> str:
        try:
            with path.open("rb") as handle:
                content = handle.read(_LARGEST_FILE + 1)
        except FileNotFoundError:
            raise InputError(f"there is no {self.noun} {path}", hint=self.no_file) from None
        except IsADirectoryError:
            inside = path / self.usual
            hint = f"write -f {inside}" if inside.is_file() else "-f takes the file itself"
            raise InputError(f"{path} is a folder, not a {self.noun}", hint=hint) from None
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
        if len(content) > _LARGEST_FILE:
            raise InputError(f"{path} is larger than 1 MiB: this is not a {self.noun}", hint=self.hint)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            problem = Problem("file", f"not UTF-8: the byte 0x{content[error.start]:02x}", line, "save it as UTF-8")
            raise BakefileError(str(path), (problem,), hint=self.hint) from None

    def _is_text(self, where: Where) -> bool:
        if len(where) > 1 and where[-2] in self.numbers:
            return False
        return bool(where) and (where[-1] not in self.not_text or (len(where) > 1 and where[-2] in self.of_the_user))

    def _validate(
        self, document: Document, folder: Path, overrides: Mapping[str, str]
    ) -> tuple[Model | None, list[Problem]]:
        data = document.data
        if data is None:
            return None, [Problem("file", "is empty", document.line)]
        if not isinstance(data, dict):
            message = f"must be a mapping of keys, not {described(data)}"
            return None, [Problem("file", message, document.line, "begin with version: 1")]
        whole = {**self.defaults(folder, data), **data, **overrides}
        try:
            return self.model.model_validate(whole, strict=True, context=Reading(folder)), []
        except ValidationError as error:
            found = error.errors(include_url=False)
            return None, [self._problem(each, document) for each in found if not _is_echo(each)]

    def _problem(self, error: ErrorDetails, document: Document) -> Problem:
        """Say one of pydantic's errors in plain words, at the place in the user's text."""
        where: Where = tuple(part for part in error["loc"] if part != "[key]")
        reached, line = document.find(where)
        if isinstance(_value(document.data, reached), str):
            where = reached  # a shorthand: the text has nothing below it
        message, suggestion = self._words(error, where)
        return Problem(dotted(where), message, line, suggestion)

    def _words(self, error: ErrorDetails, where: Where) -> tuple[str, str]:
        """Return what is wrong and what to write instead."""
        kind, value, context = error["type"], error["input"], error.get("ctx", {})
        last = str(where[-1]) if where else ""
        message, suggestion = error["msg"], ""
        if kind == WRONG:
            message, suggestion = context["message"], context["suggestion"]
        elif kind == "missing":
            message, suggestion = "is missing", self.missing.get(last, "")
        elif kind == "extra_forbidden":
            message, suggestion = "no such key", close(last, self._known_keys(where[:-1]))
        elif kind in _EXPECTED:
            message = f"must be {_EXPECTED[kind]}, not {described(value)}"
            suggestion = "give it a value or remove it" if value is None else ""
        elif kind == "literal_error":
            known = re.findall(r"'([^']*)'", context["expected"])
            message, suggestion = f"must be {_any_of(known)}, not {described(value)}", _meant(value, known)
        elif kind == "too_short":
            message, suggestion = self.empty.get(last, ("must not be empty", ""))
        elif kind in {"greater_than_equal", "less_than_equal"}:
            message, suggestion = _out_of_bounds(value, last, context)
        elif kind == "string_pattern_mismatch":
            message, suggestion = f"{value!r} does not begin with '/'", f"write /{value}"
        return message, suggestion

    def _known_keys(self, where: Where) -> tuple[str, ...]:
        """Return the keys that may stand at a place, as the JSON Schema says."""
        whole = self.schema()
        branches = [whole]
        for part in where:
            below: list[dict[str, Any]] = []
            for branch in _resolve(whole, branches):
                if isinstance(part, int):
                    below.append(branch.get("items", {}))
                else:
                    below.append(branch.get("properties", {}).get(part) or branch.get("additionalProperties") or {})
            branches = below
        return tuple(key for branch in _resolve(whole, branches) for key in branch.get("properties", {}))


def _is_echo(error: ErrorDetails) -> bool:
    """Whether an error only follows from another: what depends on a wrong value, a list whose items are all wrong."""
    return error["type"] == "default_factory_not_called" or (error["type"] == "too_short" and bool(error["input"]))


def _out_of_bounds(value: object, key: str, context: dict[str, Any]) -> tuple[str, str]:
    if key in {"tcp", "port"}:
        return f"{value} is not a valid port", "write a number from 1 to 65535"
    return (f"{value} is less than {context['ge']}" if "ge" in context else f"{value} is more than {context['le']}"), ""


def _any_of(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"one of {', '.join(words)}"


def _meant(value: object, known: Sequence[str]) -> str:
    meant = close(str(value), known)
    return meant if meant.startswith("did you mean") else ""


def _value(data: Any, where: Where) -> object:
    """Return what is at a place that the document has."""
    return reduce(operator.getitem, where, data)


def _resolve(whole: dict[str, Any], branches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Follow references and alternatives to schemas that stand for themselves."""
    flat: list[dict[str, Any]] = []
    for branch in branches:
        if "$ref" in branch:
            flat += _resolve(whole, [whole["$defs"][branch["$ref"].rpartition("/")[2]]])
        elif "anyOf" in branch and "properties" not in branch:
            flat += _resolve(whole, branch["anyOf"])
        else:
            flat.append(branch)
    return flat
