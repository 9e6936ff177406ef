"""A thread that holds things which the kernel ties to a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self


class Keeper:
    """Runs ``start`` in a thread of its own and keeps that thread until the end of the ``with`` block.

    A mount namespace entered by ``start`` is that thread's alone, and a process that it starts sees the thread alive
    (``PR_SET_PDEATHSIG`` acts on the death of the thread that forked). What ``start`` registers with its stack is
    undone in the same thread. What it raises is raised on entry.
    """

    def __init__(self, start: Callable[[ExitStack], None]) -> None:
        self._start = start
        self._started = threading.Event()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def _keep(self) -> None:
        try:
            with ExitStack() as stack:
                self._start(stack)
                self._started.set()
                self._stop.wait()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for us
            self._error = error
        finally:
            self._started.set()

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._started.wait()
        except BaseException:  # Ctrl-C while it starts
            self._end()
            raise
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._error is not None:
            raise self._error

    def _end(self) -> None:
        self._stop.set()
        self._thread.join()
