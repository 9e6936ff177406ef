"""Challenges are read as RFC 9110 writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.images.registry.auth import Challenge, read_challenges


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (['Basic realm="test"'], [Challenge("basic", {"realm": "test"})]),
        (["Basic"], [Challenge("basic", {})]),
        (
            ['Bearer realm="https://auth.test/token",service="reg.test",scope="repository:a/b:pull,push"'],
            [
                Challenge(
                    "bearer",
                    {"realm": "https://auth.test/token", "service": "reg.test", "scope": "repository:a/b:pull,push"},
                )
            ],
        ),
        (
            ['bearer  REALM = "x" , error=invalid_token'],
            [Challenge("bearer", {"realm": "x", "error": "invalid_token"})],
        ),
        (
            ['Bearer realm="a", Basic realm="b"'],
            [Challenge("bearer", {"realm": "a"}), Challenge("basic", {"realm": "b"})],
        ),
        (
            ["Negotiate", 'Basic realm="b"'],
            [Challenge("negotiate", {}), Challenge("basic", {"realm": "b"})],
        ),
        (
            ['Negotiate YWJj==, Basic realm="b"'],
            [Challenge("negotiate", {}), Challenge("basic", {"realm": "b"})],
        ),
        (["Negotiate, Basic realm=b"], [Challenge("negotiate", {}), Challenge("basic", {"realm": "b"})]),
        ([r'Basic realm="a \"quoted\", word"'], [Challenge("basic", {"realm": 'a "quoted", word'})]),
        (['Basic realm="never closed'], [Challenge("basic", {})]),
        ([""], []),
        ([", ,"], []),
    ],
)
def test_reading(headers: list[str], expected: list[Challenge]) -> None:
    assert read_challenges(headers) == expected


_WORDS = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
_BESIDE = st.tuples(st.sampled_from(["Basic", "BEARER", "x-own"]), _WORDS, _WORDS)


@given(st.lists(_BESIDE | st.text(max_size=60), max_size=5))
def test_any_text_is_read_or_left_and_hides_no_challenge_beside_it(headers: list[tuple[str, str, str] | str]) -> None:
    """One header each: what cannot be read ends its own."""
    expected: list[Challenge] = []
    lines: list[str] = []
    for header in headers:
        if isinstance(header, str):
            lines.append(header)
            expected += read_challenges([header])
        else:
            scheme, key, value = header
            lines.append(f'{scheme} {key}="{value}"')
            expected.append(Challenge(scheme.lower(), {key: value}))
    assert read_challenges(lines) == expected
    assert all(each.scheme == each.scheme.lower() for each in expected)


@given(
    st.dictionaries(_WORDS, st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20), min_size=1)
)
def test_what_is_written_is_read(parameters: dict[str, str]) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    text = ", ".join(f"{key}={quoted(value)}" for key, value in parameters.items())
    assert read_challenges([f"Bearer {text}"]) == [Challenge("bearer", parameters)]
