"""One stream of events, several renderers.

The story reports what it does to an ``Events``; sinks render it (rich, plain or JSON lines, in
``parbake.cli.progress``) or collect it (tests, records). Rooms below the story take an ``Events`` or a bare
``Progress`` callable: no globals.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, Self

Kind = Literal["stage-start", "stage-end", "task-start", "task-progress", "task-end", "note", "warning"]

# Progress is shown at most this often (seconds): faster only costs time.
_REPORT_INTERVAL = 0.1


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, ``at`` seconds of the monotonic clock.

    ``task`` numbers tasks; ``done`` and ``total`` are in ``unit`` ("bytes" or "items"; total 0: unknown);
    ``seconds`` is how long a stage or task took.
    """

    kind: Kind
    text: str
    name: str = ""
    task: int = 0
    done: int = 0
    total: int = 0
    unit: str = ""
    seconds: float = 0.0
    ok: bool = True
    at: float = field(default_factory=time.monotonic)


Sink = Callable[[Event], None]


class Task:
    """Progress of one thing (a layer, a copy); thread-safe; reports at most ten times a second."""

    def __init__(self, emit: Sink, number: int, text: str, total: int, unit: str) -> None:
        self._emit, self._number, self.text, self._unit = emit, number, text, unit
        self._lock = threading.Lock()
        self._started = self._reported = time.monotonic()
        self.total = total
        self.done = 0

    def advance(self, amount: int) -> None:
        """Say that ``amount`` more is done."""
        with self._lock:
            self.done += amount
            now = time.monotonic()
            if now - self._reported < _REPORT_INTERVAL:
                return
            self._reported = now
            done = self.done
        self._emit(self._event("task-progress", done))

    def _event(self, kind: Kind, done: int, *, ok: bool = True) -> Event:
        seconds = time.monotonic() - self._started
        return Event(kind, self.text, "", self._number, done, self.total, self._unit, seconds, ok)

    def __enter__(self) -> Self:
        self._emit(self._event("task-start", 0))
        return self

    def __exit__(self, exception: object, *_: object) -> None:
        self._emit(self._event("task-end", self.done, ok=exception is None))


class Events:
    """Takes events from any thread and hands each to every sink, one at a time."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks
        self._lock = threading.Lock()
        self._numbers = count(1)
        self.timings: dict[str, float] = {}
        """Seconds that each finished stage took, by its name."""
        self.taken: list[str] = []
        """The names of the artefacts that were chosen for a name, a key or nothing, in that order."""

    def emit(self, event: Event) -> None:
        """Hand one event to every sink."""
        with self._lock:
            for sink in self._sinks:
                sink(event)

    @contextmanager
    def stage(self, name: str, text: str) -> Iterator[None]:
        """Mark a stage of the story; ``name`` keys its time in ``timings``, ``text`` is for people."""
        started = time.monotonic()
        self.emit(Event("stage-start", text, name))
        ok = False
        try:
            yield
            ok = True
        finally:
            seconds = time.monotonic() - started
            self.timings[name] = self.timings.get(name, 0.0) + seconds
            self.emit(Event("stage-end", text, name, seconds=seconds, ok=ok))

    def task(self, text: str, total: int = 0, *, unit: str = "bytes") -> Task:
        """Return a task to be entered with ``with``."""
        return Task(self.emit, next(self._numbers), text, total, unit)

    def take(self, artefact: str, text: str) -> None:
        """Say which artefact is worked on, where a user's words could have meant several."""
        self.taken.append(artefact)
        self.note(text)

    def note(self, text: str) -> None:
        """Say something that a reader may want to know."""
        self.emit(Event("note", text))

    def warn(self, text: str) -> None:
        """Say something that a reader should act on."""
        self.emit(Event("warning", text))
