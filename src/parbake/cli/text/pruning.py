"""What pruning decided, here and in EC2, as text for people and as JSON for programs. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from parbake.cli.text.tables import table
from parbake.core.units import human_bytes
from parbake.workflows.prune import Pruned
from parbake.workflows.prune.decide import Decision, freed


def decisions_json(decisions: Sequence[Decision]) -> dict[str, object]:
    """Return what was decided for each artefact here, and the bytes that go."""
    return {
        "freed": freed(decisions),
        "decisions": [
            {"artefact": each.item.id, "keep": each.action == "keep", "reason": each.reason} for each in decisions
        ],
    }


def decisions_text(decisions: Sequence[Decision], *, dry_run: bool) -> str:
    """Return what was decided for each artefact here, for people."""
    verb = "would be removed" if dry_run else "removed"
    rows = [(each.item.id, "kept" if each.action == "keep" else verb, each.reason) for each in decisions]
    total = f"{human_bytes(freed(decisions))} {'would be freed' if dry_run else 'freed'}"
    return f"{table(rows)}\n{total}" if rows else "no artefacts"


def pruned_json(pruned: Pruned) -> dict[str, object]:
    """Return what was decided about published artefacts; bytes and money are upper bounds."""
    return {
        "regions": list(pruned.regions),
        "freed": pruned.freed,
        "saved_month": round(pruned.saved, 2),
        "currency": pruned.currency,
        "fast_ended": list(pruned.fast_ended),
        "decisions": [
            {
                "id": each.item.id,
                "region": each.item.region,
                "name": each.item.name,
                "snapshots": list(each.item.snapshots),
                "size": each.item.size,
                "action": each.action,
                "reason": each.reason,
            }
            for each in pruned.decisions
        ],
    }


def pruned_text(pruned: Pruned, *, dry_run: bool) -> str:
    """Return what was decided about published artefacts, for people."""
    ended = "".join(f"\nfast snapshot restore of {each} is off: its time was up" for each in pruned.fast_ended)
    if not pruned.decisions:
        return f"parbake has published nothing in {', '.join(pruned.regions)}{ended}"
    verbs = {
        "keep": "kept",
        "wait": "waits",
        "retire": "deprecated",
        "restore": "no longer deprecated",
        "remove": "removed",
    }
    rows = [
        (each.item.id, each.item.region, each.item.name, human_bytes(each.item.size), verbs[each.action], each.reason)
        for each in pruned.decisions
    ]
    would = "would be freed" if dry_run else "freed"
    total = f"up to {human_bytes(pruned.freed)} {would}, up to {pruned.saved:.2f} {pruned.currency} a month"
    return f"{table(rows, header=('id', 'region', 'name', 'size', 'decided', 'why'))}\n{total}{ended}"
