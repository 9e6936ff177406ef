"""Functions in processes of their own: to be killed, or to try out what changes nothing here."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable


def in_child(act: Callable[[], object], born: Callable[[int], object] = lambda _child: None) -> int:
    """Call a function in a copy of this process and return how that ended, in ``subprocess``'s numbers.

    ``born`` is called here with the child's number. Other threads are not copied: their locks must be free.
    """
    child = fork()
    if not child:
        code = 1
        try:
            act()
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    born(child)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork() -> int:
    """Copy this process without a word on its other threads, which are not copied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()
