from __future__ import annotations

import json

import pytest

from parbake.cli.progress import PlainRenderer, rendered
from parbake.core.events import Event, Events
from parbake.core.units import human_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1024, "1.00 KiB"),
        (1536 << 10, "1.50 MiB"),
        (150 << 20, "150 MiB"),
        (5 << 40, "5120 GiB"),
    ],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


def _story(events: Events) -> None:
    with events.stage("fill", "Filling [bold]x[/bold]"):
        with events.task("layer [red]", 100) as task:
            task.advance(60)
            task.advance(40)
        with events.task("entries", 2, unit="items") as task:
            task.advance(2)
        events.note("note [a]")
    events.warn("warning")
    with pytest.raises(OSError, match="full"), events.stage("bad", "Breaking"):
        raise OSError("full")


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with rendered("plain") as events:
        _story(events)
    out = capsys.readouterr()
    assert out.out == ""
    lines = out.err.splitlines()
    assert lines[0] == "==> Filling [bold]x[/bold]"
    assert lines[1].startswith("    layer [red]: 100 B of 100 B")
    assert lines[2] == "    entries: 2/2"
    assert "    failed after 0.0 s" in lines
    assert "warning: warning" in lines


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with rendered("json") as events:
        _story(events)
    kinds = [json.loads(line)["kind"] for line in capsys.readouterr().err.splitlines()]
    assert kinds[0] == "stage-start"
    assert kinds[-1] == "stage-end"


def test_rich_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with rendered("rich") as events:
        _story(events)
    err = capsys.readouterr().err
    assert "✓ Filling [bold]x[/bold]" in err
    assert "note [a]" in err
    assert "✗ Breaking" in err


def test_none_says_nothing_and_auto_is_plain_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with rendered("none") as events:
        _story(events)
    assert capsys.readouterr().err == ""
    with rendered("auto") as events:
        events.note("x")
    assert capsys.readouterr().err == "    x\n"


def test_plain_progress_is_shown_now_and_then_only(capsys: pytest.CaptureFixture[str]) -> None:
    renderer = PlainRenderer()
    for second in range(12):
        renderer(
            Event("task-progress", "layer", task=1, done=second, total=12, unit="bytes", seconds=second, at=second)
        )
    assert len(capsys.readouterr().err.splitlines()) == 2
