"""Many calls in flight, as many as AWS takes: the one place where calls for blocks are repeated.

The number in flight is halved when AWS throttles and grows by one for each round of calls that went well (additive
increase, multiplicative decrease); what is repeated waits a random part of a time that doubles. The client for blocks
repeats nothing itself.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Final

from parbake.aws import waiters
from parbake.core.errors import AwsError, AwsLimit, AwsNotFound, Interrupted

IN_FLIGHT: Final = 64
# With the pauses between, half a minute (at most 53 s): AWS throttles for seconds, and what lasts longer is an error.
_TRIES = 12
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 8.0  # seconds
# Calls that were under way when AWS began to throttle count as one refusal.
_ONE_CUT = 0.5
_SERVER = frozenset({"InternalServerException", "InternalError", "InternalFailure", "ServiceUnavailable"})
_THROTTLING = frozenset({"SlowDown", "RequestLimitExceeded", "TooManyRequestsException"})


class Pace:
    """Lets at most ``most`` calls run at once, fewer while AWS throttles. Thread-safe."""

    def __init__(self, most: int = IN_FLIGHT) -> None:
        self.most = most
        self.limit = float(most)
        self._running = 0
        self._changed = threading.Condition()
        self._cut_at = 0.0
        self._stopped = threading.Event()
        self._started = time.monotonic()

    def stop(self) -> None:
        """Let no further call begin: those that wait raise Interrupted."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def call[T](self, function: Callable[[], T]) -> T:
        """Call a function, again while it fails in a way that passes. Raises AwsError after the last try."""
        tries = 0
        while True:
            self._enter()
            try:
                result = function()
            except AwsError as error:
                self._leave(throttled=_is_throttling(error))
                unknown = isinstance(error, AwsNotFound) and time.monotonic() - self._started < waiters.UNKNOWN_SECONDS
                tries += not unknown
                if not (unknown or _passes(error)) or tries >= _TRIES:
                    raise
            except BaseException:
                self._leave(throttled=False)
                raise
            else:
                self._leave(throttled=None)
                return result
            pause = min(_FIRST_PAUSE * 2 ** min(tries, 16), _LONGEST_PAUSE)
            self._stopped.wait(random.uniform(pause / 4, pause))  # noqa: S311 (jitter, not secrets)

    def _enter(self) -> None:
        with self._changed:
            while self._running >= int(self.limit) and not self._stopped.is_set():
                self._changed.wait()
            if self._stopped.is_set():
                raise Interrupted("the transfer was stopped")
            self._running += 1

    def _leave(self, *, throttled: bool | None) -> None:
        """``throttled`` None: it went well."""
        with self._changed:
            self._running -= 1
            now = time.monotonic()
            if throttled and now - self._cut_at > _ONE_CUT:
                self._cut_at = now
                self.limit = max(1.0, self.limit / 2)
            elif throttled is None:
                self.limit = min(float(self.most), self.limit + 1 / self.limit)
            self._changed.notify()

    def each[T](self, items: Sequence[T], work: Callable[[T, bytearray], None], buffer: int) -> None:
        """Let as many threads work on items, each with a buffer of its own of so many bytes.

        When one fails, or this thread is interrupted, no further item is started and the error comes out.
        """
        following = iter(items)  # a sequence's iterator may be shared between threads

        def worker() -> None:
            mine = bytearray(buffer)
            for item in following:
                if self._stopped.is_set():
                    return
                work(item, mine)

        threads = min(self.most, max(len(items), 1))
        with ThreadPoolExecutor(threads) as pool:
            workers = [pool.submit(worker) for _ in range(threads)]
            try:
                wait(workers, return_when=FIRST_EXCEPTION)
            except BaseException:
                self.stop()
                raise
            self.stop()
        failures = [error for done in workers if (error := done.exception())]
        for error in sorted(failures, key=lambda error: isinstance(error, Interrupted)):
            raise error  # the first that is not a consequence of another


def _is_throttling(error: AwsError) -> bool:
    return isinstance(error, AwsLimit) and ("hrottl" in error.code or error.code in _THROTTLING)


def _passes(error: AwsError) -> bool:
    """Whether the same call may succeed later: throttling, a server's fault, a connection that broke."""
    server = error.code in _SERVER or (error.code.isdigit() and int(error.code) >= 500)
    return _is_throttling(error) or server or (type(error) is AwsError and not error.code)
