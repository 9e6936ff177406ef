"""Karpenter in a cluster: the node class is patched, drift is watched through NodeClaims.

Facts: karpenter.sh documentation "Disruption" (drift, budgets) and "NodeClasses" (status), v0.32 to v1.14.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, override

from parbake.bakefile.targets import KarpenterTarget
from parbake.core.errors import InputError, RolloutError, TargetMoved
from parbake.rollouts import nodeclass, variants
from parbake.rollouts.cluster import Cluster
from parbake.rollouts.nodeclass import AmiSelector, NodeClass
from parbake.rollouts.pointers import Pointer, pointer_of
from parbake.rollouts.protocol import (
    OWNER,
    CanaryNote,
    Change,
    Offer,
    Rollout,
    RolloutProgress,
    TargetState,
    TargetStatus,
)

GROUP, CORE = "karpenter.k8s.aws", "karpenter.sh"
_NODE_CLASSES = {"v1": "ec2nodeclasses", "v1beta1": "ec2nodeclasses", "v1alpha1": "awsnodetemplates"}
HASH = f"{GROUP}/ec2nodeclass-hash"
_CANARY = f"{OWNER}/canary"
"""The annotation that says what became of a canary."""
FROZEN = {"nodes": "0", "reasons": ["Drifted"]}
"""The budget that stops drift and nothing else."""
_LATE_FIELDS = {
    "ssmParameter": ("spec.amiSelectorTerms.ssmParameter", "v1.4"),
    "volumeInitializationRate": ("spec.blockDeviceMappings.ebs.volumeInitializationRate", "v1.5"),
}
_TRIES = 5
_LATE = timedelta(minutes=2)
"""How old a warning may be: Karpenter looks every ten seconds at pods that wait, and tells anew of each claim."""
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
# Controllers that write back what their repository says, some minutes after a direct patch.
_GITOPS = ("argocd", "kustomize-controller", "helm-controller", "flux")


class Karpenter(Rollout):
    """One node class of one cluster. ``force_conflicts`` also changes fields that another manager applied.

    ``region`` is that of the tag or parameter which the node class follows, if it does.
    """

    def __init__(self, target: KarpenterTarget, region: str, *, force_conflicts: bool = False) -> None:
        self.target = target
        self.force_conflicts = force_conflicts
        self.pointer: Pointer | None = pointer_of(target, region)
        self.cluster = Cluster(target.context)
        self.where = f"node class {target.nodeclass}"
        self._read: dict[str, Any] = {}

    @override
    def plan(self, offer: Offer) -> Change:
        found = NodeClass(self._node_class())
        if self.pointer and offer.images:
            self.pointer.check(offer.image)
        target, selector = self.target, self._chosen()
        change = nodeclass.decide(found, offer, **nodeclass.options_of(target), selector=selector)
        self._need_known(change)
        objections = variants.objections(found, *self._pools_and_claims(), offer)
        others = other_runtime(self._nodes(), offer.runtime) if offer.runtime and not offer.images else ()
        cautions = (*change.cautions, *objections.cautions, *others)
        refusals = (*change.refusals, *objections.refusals)
        return self._judged(found.document, replace(change, refusals=refusals, cautions=cautions))

    def _need_known(self, change: Change) -> None:
        """Raise InputError for fields that came late, where the cluster's Karpenter is older: they would be dropped."""
        text = json.dumps(change.payload.get("spec", {}))
        for word, (field, version) in _LATE_FIELDS.items():
            if f'"{word}"' in text and not self.cluster.knows(self._resource(), field):
                raise InputError(
                    f"{self.cluster}: its {change.where} does not know {word}",
                    hint=f"upgrade Karpenter to {version}, or remove the target's option that asks for it",
                )

    @override
    def plan_rollback(self) -> Change:
        found = self._node_class()
        back = nodeclass.decide_rollback(NodeClass(found), device=self.target.device, selector=self._chosen())
        return self._judged(found, back)

    @override
    def write(self, change: Change) -> None:
        """Patch the node class, if it is still the one that was read, and promote the image that it points to.

        If the node class follows the tag or parameter already, write down what was before first, so that a run that is
        killed in between knows the way back. If it does not follow it yet, move that first, so that Karpenter finds an
        image.
        """
        selector = self._chosen()
        if selector is None or self.pointer is None:
            self._patch(change)
            return
        read = NodeClass(self._read)
        followed = read.follows(selector)
        then = NodeClass({"spec": {**read.spec, **change.payload.get("spec", {})}})
        wanted = change.after.image if then.follows(selector) else ""
        if followed and selector.image not in {change.before.image, wanted}:
            raise TargetMoved(f"{self.pointer}: it names {selector.image or 'no image'} now, not {change.before.image}")
        if wanted and not followed:
            self.pointer.move(selector.image, wanted, change.after.name)
        self._patch(change)
        if wanted and followed:
            self.pointer.move(change.before.image, wanted, change.after.name)

    def _chosen(self) -> AmiSelector | None:
        if self.pointer is None:
            return None
        return AmiSelector(self.pointer.term, self.pointer.image(), str(self.pointer), self.pointer.caution)

    def _patch(self, change: Change) -> None:
        read = self._read
        for _ in range(_TRIES):
            try:
                self.cluster.patch(self._resource(), self._read, change.payload, manager=OWNER)
            except TargetMoved:
                if _meant(self._node_class()) != _meant(read):
                    raise
            else:
                return
        raise TargetMoved(f"{change.where}: its status changes faster than it can be written", hint="run it again")

    @override
    def follow(self, wanted: TargetState) -> RolloutProgress:
        found = self._node_class()
        if NodeClass(found).is_old:
            return RolloutProgress(
                0, 0, done=True, waiting=("old nodes stay until they expire or are drained by hand",)
            )
        pools, claims = self._pools_and_claims()
        now = judge(found, claims, pools, wanted)
        return now if now.done and now.total else judge(found, claims, pools, wanted, self._events())

    @override
    def status(self) -> TargetStatus:
        found = NodeClass(self._node_class())
        holds = found.held(self.target.device, self._chosen())
        frozen = any(FROZEN in _budgets(pool) for pool in self._pools())
        return TargetStatus(str(found), holds, found.history, self.follow(holds), frozen)

    @override
    def canary(self) -> CanaryNote | None:
        try:
            return CanaryNote.model_validate_json(_annotations(self._node_class()).get(_CANARY, ""))
        except ValueError:
            return None  # none is there, or somebody broke it

    @override
    def with_canary(self, change: Change, note: CanaryNote) -> Change:
        return _noting(change, note)

    @override
    def note_canary(self, note: CanaryNote | None) -> None:
        self._node_class()
        nothing = TargetState()
        self._patch(_noting(Change(self.where, nothing, nothing, payload={"metadata": {}}), note))

    @override
    def freeze(self, *, frozen: bool) -> tuple[str, ...]:
        """Add to the node class's NodePools the budget that stops drift, or take it away."""
        pools = self._pools()
        if not pools or "v1" not in self.cluster.served(CORE):
            raise RolloutError(
                f"{self.cluster}: no NodePool (v1) uses {self.target.nodeclass}", hint="budgets belong to NodePools"
            )
        changed = []
        for pool in pools:
            budgets = _budgets(pool)
            wanted = [*(each for each in budgets if each != FROZEN), *([FROZEN] if frozen else [])]
            if wanted != budgets:
                patch = {"spec": {"disruption": {"budgets": wanted}}}
                self.cluster.patch(f"nodepools.v1.{CORE}", pool, patch, manager=OWNER)
                changed.append(f"NodePool {pool['metadata']['name']}")
        return tuple(changed)

    def _resource(self) -> str:
        served = self.cluster.served(GROUP)
        version = next((each for each in _NODE_CLASSES if each in served), None)
        if version is None:
            says = f"serves {', '.join(served)} of {GROUP}" if served else f"serves no API {GROUP}"
            raise InputError(
                f"{self.cluster} {says}", hint="is Karpenter installed there, and is it the right context?"
            )
        return f"{_NODE_CLASSES[version]}.{version}.{GROUP}"

    def _node_class(self) -> dict[str, Any]:
        self._read = self.cluster.get(self._resource(), self.target.nodeclass)
        return self._read

    def _pools_and_claims(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the NodePools and the NodeClaims that use the node class, by one question."""
        version = next((each for each in ("v1", "v1beta1") if each in self.cluster.served(CORE)), None)
        if version is None:
            return [], []
        found = self.cluster.items(",".join(f"{plural}.{version}.{CORE}" for plural in ("nodepools", "nodeclaims")))

        def uses(spec: Mapping[str, Any]) -> bool:
            return bool(spec.get("nodeClassRef", {}).get("name") == self.target.nodeclass)

        pools = [each for each in found if uses(each["spec"].get("template", {}).get("spec", {}))]
        return pools, [each for each in found if each["kind"] == "NodeClaim" and uses(each["spec"])]

    def _pools(self) -> list[dict[str, Any]]:
        return self._pools_and_claims()[0]

    def _nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that the node class has now."""
        try:
            return self.cluster.items("nodes", "--selector", f"{GROUP}/ec2nodeclass={self.target.nodeclass}")
        except RolloutError:  # not everybody may read nodes: the rest is still of use
            return []

    def _events(self) -> list[dict[str, Any]]:
        """Return what Karpenter tells of why it cannot replace a node, and of late why it cannot start one.

        Events about what has no namespace, as all of Karpenter's objects, are in the namespace ``default``.
        """
        try:
            told = self.cluster.items("events", "-n", "default", "--field-selector", "source=karpenter")
        except RolloutError:  # not everybody may read events: the rest is still of use
            return []
        late = datetime.now(UTC) - _LATE
        return [each for each in told if each.get("reason") == "DisruptionBlocked" or _time_of(each) > late]

    def _judged(self, found: Mapping[str, Any], change: Change) -> Change:
        """Let the server judge a change before anything is written, here or to another target."""
        change = self._with_managers(found, change)
        if not change.payload:
            return change
        if _CANARY in _annotations(found):  # it tells of something else
            change = _noting(change, None)
        objections = self.cluster.ask(self._resource(), found, change.payload, manager=OWNER)
        return replace(change, cautions=(*change.cautions, *(f"the cluster says: {each}" for each in objections)))

    def _with_managers(self, found: Mapping[str, Any], change: Change) -> Change:
        """Add who else looks after the fields that change; raises TargetMoved for those who applied them."""
        fields = list(change.payload.get("spec", {}))
        owners = managers(found, fields)
        applied = [name for name, operation in owners if operation == "Apply"]
        if applied and not self.force_conflicts and not change.empty:
            hint = "change it at its source (a gitops target), or take it over with --force-conflicts"
            raise TargetMoved(f"{change.where}: {', '.join(fields)} belong to {', '.join(applied)}", hint=hint)
        reverting = [name for name, _ in owners if any(word in name for word in _GITOPS)]
        cautions = tuple(
            f"{name} manages {change.where} and may revert it to what its repository says" for name in reverting
        )
        return replace(change, cautions=(*change.cautions, *cautions, *_applied_again(found, fields)))


def _applied_again(found: Mapping[str, Any], fields: Iterable[str]) -> tuple[str, ...]:
    """Say which of the fields stand in the file that somebody applied: applied again, it takes them back."""
    text = found["metadata"].get("annotations", {}).get(_LAST_APPLIED, "")
    try:
        spec = json.loads(text or "{}").get("spec", {})
    except (ValueError, AttributeError):
        return ()
    named = [field for field in fields if isinstance(spec, Mapping) and field in spec]
    return (f"kubectl applied a file with {', '.join(named)}: applying it again reverts the change",) if named else ()


def every_node_class(context: str) -> list[dict[str, Any]]:
    """Return all node classes of a cluster, of every API version that has any of its own."""
    cluster = Cluster(context)
    served = cluster.served(GROUP)
    if not served:
        raise InputError(f"{cluster} serves no API {GROUP}", hint="is it the right context?")
    plurals = {plural: version for version, plural in reversed(_NODE_CLASSES.items()) if version in served}
    return [each for plural, version in plurals.items() for each in cluster.items(f"{plural}.{version}.{GROUP}")]


def _annotations(node_class: Mapping[str, Any]) -> Mapping[str, str]:
    found: Mapping[str, str] = node_class["metadata"].get("annotations") or {}
    return found


def _noting(change: Change, note: CanaryNote | None) -> Change:
    """Return a change that also writes what became of a canary, or takes away what is noted there."""
    if not change.payload:
        return change
    metadata = change.payload.get("metadata", {})
    annotations = {**metadata.get("annotations", {}), _CANARY: note.model_dump_json() if note else None}
    return replace(change, payload={**change.payload, "metadata": {**metadata, "annotations": annotations}})


def _meant(node_class: Mapping[str, Any]) -> tuple[object, object]:
    """Return what somebody wants a node class to be: all that a decision rests on."""
    annotations = node_class["metadata"].get("annotations", {})
    return node_class["spec"], annotations.get(nodeclass.ANNOTATION)


def managers(found: Mapping[str, Any], fields: Iterable[str]) -> list[tuple[str, str]]:
    """Return who else set some of these fields of the spec, and how (``Apply`` or ``Update``)."""
    wanted = {f"f:{field}" for field in fields}
    return [
        (entry["manager"], entry["operation"])
        for entry in found.get("metadata", {}).get("managedFields", [])
        if entry["manager"] != OWNER and wanted & set(entry.get("fieldsV1", {}).get("f:spec", {}))
    ]


def other_runtime(nodes: Iterable[Mapping[str, Any]], proven: str) -> tuple[str, ...]:
    """Return a caution where nodes run another major version of the runtime than the one that proved a volume.

    Nodes say it as ``containerd://2.2.4`` (Kubernetes, NodeSystemInfo), a verdict as ``containerd 2.2.4``.
    """
    running = {str(each["status"].get("nodeInfo", {}).get("containerRuntimeVersion", "")) for each in nodes}
    theirs = {text.replace("://", " ") for text in running if text}
    others = sorted(each for each in theirs if _major(each) != _major(proven))
    if not others:
        return ()
    return (
        f"its nodes run {', '.join(others)}, and the volume was verified with {proven}: "
        "`verify: {base: FILE}` in the Bakefile proves it on the image of such a node",
    )


def _major(runtime: str) -> str:
    name, _, version = runtime.partition(" ")
    return f"{name} {version.lstrip('v').partition('.')[0]}"


def judge(
    node_class: Mapping[str, Any],
    claims: Iterable[Mapping[str, Any]],
    pools: Iterable[Mapping[str, Any]],
    wanted: TargetState,
    events: Iterable[Mapping[str, Any]] = (),
) -> RolloutProgress:
    """Say how far the nodes of a node class are; pure. ``events`` are Karpenter's."""
    claims = sorted(claims, key=lambda claim: str(claim["metadata"]["name"]))
    pools, events = tuple(pools), tuple(events)
    waiting = [*_unresolved(node_class, wanted), *(text for pool in pools for text in _pool_not_ready(pool))]
    resolved = not waiting
    hash_wanted = node_class["metadata"].get("annotations", {}).get(HASH, "")
    images = wanted.images or tuple(each.get("id", "") for each in node_class.get("status", {}).get("amis", []))
    ready = 0
    frozen = sorted(pool["metadata"]["name"] for pool in pools if FROZEN in _budgets(pool))
    reasons = {_about(event): str(event.get("message", "")) for event in events}
    for claim in claims:
        state = _behind(claim, images, hash_wanted)
        if state is None:
            ready += 1
            continue
        name, node = claim["metadata"]["name"], claim.get("status", {}).get("nodeName", "")
        pool = claim["metadata"].get("labels", {}).get(f"{CORE}/nodepool", "")
        why = reasons.get(("NodeClaim", name)) or reasons.get(("Node", node)) or ""
        if not why and pool in frozen:
            why = f"NodePool {pool} is frozen (`parbake thaw`)"
        elif not why and ("NodePool", pool) in reasons:
            why = f"NodePool {pool}: {reasons['NodePool', pool]}"
        waiting.append(f"{node or name}: {state}" + (f"; {why}" if why else ""))
    if waiting or not claims:
        waiting += _not_started(node_class, pools, claims, events)
        resolved = resolved and bool(claims or not waiting)
    return RolloutProgress(ready, len(claims), resolved and ready == len(claims), tuple(waiting))


def _not_started(
    node_class: Mapping[str, Any],
    pools: Iterable[Mapping[str, Any]],
    claims: Iterable[Mapping[str, Any]],
    events: Iterable[Mapping[str, Any]],
) -> list[str]:
    """Return the last warning about a node class and each of its NodePools, or a NodeClaim of theirs that is gone.

    Karpenter deletes a claim for which there is no instance (its ``nodeclaim/lifecycle/launch.go``), and makes another
    one, as long as pods wait: between the two nothing else tells of it. Claims are named POOL-xxxxx.
    """
    names = {pool["metadata"]["name"] for pool in pools}
    there = {("EC2NodeClass", node_class["metadata"]["name"]), *(("NodePool", name) for name in names)}
    alive = {claim["metadata"]["name"] for claim in claims}
    last: dict[tuple[str, str], str] = {}
    for event in sorted((each for each in events if each.get("type") == "Warning"), key=_time_of):
        kind, name = _about(event)
        owner = ("NodePool", name.rpartition("-")[0]) if kind == "NodeClaim" and name not in alive else (kind, name)
        if owner in there:
            text = str(event.get("message", "")).removeprefix(f"{kind} {name} event: ")
            last[owner] = f"{kind} {name}: {text}"
    return list(last.values())


def _time_of(event: Mapping[str, Any]) -> datetime:
    """Return when an event was told last; either API that controllers tell events by has a field of its own."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return datetime.fromisoformat(next((each for each in times if each), "1970-01-01T00:00:00Z"))


def _about(event: Mapping[str, Any]) -> tuple[str, str]:
    about = event.get("involvedObject", {})
    return about.get("kind", ""), about.get("name", "")


def _unresolved(node_class: Mapping[str, Any], wanted: TargetState) -> Iterable[str]:
    """Say what keeps Karpenter from using the node class with the wanted image."""
    status = node_class.get("status", {})
    known = [each.get("id") for each in status.get("amis", [])]
    if wanted.images and not set(wanted.images) & set(known):
        there = ", ".join(map(str, known)) or "nothing"
        yield f"Karpenter has not resolved {' or '.join(wanted.images)} yet (it has {there})"
    yield from _not_ready(node_class)


def _not_ready(node_class: Mapping[str, Any]) -> Iterable[str]:
    """Say, in the words of its conditions, why a node class is not ``Ready`` at its current generation.

    ``Ready`` is Unknown, and not False, where Karpenter could not finish to validate the class: a launch template that
    cannot be made, a RunInstances that EC2 refuses (its ``nodeclass/validation.go``; operatorpkg, ``status``). What it
    could not finish then keeps the generation of before. The API before v1 has classes without conditions.
    """
    conditions = {each["type"]: each for each in node_class.get("status", {}).get("conditions", [])}
    if "Ready" not in conditions:
        if str(node_class.get("apiVersion", "")).endswith("/v1"):
            yield "Karpenter has not said yet whether the node class is Ready"
        return
    generation = node_class["metadata"].get("generation", 0)
    old = [kind for kind, each in conditions.items() if each.get("observedGeneration", generation) < generation]
    if "Ready" in old:
        yield "Karpenter has not seen the change yet"
        old = []
    for kind, condition in conditions.items():
        if kind in old:
            yield f"Karpenter has not come to {kind} since the change: where that lasts, its log says why"
        elif condition.get("status") != "True":
            yield f"the node class is not {kind}: {_words(condition)}"


def _pool_not_ready(pool: Mapping[str, Any]) -> Iterable[str]:
    """Say why Karpenter starts no node for a NodePool; those before Karpenter v1.0 have no such condition."""
    for condition in pool.get("status", {}).get("conditions", []):
        if condition["type"] == "Ready" and condition.get("status") != "True":
            yield f"NodePool {pool['metadata']['name']} is not Ready: {_words(condition)}"


def _words(condition: Mapping[str, Any]) -> str:
    said = [condition.get("reason"), condition.get("message")]
    return ": ".join(dict.fromkeys(str(each) for each in said if each)) or "no reason given"


def _behind(claim: Mapping[str, Any], images: tuple[str, ...], hash_wanted: str) -> str | None:
    """Say what a node claim lacks to run what is wanted; None when it does."""
    conditions = {each["type"]: each for each in claim.get("status", {}).get("conditions", [])}
    for kind in ("Launched", "Registered", "Initialized"):
        if conditions.get(kind, {}).get("status") in {"False", "Unknown"}:
            return f"not {kind}: {conditions[kind].get('message') or conditions[kind].get('reason') or 'starting'}"
    image = claim.get("status", {}).get("imageID", "")
    if images and image not in images:
        return f"runs {image or 'no known image'}"
    if hash_wanted and claim["metadata"].get("annotations", {}).get(HASH, hash_wanted) != hash_wanted:
        return "still has the old disks"
    if conditions.get("Drifted", {}).get("status") == "True":
        return f"drifted: {conditions['Drifted'].get('reason', '')}"
    return None


def _budgets(pool: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(pool["spec"].get("disruption", {}).get("budgets", [{"nodes": "10%"}]))
