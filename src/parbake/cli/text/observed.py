"""What pods did with a bake, as text for people, as JSON, and as Prometheus scrapes it. Pure."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from parbake.cli.text.prometheus import gauge
from parbake.cli.text.tables import table, wrapped
from parbake.core.printable import word
from parbake.core.units import human_bytes
from parbake.workflows.observe import Figures, ImageUse, NodeUse, Observed, PodUse

_MOST_NAMED, _MOST_ROWS = 20, 40
_SAYS = {"used": "used it", "pulled": "pulled", "unknown": "unknown", "waits": "not started"}


def observed_json(found: Observed) -> dict[str, object]:
    """Return every pod, its containers and their causes, nodes with their times, and figures."""
    return {
        "cluster": found.cluster,
        "at": found.at,
        "artefacts": [{"artefact": each, **_figures_json(found.figures(each))} for each in found.artefacts],
        **_figures_json(found.figures()),
        "before": _figures_json(found.before),
        "pods": [_pod_json(each) for each in found.pods],
        "nodes": [_node_json(each) for each in found.running],
        "not_in_the_bake": [_use_json(each) for each in found.others],
        "without_record": list(found.gone),
        "hidden": list(found.hidden),
    }


def _figures_json(figures: Figures) -> dict[str, object]:
    return {
        "used": figures.used,
        "pulled": figures.pulled,
        "unknown": figures.unknown,
        "waits": figures.waits,
        "hit_rate": figures.rate,
        "start_seconds": {"median": figures.median, "slowest": figures.slowest},
    }


def _pod_json(pod: PodUse) -> dict[str, object]:
    return {
        "namespace": pod.pod.namespace,
        "pod": pod.pod.name,
        "node": pod.pod.node,
        "outcome": pod.outcome,
        "start_seconds": pod.seconds,
        "pending_since": _time(pod.pod.made),
        "scheduled": _time(pod.pod.scheduled),
        "containers": [_use_json(each) for each in pod.uses],
    }


def _use_json(use: ImageUse) -> dict[str, object]:
    return {
        "container": use.container.name,
        "image": use.container.image,
        "artefacts": list(use.artefacts),
        "outcome": use.outcome,
        "rule": use.rule.id if use.rule else None,
        "why": use.why,
        "sureness": use.sureness or None,
        "hint": use.rule.help if use.rule else None,
        "started": _time(use.container.started),
        "start_seconds": use.seconds,
        "pull_seconds": use.pull_seconds,
        "pulled_bytes": use.size,
    }


def _node_json(found: NodeUse) -> dict[str, object]:
    node = found.node
    return {
        "node": node.name,
        "artefacts": list(found.artefacts),
        "kubelet": node.kubelet,
        "requested": _time(node.requested),
        "launched": _time(node.launched),
        "registered": _time(node.registered),
        "ready": _time(node.ready),
        "clock_behind_seconds": found.clock,
    }


def _time(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


def observed_text(found: Observed) -> str:
    """Return who used the bake and who did not, the figures before and after, and what could not be known."""
    if not found.running:
        parts = [*wrapped(f"no node of {found.cluster} runs an artefact whose record is here")]
        return "\n".join([*parts, *_cautions(found)])
    pods = sorted(found.pods, key=lambda each: (tuple(_SAYS).index(each.outcome), each.name))
    rows = [_row(each) for each in pods if each.outcome != "used"]
    parts = [table(rows[:_MOST_ROWS], header=("pod", "node", "outcome"), notes=True), ""] if rows else []
    if len(rows) > _MOST_ROWS:
        parts[1:1] = [f"and {len(rows) - _MOST_ROWS} more: --json has them all"]
    figures = [(name, found.figures(name)) for name in found.artefacts]
    if found.before != Figures.of(()):
        figures.append(("nodes without a bake", found.before))
    parts.append(
        table(
            ((name, *_cells(each, is_before=name not in found.artefacts)) for name, each in figures),
            header=("pods on nodes with", "used it", "pulled", "unknown", "start: median", "slowest"),
        )
    )
    if found.stages:
        parts += ["", *wrapped(_timeline(found))]
    return "\n".join([*parts, *_cautions(found)])


def _row(pod: PodUse) -> tuple[object, ...]:
    use = pod.deciding
    sure = f" ({use.sureness})" if use.sureness else ""
    cause = f"{use.rule.id}{sure}: {use.why}" if use.rule else use.why
    hint = f" {use.rule.help}" if use.rule else ""
    of = f"{use.container.name}: " if len(pod.uses) > 1 else ""
    return pod.name, pod.pod.node, _SAYS[pod.outcome], f"{of}{cause}.{hint}"


def _cells(figures: Figures, *, is_before: bool) -> tuple[str, ...]:
    rate = f" ({figures.rate:.0%})" if figures.rate is not None else ""
    there = f"{figures.used} had it" if is_before else f"{figures.used}{rate}"
    return there, str(figures.pulled), str(figures.unknown), _seconds(figures.median), _seconds(figures.slowest)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} s"


def _timeline(found: Observed) -> str:
    """Say how long a node of it took to come, in the middle; empty where nothing tells."""
    return "in the middle: " + ", ".join(f"{each} {_seconds(value)}" for each, value in found.stages.items())


def _cautions(found: Observed) -> list[str]:
    said = list(found.hidden)
    said += [f"nodes run {name}, whose record is not here: `parbake list` shows those that are" for name in found.gone]
    off = {each.node.name: each.clock for each in found.running if each.clock}
    if off:
        named = ", ".join(f"{name} ({seconds:+.0f} s)" for name, seconds in list(off.items())[:_MOST_NAMED])
        said.append(f"the clocks of these nodes differ from the server's, so their starts are not timed: {named}")
    if figures := found.figures().unknown:
        said.append(f"of {figures} {'pod' if figures == 1 else 'pods'} nobody knows: an API server keeps events 1 h")
    if found.others:
        size = sum(each.size for each in found.others)
        images = sorted({each.container.image for each in found.others})
        more = f" and {len(images) - 3} more" if len(images) > 3 else ""
        said.append(f"not in the bake, and pulled: {', '.join(images[:3])}{more} ({human_bytes(size)})")
    return [line for each in said for line in ("", *wrapped(word(each)))]


def observed_metrics(found: Observed) -> str:
    """Return the figures of each artefact, as Prometheus scrapes them."""
    of_each = [(name, found.figures(name)) for name in found.artefacts]
    causes = Counter(
        (name, pod.deciding.rule.id if pod.deciding.rule else "unknown")
        for pod in found.pods
        if pod.outcome == "pulled"
        for name in pod.deciding.artefacts
    )
    nodes = Counter(name for node in found.running for name in node.artefacts)
    pods = (({"artefact": name, "outcome": kind}, getattr(of, kind)) for name, of in of_each for kind in _SAYS)
    starts = (
        ({"artefact": name, "quantile": quantile}, value)
        for name, of in of_each
        for quantile, value in (("0.5", of.median), ("1", of.slowest))
    )
    misses = (({"artefact": name, "rule": rule}, count) for (name, rule), count in sorted(causes.items()))
    return "".join(
        (
            gauge("parbake_pods", "Pods with an image of the bake on nodes that run it, by what they did.", pods),
            gauge(
                "parbake_pod_hit_ratio",
                "The share of pods that used the bake, of those that used it or pulled.",
                (({"artefact": name}, of.rate) for name, of in of_each),
            ),
            gauge("parbake_pod_start_seconds", "What containers of the bake took to start.", starts),
            gauge("parbake_pod_misses", "Pods that pulled all the same, by the rule of lint that says why.", misses),
            gauge("parbake_nodes", "Nodes that run it.", (({"artefact": name}, each) for name, each in nodes.items())),
        )
    ).rstrip("\n")
