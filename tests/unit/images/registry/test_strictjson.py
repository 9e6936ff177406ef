"""The reader of JSON that nobody can read otherwise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.images.registry.strictjson import CONFIG, DOCUMENT, AmbiguousJson, load


@pytest.mark.parametrize(
    "body", [b'{"a": NaN}', b'{"a": -Infinity}', b"\xff", b"\xef\xbb\xbf{}", '{"a": 1}'.encode("utf-16")]
)
def test_what_go_does_not_read_is_not_read(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        load(body)
    assert not isinstance(raised.value, AmbiguousJson)


def test_equal_keys_are_refused_anywhere() -> None:
    with pytest.raises(AmbiguousJson, match="'b' twice"):
        load(b'{"annotations": {"x": [{"b": 1, "b": 1}]}}', DOCUMENT)
    long = "k" * 5000
    with pytest.raises(AmbiguousJson) as raised:
        load(json.dumps({long: 1}).encode()[:-1] + f', "{long}": 2}}'.encode())
    assert len(str(raised.value)) < 200


def test_unknown_keys_that_differ_in_case_are_refused_beside_known_ones() -> None:
    """Whoever reads the document may know a key that we do not."""
    with pytest.raises(AmbiguousJson, match="'new' only in case"):
        load(b'{"new": 1, "New": 2}', CONFIG)
    assert load(b'{"labels": {"new": 1, "New": 2}}', CONFIG)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda below: st.lists(below) | st.dictionaries(st.text(), below),
    )
)
def test_without_a_shape_any_json_is_read_as_it_is(value: Any) -> None:
    assert load(json.dumps(value).encode()) == value
