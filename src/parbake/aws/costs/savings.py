"""What pulls waste and what a bake saves: nodes that wait are paid while they wait. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from parbake.core.model import Frozen

_DAYS = 30


class OtherPull(Frozen):
    """Another kind of pull than today's: its seconds, what nodes cost meanwhile, and what a bake still saves of that.

    Money is a month's; ``saved`` is after the bakes are paid, and below zero where they cost more than they save.
    """

    name: str
    seconds: float
    wasted_a_month: float
    saved_a_month: float


class Savings(Frozen):
    """Node-minutes a day and money a month.

    ``wasted`` is what nodes cost while they pull, ``saved`` what of it a bake takes away, ``bakes`` what the bakes
    themselves cost, ``headroom`` what nodes cost that are kept waiting to hide the pulls: as long as they stay, they
    keep the saving back, and ``left`` is what remains of it (below zero: they cost more than the bake saves).
    ``without_headroom`` is what is saved once they go. ``others`` are other kinds of pull.
    """

    wasted_minutes_a_day: float
    wasted_a_month: float
    saved_minutes_a_day: float
    saved_a_month: float
    bakes_a_month: float
    headroom_a_month: float
    left_a_month: float
    without_headroom_a_month: float
    share_saved: float
    others: tuple[OtherPull, ...] = ()

    @property
    def bake(self) -> bool:
        """Whether a bake saves more than it costs."""
        return self.saved_a_month > self.bakes_a_month


def savings(
    *,
    pulls: float,
    pull_seconds: float,
    start_seconds: float,
    headroom: float,
    node_hour: float,
    bake_hours: float = 0.0,
    others: Mapping[str, float] | None = None,
) -> Savings:
    """Work out what ``pulls`` a day of ``pull_seconds`` cost, and a bake that replaces each by ``start_seconds``.

    ``headroom`` is a count of nodes that are kept running for pods to come, ``node_hour`` the price of a node,
    ``bake_hours`` how long a month such a machine bakes, ``others`` the seconds of other kinds of pull, by their names.
    """

    def month(minutes: float) -> float:
        return minutes * node_hour / 60 * _DAYS

    wasted = pulls * pull_seconds / 60
    saved = pulls * (pull_seconds - start_seconds) / 60
    idle, bakes = headroom * node_hour * 24 * _DAYS, bake_hours * node_hour
    return Savings(
        wasted_minutes_a_day=round(wasted, 1),
        wasted_a_month=round(month(wasted), 2),
        saved_minutes_a_day=round(saved, 1),
        saved_a_month=round(month(saved), 2),
        bakes_a_month=round(bakes, 2),
        headroom_a_month=round(idle, 2),
        left_a_month=round(month(saved) - idle - bakes, 2),
        without_headroom_a_month=round(month(saved) + idle - bakes, 2),
        share_saved=round(saved / wasted, 4) if wasted else 0.0,
        others=tuple(
            OtherPull(
                name=name,
                seconds=round(seconds, 1),
                wasted_a_month=round(month(pulls * seconds / 60), 2),
                saved_a_month=round(month(pulls * (seconds - start_seconds) / 60) - bakes, 2),
            )
            for name, seconds in (others or {}).items()
        ),
    )
