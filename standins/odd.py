"""Odd words: what a stranger may say where a document is expected, for properties of whoever reads it."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

_DEEP: Any = 0
for _ in range(300):
    _DEEP = [_DEEP]

odd_bytes = st.one_of(
    st.binary(max_size=64),
    st.sampled_from([
        b"", b"[" * 20_000, b'{"a":' * 20_000, b"9" * 5000, b"1e999", b"NaN", b"null", b"\xff\xfe", b'"\\ud800"',
        b"{}", b"[]", b"\x28\xb5\x2f\xfd", b"\x00" * 4096,
    ]),
)  # fmt: skip
"""Bytes that are no document, or one that readers trip over: deep, long, of no encoding."""

odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(
        [-1, 0, 1 << 31, 1 << 62, 1 << 63, 1 << 64, 10**400, -(10**400), 1e308, 0.5, float("nan"), float("inf")]
    ),
    st.text(max_size=8),
    st.sampled_from(["", "\ud800", "\x00", "../../x", "/etc/passwd", "\x1b[2J", "9" * 5000, "a" * 70_000, "٣"]),
    st.just(_DEEP),
    st.lists(st.integers() | st.none(), max_size=2),
    st.dictionaries(st.text(max_size=4), st.none() | st.integers(), max_size=2),
)
"""Values of any type, and such of the right type as nobody expects."""


def _paths(document: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    within = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [at, *(path for key, value in within for path in _paths(value, (*at, key)))]


@st.composite
def with_something_odd(draw: st.DrawFn, document: Any) -> Any:
    """Draw a copy of a document in which something is left out, added, or exchanged for something odd."""
    changed = json.loads(json.dumps(document))
    path = draw(st.sampled_from(_paths(changed)))
    if not path:
        return draw(odd_values)
    place = changed
    for key in path[:-1]:
        place = place[key]
    how = draw(st.sampled_from(["exchange", "leave out", "add"]))
    if how == "leave out":
        del place[path[-1]]
    elif how == "add" and isinstance(place, dict):
        place[draw(st.text(max_size=4) | st.sampled_from(["-1", "9" * 400, "1e3"]))] = draw(odd_values)
    else:
        place[path[-1]] = draw(odd_values)
    return changed
