"""What is said to a run or a rollout counts for that one, as what it is, and once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from parbake.fleet.engine import messages
from parbake.fleet.engine.messages import Heard, Told, asked, echoed, first_run, is_of, this_run
from parbake.fleet.engine.tasks import Baked, Counts, Progress


@pytest.fixture(autouse=True)
def _is_the_second_part_of_run_one(monkeypatch: pytest.MonkeyPatch) -> None:
    info = SimpleNamespace(first_execution_run_id="one", run_id="one-2")
    monkeypatch.setattr(messages, "workflow", SimpleNamespace(info=lambda: info))


def test_what_is_said_is_heard_once_also_by_later_parts() -> None:
    heard, told = Heard([]), Told("back", "one/g")
    assert heard.is_new(told, "back", "g")
    assert heard.takes(told, "back", "g")
    assert not heard.is_new(told, "back", "g")
    assert not heard.takes(told, "back", "g")
    assert not Heard(heard.once).takes(told, "back", "g")
    assert heard.takes(Told("back", "one/g"), "back", "g"), "somebody says it again"


@pytest.mark.parametrize("told", [Told("pause", "one/g"), Told("back", "two/g"), Told("back", "one/older")])
def test_what_is_said_otherwise_or_to_another_is_not_heard(told: Told) -> None:
    heard = Heard([])
    assert not heard.takes(told, "back", "g")
    assert heard.once == []


@pytest.mark.parametrize(("first", "run"), [("one", "one"), ("", "one-2")])
def test_what_is_said_to_a_later_part_is_about_the_whole_run(first: str, run: str) -> None:
    raw = SimpleNamespace(workflow_execution_info=SimpleNamespace(first_run_id=first))
    assert first_run(cast(Any, SimpleNamespace(raw_description=raw, run_id="one-2"))) == run


def test_only_the_run_that_was_asked_answers() -> None:
    word = asked("one-2")
    assert echoed(word) == word
    assert echoed(asked("one")) == ""
    assert asked("one-2") != word, "nobody can know it before"


def test_a_result_is_that_of_its_run_whose_parts_share_it() -> None:
    for result in (Baked("a.raw", True, True, run=this_run()), Progress(Counts(), 1, run=this_run())):
        assert is_of("one", result)
        assert not is_of("two", result)
    assert not is_of("", Progress(Counts(), 1)), "an answer to a question is no result"
