"""Wait for AWS: with a deadline, progress, terminal failures told at once, and patience with eventual consistency.

A resource that was just made can be unknown for a while (EC2 API reference, "Eventual consistency").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parbake.aws.errors import fault
from parbake.core.errors import AwsNotFound, DeadlineExceeded
from parbake.core.events import Events
from parbake.core.run import Deadline

# How long a new resource may be unknown before that is believed, in seconds.
UNKNOWN_SECONDS = 150.0
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 15.0


@dataclass(frozen=True, slots=True)
class Observation:
    """What one look at a resource saw. ``percent`` is for progress (None: unknown); ``failed`` is why it never will."""

    done: bool
    state: str = ""
    percent: int | None = None
    failed: str = ""
    value: Any = None


def wait(
    what: str,
    look: Callable[[], Observation],
    *,
    seconds: float,
    events: Events,
    hint: str = "",
    new: bool = True,
    longest_pause: float = 0.0,
) -> Any:
    """Call ``look`` until it says done, and return its value; ``seconds`` bounds it, progress goes to ``events``.

    ``longest_pause`` is in seconds (0: the usual). ``new``: the resource was just made, so that "not found" is
    believed only after a while. Raises AwsError when it failed (AwsNoAccess: a KMS key cannot be used),
    DeadlineExceeded when it takes too long (``hint`` says what then), and whatever ``look`` raises.
    """
    deadline = Deadline(seconds, what)
    unknown = Deadline(UNKNOWN_SECONDS if new else 0.0, what)
    pause = _FIRST_PAUSE
    with events.task(what, 100, unit="items") as task:
        while True:
            try:
                seen = look()
            except AwsNotFound as error:
                if not unknown.left:
                    if not new:
                        raise
                    raise _still_unknown(error, unknown.seconds) from error
                seen = Observation(False, "not known yet")
            if seen.failed:
                raise fault("", seen.failed, what)
            if seen.percent is not None and seen.percent > task.done:
                task.advance(seen.percent - task.done)
            if seen.done:
                return seen.value
            try:
                deadline.sleep(pause)
            except DeadlineExceeded as error:
                state = f" (last seen: {seen.state})" if seen.state else ""
                raise DeadlineExceeded(f"{error.message}{state}", hint=hint or error.hint) from None
            pause = min(pause * 1.5, longest_pause or _LONGEST_PAUSE)


def when_known[T](call: Callable[[], T], *made: str) -> T:
    """Make a call that names what was made a moment ago: refused for want of that, it is made again for a while.

    ``made`` are the ids of what is new; AWS's words name what it does not find. Raises what the call raises.
    """
    unknown, pause = Deadline(UNKNOWN_SECONDS, "AWS"), _FIRST_PAUSE
    while True:
        try:
            return call()
        except AwsNotFound as error:
            if not any(each in error.message for each in made):
                raise
            if not unknown.left:
                raise _still_unknown(error, unknown.seconds) from error
        unknown.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def _still_unknown(error: AwsNotFound, seconds: float) -> AwsNotFound:
    return AwsNotFound(
        f"{error.message}, not even {seconds:.0f} s after it was made",
        code=error.code,
        hint="somebody has removed it, or AWS has a problem: run the same command again",
    )
