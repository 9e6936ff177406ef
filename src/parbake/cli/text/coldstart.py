"""Advice for people. Pure: takes nouns, returns text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parbake.cli.text.tables import table, wrapped
from parbake.core.units import human_bytes

if TYPE_CHECKING:
    from parbake.aws.costs import Advice, Prices, Situation


def advice_text(advice: Advice, at: Situation | None, prices: Prices) -> str:
    """Return the remedies, the cheapest first, and why; ``at`` is None where nothing is baked yet."""
    facts = [
        ("prices", f"{prices.currency}, {prices.region}, {prices.date}; a node {prices.node_hour.value:g} an hour")
    ]
    if at:
        hot = min(at.hot, at.data)
        reads = f", in {at.reads:,} reads one after the other" if at.reads else ""
        facts[:0] = [
            ("a start reads", f"{human_bytes(hot)} of {human_bytes(at.data)} ({hot / at.data:.1%}){reads}"),
            ("starts", f"{at.launches:g} a day in {at.zones} zones, at most {at.burst} at once in one"),
            ("hidden by the boot", f"{at.boot:g} s"),
            ("nodes", f"have a {at.drive} volume, live {at.lifetime:g} h"),
            ("bakes", f"{at.bakes:g} a month, {at.bake_minutes:g} minutes each"),
        ]
    rows = (
        (
            remedy.name,
            f"{remedy.seconds:.1f} s more",
            f"{remedy.cost:,.2f}",
            f"{remedy.waiting:,.2f}",
            f"{remedy.total:,.2f}",
            remedy.note,
        )
        for remedy in advice.remedies
    )
    remedies = table(rows, header=("remedy", "a start takes", "costs", "waiting", "in all"), notes=True)
    money = f"{prices.currency} a month: the remedy itself, nodes that wait, and both"
    reason = "\n".join(wrapped(f"recommended: {advice.best.name}, because {advice.reason}"))
    return f"{table(facts)}\n\n{remedies}\n\n{money}\n{reason}"
