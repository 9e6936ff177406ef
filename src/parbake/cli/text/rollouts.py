"""What became of rollouts, as text for people and as JSON for programs. Pure: takes nouns, returns text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from parbake.cli.text.pruning import decisions_json, decisions_text, pruned_json, pruned_text
from parbake.cli.text.tables import table
from parbake.core.printable import word
from parbake.rollouts import RolloutProgress, TargetState
from parbake.workflows.rollout import TargetReport, TargetResult
from parbake.workflows.watch import Tidied, Turn

_CANARY = {
    "passed": "its pods use it",
    "waits": "its canary waits for pods",
    "failed": "its canary has said no to this artefact (--force rolls it out again)",
}


def results_json(results: Sequence[TargetResult], *, dry_run: bool) -> dict[str, object]:
    """Return what was written to each target, and how far its nodes are."""
    return {
        "dry_run": dry_run,
        "changed": any(each.written for each in results),
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
                "canary": each.canary or None,
                "remedy": asdict(each.remedy) if each.remedy else None,
            }
            for each in results
        ],
    }


def held_json(held: TargetState | None) -> dict[str, object] | None:
    """Return what a target holds, without its own way to say it."""
    return held.model_dump(mode="json", exclude={"spec"}) if held else None


def results_text(results: Sequence[TargetResult], *, dry_run: bool) -> str:
    """Return what was written to each target, or would be, for people."""
    parts = []
    for each in results:
        new = "would be written" if dry_run else "written"
        verb = "holds it already" if each.change.empty else new
        nodes = f", {nodes_text(each.follow)}" if each.follow else ""
        pods = f", {_CANARY[each.canary]}" if each.canary else ""
        parts.append(word(f"{each.target}: {each.change.where}: {verb}{nodes}{pods}"))
        parts += [word(f"  before  {each.change.before}"), word(f"  after   {each.change.after}")]
        parts += [word(f"  remedy  {each.remedy}")] if each.remedy else []
        if dry_run and each.change.diff:
            parts.append(each.change.diff)
    return "\n".join(parts)


def nodes_text(follow: RolloutProgress) -> str:
    """Say how far nodes are."""
    return str(follow) if follow.total or not follow.done else "no nodes to wait for"


def reports_json(reports: Sequence[TargetReport]) -> list[dict[str, object]]:
    """Return what each target holds."""
    found: list[dict[str, object]] = []
    for each in reports:
        document: dict[str, object] = {"target": each.target, "kind": each.kind, "error": each.error}
        if each.status:
            status = each.status
            document |= {
                "where": status.where,
                "holds": held_json(status.holds),
                "previous": held_json(status.previous),
                "left": held_json(status.left),
                "frozen": status.frozen,
                "follow": asdict(status.follow) if status.follow else None,
            }
        found.append(document)
    return found


def reports_text(reports: Sequence[TargetReport]) -> str:
    """Return what each target holds, for people."""
    rows: list[tuple[object, ...]] = []
    for each in reports:
        status = each.status
        if status is None:
            rows.append((each.target, each.kind, f"FAILED: {each.error}", "", ""))
            continue
        nodes = [nodes_text(status.follow) if status.follow else "-"]
        if status.follow and status.follow.waiting:
            nodes += status.follow.waiting
        if status.frozen:
            nodes.append("frozen: `parbake thaw` goes on")
        before = f"before: {status.previous}" if status.previous else ""
        rows.append((each.target, status.where, str(status.holds), tuple(nodes), before))
    return table(rows, header=("target", "where", "holds", "nodes"), notes=True)


def frozen_text(changed: Mapping[str, Sequence[str]], *, frozen: bool) -> str:
    """Return what was frozen or thawed, for people."""
    verb = "frozen" if frozen else "thawed"
    return "\n".join(word(f"{name}: {', '.join(what) or 'nothing to do'}: {verb}") for name, what in changed.items())


def turn_json(turn: Turn) -> dict[str, object]:
    """Return what one turn of watching did."""
    finished = turn.finished
    return {
        "moved": list(turn.moved),
        "artefact": finished.record.artefact if finished else None,
        "key": finished.record.key if finished else None,
        "baked": bool(finished and finished.changed),
        "rollout": results_json(turn.results, dry_run=False),
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
    parts = [f"{turn.finished.record.artefact}: {baked}", results_text(turn.results, dry_run=False)]
    if turn.tidied and turn.tidied.pruned:
        parts.append(pruned_text(turn.tidied.pruned, dry_run=False))
    if turn.tidied:
        parts.append(decisions_text(turn.tidied.decisions, dry_run=False))
    return "\n".join(part for part in parts if part)
