"""Renderers of the event stream: a terminal (rich), plain lines, JSON lines. All write to standard error.

rich is loaded only for a terminal: a bake with nothing to do is over in less time than that takes.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, override

from parbake.core import printable
from parbake.core.events import Event, Events
from parbake.core.units import human_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.text import Text

Style = Literal["auto", "rich", "plain", "json", "none"]

# Plain output is read in CI logs: a line for progress now and then, not a film.
_PLAIN_INTERVAL = 5.0


def _amount(done: float, total: float, unit: str, seconds: float) -> str:
    if unit != "bytes":
        return f"{done:.0f}/{total:.0f}" if total else f"{done:.0f}"
    text = f"{human_bytes(done)} of {human_bytes(total)}" if total else human_bytes(done)
    return f"{text}, {human_bytes(done / seconds)}/s" if seconds > 0.05 and done else text


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class PlainRenderer:
    """One line for each thing that happened: for logs and pipes."""

    def __init__(self) -> None:
        self._shown: dict[int, float] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        line = self._line(event)
        if line:
            _say(printable.lines(line))

    def _line(self, event: Event) -> str:
        amount = _amount(event.done, event.total, event.unit, event.seconds)
        line, text = "", printable.word(event.text)
        match event.kind:
            case "stage-start":
                line = f"==> {text}"
            case "stage-end":
                line = f"    {'' if event.ok else 'failed after '}{event.seconds:.1f} s"
            case "task-progress" if self._is_due(event):
                line = f"    {text}: {amount}"
            case "task-end":
                line = f"    {text}: {'' if event.ok else 'failed at '}{amount}"
            case "note":
                line = f"    {event.text}"
            case "warning":
                line = f"warning: {event.text}"
            case _:
                pass
        return line

    def _is_due(self, event: Event) -> bool:
        last = self._shown.setdefault(event.task, event.at - event.seconds)
        if event.at - last < _PLAIN_INTERVAL:
            return False
        self._shown[event.task] = event.at
        return True


def json_renderer(event: Event) -> None:
    """Print each event as one line of JSON: for programs that follow a bake."""
    _say(printable.dump(dataclasses.asdict(event)))


class RichRenderer:
    """Stages as ticked lines, tasks as bars with bytes and rates."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._tasks: dict[int, TaskID] = {}
        self._stages: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        from rich.text import Text  # no markup: neither tags nor emoji of names and of what others say mean anything

        text = printable.line(event.text)
        match event.kind:
            case "stage-start":
                self._stages[event.name] = self._progress.add_task(text, total=None, unit="", style="bold")
            case "stage-end":
                self._drop(self._stages.pop(event.name, None))
                mark = ("✓", "green") if event.ok else ("✗", "red")
                self._print(Text.assemble(mark, f" {text} ", (f"{event.seconds:.1f} s", "dim")))
            case "task-start":
                total = event.total or None
                self._tasks[event.task] = self._progress.add_task(f"  {text}", total=total, unit=event.unit)
            case "task-progress" if event.task in self._tasks:
                self._progress.update(self._tasks[event.task], completed=event.done)
            case "task-end":
                self._drop(self._tasks.pop(event.task, None))
            case "note":
                self._print(Text(printable.lines(f"  {event.text}"), "dim"))
            case "warning":
                self._print(Text.assemble(("warning:", "yellow"), f" {printable.lines(event.text)}"))
            case _:
                pass

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)  # the terminal wraps: no word of others begins a line

    def _drop(self, task: TaskID | None) -> None:
        if task is not None:
            self._progress.remove_task(task)


@contextmanager
def rendered(style: Style) -> Iterator[Events]:
    """Yield an event stream that is shown on standard error in the given style (``auto``: rich on a terminal)."""
    if style == "auto":
        style = "rich" if sys.stderr.isatty() else "plain"
    match style:
        case "none":
            yield Events()
        case "json":
            yield Events(json_renderer)
        case "plain":
            yield Events(PlainRenderer())
        case "rich":
            with _bars() as (console, progress):
                yield Events(RichRenderer(console, progress))


@contextmanager
def _bars() -> Iterator[tuple[Console, Progress]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TimeElapsedColumn
    from rich.text import Text

    class DescriptionColumn(ProgressColumn):
        """What is done, as it is: no markup."""

        @override
        def render(self, task: Task) -> Text:
            return Text(task.description, style=task.fields.get("style", ""))

    class AmountColumn(ProgressColumn):
        """Bytes with a rate, or a count."""

        @override
        def render(self, task: Task) -> Text:
            seconds = task.elapsed or 0.0
            return Text(_amount(task.completed, task.total or 0, task.fields.get("unit", ""), seconds), style="dim")

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        DescriptionColumn(),
        BarColumn(bar_width=24),
        AmountColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield console, progress
