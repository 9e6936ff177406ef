"""What became of rollouts, as text for people and as JSON for programs. Pure: takes nouns, returns text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from parbake.cli.text.artefacts import decisions_json, decisions_text, table
from parbake.core.printable import word
from parbake.core.units import human_bytes
from parbake.rollouts import Follow, Held
from parbake.workflows.prune import Pruned
from parbake.workflows.rollout import Handed, Report
from parbake.workflows.watch import Tidied, Turn


def handed_json(handed: Sequence[Handed], *, dry_run: bool) -> dict[str, object]:
    """Return what was written to each target, and how far its nodes are."""
    return {
        "dry_run": dry_run,
        "changed": any(each.written for each in handed),
        "targets": [
            {
                "target": each.target,
                "kind": each.kind,
                "where": each.change.where,
                "before": held_json(each.change.before),
                "after": held_json(each.change.after),
                "diff": each.change.diff,
                "cautions": list(each.change.cautions),
                "refusals": list(each.change.refusals),
                "written": each.written,
                "follow": asdict(each.follow) if each.follow else None,
            }
            for each in handed
        ],
    }


def held_json(held: Held | None) -> dict[str, object] | None:
    """Return what a target holds, without its own way to say it."""
    return held.model_dump(mode="json", exclude={"spec"}) if held else None


def handed_text(handed: Sequence[Handed], *, dry_run: bool) -> str:
    """Return what was written to each target, or would be, for people."""
    parts = []
    for each in handed:
        new = "would be written" if dry_run else "written"
        verb = "holds it already" if each.change.empty else new
        nodes = f", {nodes_text(each.follow)}" if each.follow else ""
        parts.append(word(f"{each.target}: {each.change.where}: {verb}{nodes}"))
        parts += [word(f"  before  {each.change.before}"), word(f"  after   {each.change.after}")]
        if dry_run and each.change.diff:
            parts.append(each.change.diff)
    return "\n".join(parts)


def nodes_text(follow: Follow) -> str:
    """Say how far nodes are."""
    if not follow.total:
        return "no nodes to wait for"
    return f"{follow.ready} of {follow.total} nodes run it"


def reports_json(reports: Sequence[Report]) -> list[dict[str, object]]:
    """Return what each target holds."""
    found: list[dict[str, object]] = []
    for each in reports:
        document: dict[str, object] = {"target": each.target, "kind": each.kind, "error": each.error}
        if each.standing:
            standing = each.standing
            document |= {
                "where": standing.where,
                "holds": held_json(standing.holds),
                "previous": held_json(standing.previous),
                "left": held_json(standing.left),
                "frozen": standing.frozen,
                "follow": asdict(standing.follow) if standing.follow else None,
            }
        found.append(document)
    return found


def reports_text(reports: Sequence[Report]) -> str:
    """Return what each target holds, for people."""
    rows: list[tuple[object, ...]] = []
    for each in reports:
        standing = each.standing
        if standing is None:
            rows.append((each.target, each.kind, f"FAILED: {each.error}", "", ""))
            continue
        nodes = [nodes_text(standing.follow) if standing.follow else "-"]
        if standing.follow and standing.follow.waiting:
            nodes += standing.follow.waiting
        if standing.frozen:
            nodes.append("frozen: `parbake thaw` goes on")
        rows.append((each.target, standing.where, str(standing.holds), str(standing.previous or "-"), tuple(nodes)))
    return table(rows, header=("target", "where", "holds", "before", "nodes"))


def frozen_text(changed: Mapping[str, Sequence[str]], *, frozen: bool) -> str:
    """Return what was frozen or thawed, for people."""
    verb = "frozen" if frozen else "thawed"
    return "\n".join(word(f"{name}: {', '.join(what) or 'nothing to do'}: {verb}") for name, what in changed.items())


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
            for each in pruned.verdicts
        ],
    }


def pruned_text(pruned: Pruned, *, dry_run: bool) -> str:
    """Return what was decided about published artefacts, for people."""
    ended = "".join(f"\nfast snapshot restore of {each} is off, its time was over" for each in pruned.fast_ended)
    if not pruned.verdicts:
        return f"nothing of parbake is published in {', '.join(pruned.regions)}{ended}"
    verbs = {
        "keep": "kept",
        "wait": "waits",
        "retire": "deprecated",
        "restore": "no longer deprecated",
        "remove": "removed",
    }
    rows = [
        (each.item.id, each.item.region, each.item.name, human_bytes(each.item.size), verbs[each.action], each.reason)
        for each in pruned.verdicts
    ]
    would = "would be freed" if dry_run else "freed"
    total = f"up to {human_bytes(pruned.freed)} {would}, up to {pruned.saved:.2f} {pruned.currency} a month"
    return f"{table(rows, header=('id', 'region', 'name', 'size', 'decided', 'why'))}\n{total}{ended}"


def turn_json(turn: Turn) -> dict[str, object]:
    """Return what one turn of watching did."""
    finished = turn.finished
    return {
        "moved": list(turn.moved),
        "artefact": finished.record.artefact if finished else None,
        "key": finished.record.key if finished else None,
        "baked": bool(finished and finished.changed),
        "rollout": handed_json(turn.handed, dry_run=False),
        "prune": _tidied_json(turn.tidied) if turn.tidied else None,
    }


def _tidied_json(tidied: Tidied) -> dict[str, object]:
    aws = {"aws": pruned_json(tidied.pruned)} if tidied.pruned else {}
    return {**aws, **decisions_json(tidied.decisions)}


def turn_text(turn: Turn) -> str:
    """Return what one turn of watching did, for people."""
    if turn.finished is None:
        return "nothing moved"
    baked = "baked" if turn.finished.changed else "exists already"
    parts = [f"{turn.finished.record.artefact}: {baked}", handed_text(turn.handed, dry_run=False)]
    if turn.tidied and turn.tidied.pruned:
        parts.append(pruned_text(turn.tidied.pruned, dry_run=False))
    if turn.tidied:
        parts.append(decisions_text(turn.tidied.decisions, dry_run=False))
    return "\n".join(part for part in parts if part)
