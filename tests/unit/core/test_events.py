from __future__ import annotations

import threading

import pytest

from parbake.core.events import Event, Events


def test_events_reach_every_sink_and_time_stages() -> None:
    seen: list[Event] = []
    events = Events(seen.append)
    with events.stage("fill", "Filling"), events.task("layer", 10) as task:
        task.advance(4)
        task.advance(6)
    events.note("n")
    events.warn("w")
    kinds = [event.kind for event in seen]
    assert kinds == ["stage-start", "task-start", "task-end", "stage-end", "note", "warning"]
    assert seen[2].done == 10
    assert seen[3].ok
    assert events.timings["fill"] >= 0


def test_a_failed_stage_says_so() -> None:
    seen: list[Event] = []
    events = Events(seen.append)
    with pytest.raises(ValueError, match="x"), events.stage("s", "S"), events.task("t"):
        raise ValueError("x")
    assert [event.ok for event in seen if event.kind.endswith("-end")] == [False, False]


def test_tasks_count_from_many_threads() -> None:
    seen: list[Event] = []
    with Events(seen.append).task("t", 8000) as task:

        def work() -> None:
            for _ in range(1000):
                task.advance(1)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen[-1].done == 8000
