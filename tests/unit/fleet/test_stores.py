"""What was begun last stays so, whoever asks for what was before."""

from __future__ import annotations

from pathlib import Path

import pytest

from parbake.core.errors import InputError
from parbake.fleet.stores import Begun, begin
from parbake.records.store.port import MOST

NAME = "rollout/shop"
OLD, NEW = Begun("2026-12-01T10:00:00", "2026-12-01", "r1"), Begun("2026-12-02T10:00:00", "2026-12-02", "r2")


def test_what_is_asked_for_later_begins_and_a_second_try_too(tmp_path: Path) -> None:
    for each in (OLD, OLD, NEW, NEW):
        begin(str(tmp_path), NAME, each)
    begin(str(tmp_path), "rollout/other", OLD)


@pytest.mark.parametrize("run", ["r1", "r3"])
@pytest.mark.parametrize("again", [False, True])
def test_what_was_asked_for_before_does_not_begin(tmp_path: Path, run: str, again: bool) -> None:
    begin(str(tmp_path), NAME, OLD)
    begin(str(tmp_path), NAME, NEW)
    for at in (OLD.at, NEW.at):
        with pytest.raises(InputError, match="was asked for at") as caught:
            begin(str(tmp_path), NAME, Begun(at, NEW.made, run), before="r0", again=again)
        assert caught.value.hint


def test_a_later_part_goes_on_and_only_from_the_last_one(tmp_path: Path) -> None:
    begin(str(tmp_path), NAME, OLD)
    part = Begun(OLD.at, OLD.made, "r1-2")
    begin(str(tmp_path), NAME, part, before="r1")
    begin(str(tmp_path), NAME, part, before="r1")
    with pytest.raises(InputError, match="was asked for at"):
        begin(str(tmp_path), NAME, Begun(OLD.at, OLD.made, "r1-3"), before="r1")


def test_what_is_older_than_what_was_rolled_out_last_begins_when_somebody_says_so(tmp_path: Path) -> None:
    begin(str(tmp_path), NAME, NEW)
    older = Begun("2026-12-03T10:00:00", OLD.made, "r3")
    with pytest.raises(InputError, match="what was rolled out last is newer") as caught:
        begin(str(tmp_path), NAME, older)
    assert "--again" in caught.value.hint
    begin(str(tmp_path), NAME, older, again=True)


@pytest.mark.parametrize("content", [b"\xff", b"[]", bytes(MOST + 1)], ids=["odd", "list", "large"])
def test_a_note_that_somebody_has_broken_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "begun/rollout").mkdir(parents=True)
    (tmp_path / f"begun/{NAME}.json").write_bytes(content)
    begin(str(tmp_path), NAME, NEW)
    with pytest.raises(InputError, match="was asked for at"):
        begin(str(tmp_path), NAME, OLD)
