"""Ctrl-C and its like, turned into one exception at a moment that harms nothing.

A signal comes between any two instructions. Python's own handler raises right there: within a ``finally``, in the
middle of an import, in a library that swallows it. Ours raises ``Stop`` only where nothing is being acquired or cleaned
up (``guarded`` code is on the stack: it tries again a little later), raises it again when somebody swallowed it, and
leaves what is being cleaned up alone. Who insists (the third time) leaves at once; the kernel then takes away what is
mounted and running, and the next run what is in files, as after ``kill -9``.

A command that has done its work reports it: before its last step it calls ``hold``, and from then on a signal waits
until the result is printed and the program ends, or until there is more to do (``resume``).

Before the command begins nothing is held, and after its end nothing is left to do: then a signal ends the program where
it is. This room imports only what every Python has loaded, so that it is there before anything else is.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import CodeType, FrameType, FunctionType
from typing import Any, Final, Literal, cast

EXIT_CODE: Final = 130
HINT: Final = "run the same command again: it resumes where it can"
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_AGAIN = 0.02  # seconds until the next try where it could not be raised
_SWALLOWED = 0.25  # seconds after which to look whether it arrived
_ONE_PRESS = 0.3  # seconds in which signals count as one: wrappers pass on what the terminal sent already
_INSISTENT = 3  # how many end the program wherever it is
# A call to containerd ends by itself, as a rule at once; one that does not is cut off after these seconds.
_LONGEST_CALL = 2.0
# So long (seconds) a signal waits for what is done to be told: whoever should read it may not read at all.
_LONGEST_TELLING = 10.0
# Cleaning up, in which nothing is raised, and what acquires: files of the standard library and functions in them.
# Libraries turn what is raised while they are being loaded into errors of their own.
_CLEANERS = frozenset({"__exit__", "__del__"})
_ACQUIRERS = (
    ("/threading.py", "start"),
    ("/subprocess.py", "__init__"),
    ("<frozen importlib._bootstrap>", "_find_and_load"),
)


class Stop(BaseException):
    """The user or the system wants the run to end. No ParbakeError, so that nobody takes it for a failure."""


class _State:
    def __init__(self) -> None:
        self.phase: Literal["start", "work", "over"] = "start"
        self.code = self.count = 0
        self.reason = ""
        self.first = self.last = 0.0
        self.held = False
        self.guarded: set[CodeType] = set()


_state = _State()


def guarded[F: Callable[..., Any]](function: F) -> F:
    """Mark a function in which, and below which, no interruption is raised: what acquires, or undoes.

    Of a generator that is what runs between its ``yield``s, not the body of the ``with`` that uses it.
    """
    _state.guarded.add(cast("FunctionType", function).__code__)
    return function


def install() -> None:
    """Listen. Call it first in a program; what was ignored when it started (``nohup``, ``&`` in scripts) stays so."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _heard)
    signal.signal(signal.SIGALRM, _look_again)
    atexit.register(_go_deaf)


def begin() -> None:
    """From here on there is something to clean up: signals raise ``Stop``."""
    _state.phase, _state.count, _state.reason, _state.held = "work", 0, "", False


def hold() -> None:
    """Say that all is done but what takes no time, such as to print the result: a signal waits until ``resume``."""
    _state.held = True


def resume() -> None:
    """Say that more is to be done after all. Raises ``Stop`` right here when a signal has come meanwhile."""
    _state.held = False
    if _state.phase == "work" and _state.count:
        _attempt(sys._getframe(1))  # noqa: SLF001 (documented; the handlers get theirs from Python)


@guarded
def end(code: int) -> None:
    """Nothing is left to clean up: from here on a signal ends the program with this exit code."""
    _state.phase, _state.code = "over", code
    if _state.count:
        signal.setitimer(signal.ITIMER_REAL, 0)


def reason() -> str:
    """Return what stopped this run, for people; "" when nothing did."""
    return _state.reason


def _go_deaf() -> None:
    """Ignore signals, last of all: the interpreter's end would put back what the system does, which is to kill."""
    for number in (*SIGNALS, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def _heard(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    if _state.phase != "work":
        _leave("interrupted" if number == signal.SIGINT else f"stopped by {name}")
    now = time.monotonic()
    if _state.count and now - _state.last < _ONE_PRESS:
        _state.last = now
        return
    _state.count, _state.last = _state.count + 1, now
    if _state.count == 1:
        _state.first = now
        _state.reason = "interrupted" if number == signal.SIGINT else f"stopped by {name}"
        _attempt(frame)
    elif _state.count < _INSISTENT:
        _tell("parbake: cleaning up; once more leaves at once, and `parbake clean` does the rest\n")
    else:
        os._exit(EXIT_CODE)


def _look_again(_number: int, frame: FrameType | None) -> None:
    if _state.phase == "work" and _state.count:
        _attempt(frame)


def _attempt(frame: FrameType | None) -> None:
    """Raise, if this is a moment for it and it is not on its way already."""
    waited = time.monotonic() - _state.first
    if _on_its_way(sys.exception()):
        signal.setitimer(signal.ITIMER_REAL, _SWALLOWED)
    elif (_state.held and waited < _LONGEST_TELLING) or _is_guarded(frame, patient=waited < _LONGEST_CALL):
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
    else:
        signal.setitimer(signal.ITIMER_REAL, _SWALLOWED)
        raise Stop(_state.reason)


def _on_its_way(error: BaseException | None) -> bool:
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, Stop):
            return True
        seen.add(id(error))
        error = error.__context__
    return False


def _is_guarded(frame: FrameType | None, *, patient: bool) -> bool:
    # What was entered right now is registered with the next instructions.
    if frame is not None and (
        frame.f_code.co_name == "__enter__" or frame.f_code.co_filename.endswith("/contextlib.py")
    ):
        return True
    while frame is not None:
        code = frame.f_code
        file, name = code.co_filename, code.co_name
        if code in _state.guarded or name in _CLEANERS:
            return True
        if any(name == acquirer and file.endswith(end) for end, acquirer in _ACQUIRERS):
            return True
        if patient and "/grpc/" in file:
            return True
        frame = frame.f_back
    return False


def _leave(what: str) -> None:
    """End the program from within a handler, with what a command that was interrupted says."""
    if _state.phase == "over":
        os._exit(_state.code)
    if "--json" in sys.argv:
        document = {"error": "Interrupted", "message": what, "hint": HINT, "exit_code": EXIT_CODE}
        with suppress(OSError):
            os.write(1, json.dumps(document, indent=2).encode() + b"\n")
    _tell(f"parbake: {what}\n  next: {HINT}\n")
    os._exit(EXIT_CODE)


def _tell(text: str) -> None:
    with suppress(OSError):  # past the buffers: the handler may have come into the middle of a write
        os.write(2, text.encode())
