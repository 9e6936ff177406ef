"""Advice and savings for people. Pure: takes nouns, returns text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parbake.cli.text.tables import table, wrapped
from parbake.core.units import human_bytes

if TYPE_CHECKING:
    from parbake.aws.costs import Advice, Prices, Savings, Situation


def advice_text(advice: Advice, at: Situation, prices: Prices) -> str:
    """Return the remedies, the cheapest first, and why."""
    hot = min(at.hot, at.data)
    reads = f", in {at.reads:,} reads one after the other" if at.reads else ""
    facts = table([
        ("a start reads", f"{human_bytes(hot)} of {human_bytes(at.data)} ({hot / at.data:.1%}){reads}"),
        ("starts", f"{at.launches:g} a day in {at.zones} zones, at most {at.burst} at once in one"),
        ("hidden by the boot", f"{at.boot:g} s"),
        ("nodes", f"have a {at.drive} volume, live {at.lifetime:g} h"),
        ("bakes", f"{at.bakes:g} a month, {at.bake_minutes:g} minutes each"),
        ("prices", f"{prices.currency}, {prices.region}, {prices.date}; a node {prices.node_hour.value:g} an hour"),
    ])  # fmt: skip
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
    return f"{facts}\n\n{remedies}\n\n{money}\n{reason}"


def savings_text(found: Savings, prices: Prices) -> str:
    """Return what pulls cost and what a bake saves."""
    money = prices.currency
    wasted, saved = found.wasted_minutes_a_day, found.saved_minutes_a_day
    others = [
        (
            f"with {each.name}",
            f"{each.seconds:,.1f} s a pull, {each.wasted_a_month:,.2f} {money} a month; "
            + (f"a bake saves {each.saved_a_month:,.2f} of it" if each.saved_a_month > 0 else "do not bake this"),
        )
        for each in found.others
    ]
    verdict = "" if found.bake else "\n\ndo not bake this: the bakes cost more than they save"
    facts = table([
        ("wasted by pulls", f"{wasted:,.1f} node-minutes a day, {found.wasted_a_month:,.2f} {money} a month"),
        ("saved by the bake", f"{saved:,.1f} node-minutes a day, {found.saved_a_month:,.2f} {money} a month"),
        ("share of the waste", f"{found.share_saved:.0%}"),
        ("cost of the bakes", f"{found.bakes_a_month:,.2f} {money} a month"),
        ("kept back by headroom", f"{found.headroom_a_month:,.2f} {money} a month"),
        ("left with it", f"{found.left_a_month:,.2f} {money} a month"),
        ("saved without it", f"{found.without_headroom_a_month:,.2f} {money} a month"),
        *others,
        ("prices", f"{prices.region}, {prices.date}; a node {prices.node_hour.value:g} {money} an hour"),
    ])  # fmt: skip
    return facts + verdict
