"""The gate of a rollout: the first pods on a target's new nodes decide whether it stays.

What is open stands on the target itself, written together with the artefact, so that whoever comes next knows: a run
that was killed before it has looked is finished by looking, and one that was killed on the way back by following that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from parbake.bakefile.targets import Canary, KarpenterTarget, Target
from parbake.core.errors import CanarySilent
from parbake.core.events import Events
from parbake.core.run import Deadline
from parbake.records import Record
from parbake.workflows.observe import Figures, Observed, PodUse, observe

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Judgement:
    """What pods have shown: whether the canary is content, and in words by what, with the images that they used."""

    passed: bool
    says: str


def judge(pods: Sequence[PodUse], canary: Canary, *, late: bool) -> Judgement | None:
    """Decide by the pods that there are; None: too few have shown anything yet, at the end (``late``) none has. Pure.

    Pods of which nothing is known count on neither side, and neither do starts that could not be timed.
    """
    shown = [pod for pod in pods if pod.outcome in {"used", "pulled"}]
    timed = [pod for pod in shown if pod.seconds is not None]
    enough = 1 if late else canary.pods
    if (canary.min_hit_rate is not None and len(shown) < enough) or (canary.max_start and len(timed) < enough):
        return None
    figures, wrong = Figures.of(shown), list[str]()
    if canary.min_hit_rate is not None and figures.rate is not None and figures.rate < canary.min_hit_rate:
        wrong.append(
            f"{figures.used} of {len(shown)} pods used the bake, and the canary asks for {canary.min_hit_rate:.0%}: "
            + _named([pod for pod in shown if pod.outcome == "pulled"], _cause)
        )
    slow = [pod for pod in timed if canary.max_start and (pod.seconds or 0) > canary.max_start]
    if slow:
        wrong.append(
            f"{len(slow)} of {len(timed)} pods took longer than {canary.max_start:.0f} s to start: "
            + _named(slow, lambda pod: f"{pod.name} {pod.seconds:.0f} s")
        )
    images = {use.container.image for pod in shown for use in pod.uses if use.outcome == "used"}
    good = f"{figures.used} of {len(shown)} pods used the bake ({', '.join(sorted(images))})"
    return Judgement(not wrong, "; ".join(wrong) or good)


def look(config: Target, found: Sequence[Record], events: Events, interval: float) -> Judgement:
    """Watch the pods on a target's nodes until they decide; raises CanarySilent where none shows anything in time."""
    canary, options = config.canary, config.options
    assert canary
    assert isinstance(options, KarpenterTarget), "the Bakefile allows a canary on no other"
    deadline = Deadline(canary.within, f"the canary of {config.name}")
    told = ""
    with events.stage(f"canary-{config.name}", f"Look at the pods on nodes of {options.nodeclass}"):
        while True:
            seen = observe((), found, context=options.context, of_class=options.nodeclass)
            # A pod that is gone is known by events alone, which others may have written.
            pods = [pod for pod in seen.pods if pod.pod.made]
            late = not deadline.left
            if judgement := judge(pods, canary, late=late):
                return judgement
            if late:
                raise CanarySilent(_silence(config.name, seen, pods, canary))
            if (now := _so_far(pods, canary)) != told:
                events.note(f"{config.name}: {now}")
                told = now
            deadline.sleep(interval)


def _so_far(pods: Sequence[PodUse], canary: Canary) -> str:
    figures = Figures.of(pods)
    return f"{figures.used} pods used the bake, {figures.pulled} pulled; {canary.pods} decide"


def _silence(name: str, seen: Observed, pods: Sequence[PodUse], canary: Canary) -> str:
    why = [*seen.hidden, *dict.fromkeys(pod.deciding.why for pod in pods if pod.outcome in {"unknown", "waits"})]
    if not seen.running:
        why.append("the cluster names no node that runs it")
    elif not pods:
        why.append("no pod with an image of the bake is on its nodes")
    elif canary.max_start and not why:
        why.append("no start could be timed")
    return f"{name}: nobody knows whether pods use it, {canary.within:.0f} s after its nodes came: {'; '.join(why)}"


def _cause(pod: PodUse) -> str:
    use = pod.deciding
    return f"{pod.name} pulled ({use.rule.id}: {use.why})" if use.rule else f"{pod.name} pulled ({use.why})"


def _named(pods: Sequence[PodUse], say: Callable[[PodUse], str]) -> str:
    more = f", and {len(pods) - _MOST_NAMED} more" if len(pods) > _MOST_NAMED else ""
    return ", ".join(say(pod) for pod in pods[:_MOST_NAMED]) + more
