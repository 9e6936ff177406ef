"""The function that makes words of others fit to be shown."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from parbake.core import printable
from tests.unit.cli.test_words_of_others import check

PIECES = ["\n", " ", "::", "#", "[", "error", "\x1b", "[0m", "\r", "\t", "é"]


@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
def test_whatever_the_text(text: str) -> None:
    check(printable.lines(text))
    check("x" + printable.word(text).replace("##", ""))
    assert "\n" not in printable.word(text)
    dumped = printable.dump({"a": [text]}, indent=2)
    check(dumped)
    assert json.loads(dumped) == {"a": [text]}


def test_what_is_harmless_stays() -> None:
    for text in ("registry.example/app:1@sha256:0", "a::b c", "# 1", "## Heading", "über …\n─ ✓ 漢字", "a[b] #[c]"):
        assert printable.lines(text) == text
    assert printable.lines("\x1b[0;32m  OK  \x1b[0m Started\r\n\ta") == "  OK   Started\n        a"
    assert printable.word("a\nb\x1b") == "a\\nb\\x1b"
