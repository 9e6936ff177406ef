"""Read workloads and node classes, and say which pods will not use a bake, and why. Deciding is pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from parbake import records
from parbake.bakefile import load
from parbake.core.errors import CommandFailed, InputError
from parbake.core.events import Events
from parbake.images.owners import Owners
from parbake.images.workloads import Documents, from_cluster, pod_specs, things_in
from parbake.workflows.lint import nodes, pods
from parbake.workflows.lint.bakes import Bake, of_bakefile, of_record, together
from parbake.workflows.lint.rules import BY_ID, RULES, Finding, Rule, sarif

__all__ = [
    "RULES", "Bake", "Finding", "Rule", "bakes_of", "examine", "gather", "of_bakefile", "of_record", "sarif",
    "together",
]  # fmt: skip

_MADE = {"Pod", "ReplicaSet", "Job"}
_ORDER = {"error": 0, "warning": 1, "note": 2}
_NODE_KINDS = (
    "ec2nodeclasses.karpenter.k8s.aws",
    "nodepools.karpenter.sh",
    "awsnodetemplates.karpenter.k8s.aws",
    "nodeclasses.eks.amazonaws.com",
)
_UNKNOWN_KIND = "the server doesn't have a resource type"


def examine(documents: Iterable[tuple[str, str]], bakes: Sequence[Bake]) -> tuple[Finding, ...]:
    """Compare everything in the documents with the bakes; errors come first, then by place."""
    things, problems = things_in(documents)
    found = [*(_unreadable(problem) for problem in problems), *map(_unproven, filter(_is_unproven, bakes))]
    by_name = any(nodes.allow_listed(thing) for thing in things)
    owners = Owners(thing.data for thing in things)
    known = {id(thing.data): thing for thing in things}
    for thing in things:
        maker = owners.maker(thing.data) if thing.kind in _MADE else None
        if maker is None or not any(pod_specs(maker, ())):
            found += pods.check(thing, bakes, by_name=by_name)
            found += nodes.check(thing, bakes)
        elif thing.kind == "Pod":  # what it was made of is checked there; here what was done to it since
            found += pods.check_changed(thing, maker, known[id(owners.root(thing.data))], bakes)
    distinct = dict.fromkeys(found)
    return tuple(sorted(distinct, key=lambda each: (_ORDER[each.level], each.source, each.line, each.rule.id)))


def bakes_of(
    bakefile_path: Path | None, output: Path, named: Sequence[str] = (), events: Events | None = None
) -> tuple[Bake, ...]:
    """Return what to compare with: the named records, else the Bakefile with its newest record, else the newest ones.

    Raises InputError when there is nothing, BakefileError when the Bakefile is wrong.
    """
    if named:
        hint = "name a record, or leave out --bake"
        return together(None, [records.locate_record(each, output, events, hint=hint)[1] for each in named])
    wanted = load(bakefile_path) if bakefile_path else None
    # Oldest first: the last one stays.
    newest = {(record.plan.name, record.plan.platform): record for _, record in records.find(output)}
    if wanted:
        found: list[Bake] = []
        for platform in wanted.platforms or (wanted.platform,):
            record = newest.get((wanted.name, platform))
            said = of_bakefile(wanted.model_copy(update={"platform": platform}))
            bakes = together(said, [record] if record else [])
            if record and bakes[-1].record:
                records.tell(record, events or Events())
            found += bakes
        return tuple(found)
    if not newest:
        raise InputError(
            "there is nothing to compare with: no Bakefile, and no record",
            hint="-f names a Bakefile, --bake a record (a bake writes it beside the artefact)",
        )
    return together(None, newest.values())


def gather(context: str = "") -> Documents:
    """Ask kubectl's cluster for workloads, and for Karpenter's objects where it has them; raises CommandFailed."""
    found = from_cluster(context)
    for kind in _NODE_KINDS:
        try:
            found += from_cluster(context, kind)
        except CommandFailed as error:
            if _UNKNOWN_KIND not in error.output:
                raise
    return found


def _is_unproven(bake: Bake) -> bool:
    return bool(bake.record) and not bake.verified


def _unproven(bake: Bake) -> Finding:
    rule = BY_ID["bake-not-verified" if bake.verified is None else "bake-failed"]
    return Finding(rule, bake.record, 0, bake.name, rule.short)


def _unreadable(problem: str) -> Finding:
    match = re.match(r"(?P<source>.*?), line (?P<line>[0-9]+): (?P<message>.*)", problem, re.DOTALL)
    if match:
        return Finding(BY_ID["unreadable"], match["source"], int(match["line"]), "", match["message"])
    source, _, message = problem.partition(": ")
    return Finding(BY_ID["unreadable"], source, 0, "", message)
