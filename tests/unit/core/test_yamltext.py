from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from parbake.core.yamltext import dotted, parse


def _one(text: str) -> object:
    parsed = parse(text)
    assert not parsed.problems
    (document,) = parsed.documents
    return document.data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-1_000", -1000),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1.50", 1.5),
        ("1e3", 1000.0),
        (".inf", math.inf),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("~", None),
        ("", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("2026-11-24", "2026-11-24"),
        ("9" * 5000, "9" * 5000),
        ("[a, {b: c}]", ("a", {"b": "c"})),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_scalars_are_read_as_yaml_1_2_says(text: str, value: object) -> None:
    data = _one(f"key: {text}")
    assert data == {"key": value}
    assert isinstance(data, dict)
    assert type(data["key"]) is type(value)


def test_merged_mappings_are_read_as_if_written_in_place() -> None:
    text = "base: &b {a: 1, c: [x, y]}\nother: &o {a: 9, d: 4}\nmine:\n  <<: [*b, *o]\n  c: own\n"
    parsed = parse(text)
    (document,) = parsed.documents
    assert isinstance(document.data, dict)
    assert document.data["mine"] == {"a": 1, "c": "own", "d": 4}
    assert document.find(("mine", "d")) == (("mine", "d"), 2)
    assert document.find(("mine", "c")) == (("mine", "c"), 5)


def test_places_are_found_as_far_as_the_text_goes() -> None:
    (document,) = parse("# comment\na:\n  - b: 1\n  - c:\n      d: 2\n").documents
    assert document.line == 2
    assert document.find(()) == ((), 2)
    assert document.find(("a", 1, "c", "d")) == (("a", 1, "c", "d"), 5)
    assert document.find(("a", 1, "nothing", "here")) == (("a", 1), 4)
    assert document.find(("a", 7)) == (("a",), 2)
    assert document.find(("a", "b")) == (("a",), 2)
    assert dotted(("a", 1, "c.d", "e-f")) == 'a[1]["c.d"].e-f'
    assert dotted(()) == "file"


def test_a_scalar_stays_text_where_it_is_asked_to() -> None:
    parsed = parse("v: 1.20\nw: 1.20\nn: null\nb: True\n", as_text=lambda where: where[-1] != "w")
    assert parsed.documents[0].data == {"v": "1.20", "w": 1.2, "n": None, "b": "True"}


def test_documents_before_a_syntax_error_are_kept() -> None:
    parsed = parse("a: 1\n---\nb: 2\n---\nc: [\n")
    assert [document.data for document in parsed.documents] == [{"a": 1}, {"b": 2}]
    assert parsed.syntax_error is not None
    assert parsed.syntax_error.line == 5


def test_a_problem_of_a_merged_mapping_is_told_once() -> None:
    assert len(parse("a: &a {q: 1, q: 2}\nb: {<<: *a}\nc: {<<: *a}\n").problems) == 1


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "a: &a {<<: *a}",
        "[" * 3000,
        "{a: " * 3000,
        "- " * 3000 + "x",
        "a0: &a0 {}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 15)),
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 15)),
    ],
)
def test_bombs_are_bounded(text: str) -> None:
    parsed = parse(text, most=1000)
    assert parsed.syntax_error is not None
    assert "nested deeper" in str(parsed.syntax_error) or "more than 1000 nodes" in str(parsed.syntax_error)


@pytest.mark.parametrize("text", ['a: "\\0"', 'a: "\\ud800"', 'a: "\\udfff"'])
def test_characters_that_no_program_can_be_given_are_problems(text: str) -> None:
    (problem,) = parse(text).problems
    assert problem.line == 1
    assert problem.where == "a"


_LETTERS = st.characters(codec="utf-8", exclude_characters="\0")
_plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(_LETTERS, max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc<~é", min_size=1, max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


def _tuples(data: object) -> object:
    if isinstance(data, list):
        return tuple(_tuples(item) for item in data)
    return {key: _tuples(value) for key, value in data.items()} if isinstance(data, dict) else data


@given(st.dictionaries(st.text("abc", min_size=1), _plain, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_json_is_yaml(data: dict[str, object]) -> None:
    parsed = parse(json.dumps(data))
    assert not parsed.problems
    assert parsed.documents[0].data == _tuples(data)


@given(st.text("ab:-?[]{}#&*!|>'\"%@`,~=0123. \n\t\0", max_size=40))
@example("!0 :")
@settings(max_examples=300, deadline=None)
def test_whatever_the_text_it_is_read_or_explained(text: str) -> None:
    parsed = parse(text)
    if parsed.problems:
        assert all(problem.message for problem in parsed.problems)
        return
    # Where we say nothing, ruamel's own safe loader, a peer here, reads the same text.
    loader = YAML(typ="safe", pure=True)
    assert len(list(loader.load_all(text))) == len(parsed.documents)
