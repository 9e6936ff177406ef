"""Functions in processes of their own: to be killed, or to try out what changes nothing here."""

from __future__ import annotations

import gc
import os
import posix
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Never


def in_child(
    act: Callable[[], object],
    born: Callable[[int], object] = lambda _child: None,
    copied: Callable[[], int] | None = None,
) -> int:
    """Call a function in a copy of this process and return how that ended, in ``subprocess``'s numbers.

    ``born`` is called here with the child's number. Other threads are not copied: their locks must be free, for which
    ``copied`` may wait instead of ``fork``.
    """
    child = (copied or fork)()
    if not child:
        code = 1
        try:
            act()
            code = 0
        finally:
            if code:
                traceback.print_exc()
            leave(code)
    born(child)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork() -> int:
    """Copy this process without a word on its other threads, which are not copied; coverage goes on."""
    with warnings.catch_warnings(), ExitStack() as locks:
        warnings.simplefilter("ignore", DeprecationWarning)
        for lock in _locks_of_coverage():
            locks.enter_context(lock)
        child = os.fork()
    if not child:
        gc.disable()  # a search for garbage writes to all objects: each page of memory would be copied
        _forget_what_was_covered()
    return child


def leave(code: int) -> Never:
    """End a copy: it writes down which lines it ran that the process it was copied from had not run."""
    collector = _collector()
    if collector:
        for file in [file for file, lines in collector.data.items() if not lines]:
            del collector.data[file]
        if collector.data:  # each flush is a file of its own, which the end of all tests waits for
            collector.flush_data()
    posix._exit(code)  # coverage's own, in `os`, looks for all files of the program: that takes longer than most copies


def _forget_what_was_covered() -> None:
    for lines in list(getattr(_collector(), "data", {}).values()):
        lines.clear()


def _collector() -> Any:
    coverage = sys.modules.get("coverage")
    return getattr(coverage and coverage.Coverage.current(), "_collector", None)


def _locks_of_coverage() -> list[threading.Lock]:
    """Return the locks that coverage.py's monitor takes when a function is entered for the first time.

    A copy in which one stays locked, by a thread that was not copied, waits for it for ever (coverage 7.17,
    ``SysMonitor.sysmon_py_start``).
    """
    collector = _collector()
    holders = [*getattr(collector, "tracers", ()), collector]
    found = (getattr(holder, name, None) for holder in holders for name in ("lock", "data_lock"))
    return [lock for lock in found if lock is not None]
