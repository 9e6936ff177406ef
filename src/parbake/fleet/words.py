"""The words for how far a fleet is: its run, its bakes, its rollout, and that one's waves and targets. Pure.

Whoever shows or says one of them has the words from here: commands, the report, and workflows that refuse something.
No part is said to be under way where the whole is not, so what is said of a wave depends on the rollout's state too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from parbake.core.printable import word
from parbake.core.units import human_bytes

if TYPE_CHECKING:
    from parbake.fleet.engine.rollout_tasks import RolloutState, WaveState
    from parbake.fleet.preview import State

CELLS: Final[Mapping[State, str]] = {
    "there": "there",
    "unverified": "there, not verified",
    "bake": "to bake",
    "build": "to build and bake",
    "quarantined": "in quarantine",
    "wrong": "wrong",
}
RUN_GOES_ON: Final = frozenset({"running", "paused"})
NEEDS_SOMEBODY: Final = frozenset({"approval", "paused"})
"""States in which a rollout goes on only when somebody says so."""
GOES_FORWARD: Final = NEEDS_SOMEBODY | {"running", "window"}
ROLLOUT_GOES_ON: Final = GOES_FORWARD | {"going-back"}
# What the engine says of workflows that were not brought to an end, too.
_ENDS = {
    "completed": "is done",
    "failed": "failed",
    "canceled": "was cancelled",
    "terminated": "was ended in the engine",
    "timed_out": "was ended in the engine",
}
_RUNS = {**_ENDS, "running": "is under way", "paused": "is paused"}
_ROLLOUTS = {
    **_ENDS,
    "running": "is under way",
    "approval": "waits for an approval",
    "window": "waits for a window",
    "paused": "is paused",
    "going-back": "goes back",
    "rolled-back": "was rolled back",
    "canceled": "was cancelled; targets keep what they hold",
}
_WAVES = {
    "waits": "waits for its turn",
    "looks": "is checking its targets",
    "hands": "is being rolled out",
    "soaks": "soaks",
    "asks": "is running its gate",
    "approval": "waits for an approval",
    "done": "is done",
}
# As they are counted: of one target and of many.
_TARGETS = {
    "waits": "waiting",
    "hands": "being written",
    "holds": "holding it",
    "failed": "failed",
    "returns": "being returned",
    "returned": "returned",
    "left": "left as it was",
    "not-returned": "not returned",
}
_UNFINISHED = {"waits": "not written", "hands": "perhaps written", "returns": "not returned"}


def run(state: str, *, draining: bool = False) -> str:
    """Return what a run does, or how it has ended."""
    return "is being drained" if draining and state in RUN_GOES_ON else _RUNS.get(state, "is in a state unknown here")


def bake(*, key: str, attempt: int, worker: str, progress: Mapping[str, Any]) -> str:
    """Return what is being done for a cell of a run; without a ``key`` its images come first.

    ``worker`` is empty where nobody works on it, ``attempt`` 0 where nothing of it waits for anybody.
    """
    if not key:
        return "its images are being built"
    if not attempt:
        return "is between two steps"
    if not worker:
        return "waits for another try" if attempt > 1 else "waits for a worker"
    done = int(progress.get("done") or 0)
    return word(f"{progress.get('text') or 'has begun'}{f': {human_bytes(done)}' if done else ''}")


def phase(now: RolloutState) -> str:
    """Return the state of a rollout that has not ended: one of ``ROLLOUT_GOES_ON``."""
    if now.state in {"back", "rolled-back"}:  # the audit trail has to hear of its end
        return "going-back"
    if now.paused:
        return "paused"
    if now.opens:
        return "window"
    return "approval" if now.wave and now.wave.state == "approval" else "running"


def rollout(state: str) -> str:
    """Return what a rollout does, or how it has ended."""
    return _ROLLOUTS.get(state, "is in a state unknown here")


def wave(state: str, one: WaveState, noted: Collection[str] = ()) -> str:
    """Return what a wave does while its rollout is in a ``state``; ``noted`` are the targets that may be written."""
    if state in GOES_FORWARD:
        return _under_way(state, one.state)
    ends = {each.state for each in one.targets}
    begun = any(each.name in noted for each in one.targets)
    if state == "going-back" and begun:
        return "is being rolled back"
    if "not-returned" in ends:
        return "was not rolled back in full"
    if ends & {"returned", "left"}:
        return "was rolled back"
    unfinished = "was not finished" if begun else "was not begun"
    return _WAVES["done"] if one.state == "done" else unfinished


def _under_way(state: str, wave: str) -> str:
    if wave in {"waits", "done"}:
        return _WAVES[wave]
    if state == "paused":
        return "is paused, and needs an approval" if wave == "approval" else "is paused"
    return "waits for a window" if state == "window" else _WAVES[wave]


def target(state: str, of: str) -> str:
    """Return how a target whose own state is ``of`` stands while its rollout is in a ``state``; fits many, too."""
    goes_on = state in (GOES_FORWARD if of in {"waits", "hands"} else ROLLOUT_GOES_ON)
    return _TARGETS[of] if goes_on else _UNFINISHED.get(of, _TARGETS[of])


def targets(state: str, one: WaveState) -> str:
    """Return how many targets of a wave stand how."""
    counts = Counter(target(state, each.state) for each in one.targets)
    return ", ".join(f"{count} {words}" for words, count in counts.items()) or "-"


# What a run has done for a rollout. It is told also when that one has ended long since: so it says what was, and not
# what is.


def rollout_begun(generation: str) -> str:
    """Return the words of a run that has started a rollout."""
    return f"the run has started the rollout of {generation}"


def rollout_superseded(generation: str, before: str) -> str:
    """Return the words of a run whose rollout takes the place of the one before."""
    return f"the run has started the rollout of {generation}, in the place of that of {before}"


def rollout_known(generation: str) -> str:
    """Return the words of a run that has made nothing new."""
    return f"the run has started no rollout: the last one was of {generation} already"


def rollout_postponed(generation: str, before: str) -> str:
    """Return the words of a run that has met a rollout whose place it may not take."""
    return (
        f"the run has started no rollout of {generation}: that of {before} had not ended, and the next run asks again"
    )


def rollout_refused(bad: int, total: int) -> str:
    """Return the words of a run of which some cells are bad."""
    return f"the run has started no rollout: {bad} of {total} cells have failed, or are in quarantine"
