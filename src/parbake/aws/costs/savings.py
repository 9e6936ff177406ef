"""What pulls waste and what a bake saves: nodes that wait are paid while they wait. Pure."""

from __future__ import annotations

from parbake.core.model import Frozen

_DAYS = 30


class Savings(Frozen):
    """Node-minutes a day and money a month.

    ``wasted`` is what nodes cost while they pull, ``saved`` what of it a bake takes away, ``headroom`` what nodes cost
    that are kept waiting to hide the pulls: as long as they stay, they keep the saving back, and ``left`` is what
    remains of it (below zero: they cost more than the bake saves). ``without_headroom`` is what is saved once they go.
    """

    wasted_minutes_a_day: float
    wasted_a_month: float
    saved_minutes_a_day: float
    saved_a_month: float
    headroom_a_month: float
    left_a_month: float
    without_headroom_a_month: float
    share_saved: float


def savings(*, pulls: float, pull_seconds: float, start_seconds: float, headroom: float, node_hour: float) -> Savings:
    """Work out what ``pulls`` a day of ``pull_seconds`` cost, and a bake that replaces each by ``start_seconds``.

    ``headroom`` is a count of nodes that are kept running for pods to come, ``node_hour`` the price of a node.
    """
    wasted = pulls * pull_seconds / 60
    saved = pulls * (pull_seconds - start_seconds) / 60
    price = node_hour / 60 * _DAYS
    idle = headroom * node_hour * 24 * _DAYS
    return Savings(
        wasted_minutes_a_day=round(wasted, 1),
        wasted_a_month=round(wasted * price, 2),
        saved_minutes_a_day=round(saved, 1),
        saved_a_month=round(saved * price, 2),
        headroom_a_month=round(idle, 2),
        left_a_month=round(saved * price - idle, 2),
        without_headroom_a_month=round(saved * price + idle, 2),
        share_saved=round(saved / wasted, 4) if wasted else 0.0,
    )
