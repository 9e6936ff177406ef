"""The report's section on what pods did with the bake in a cluster. Pure; names of others are escaped."""

from __future__ import annotations

from collections import defaultdict
from html import escape

from parbake.cli.report.charts import Bar, table, waterfall
from parbake.workflows.observe import Figures, Observed, PodUse

_STYLES = {"pod pending": "boot", "node launched": "mount", "registered": "containerd", "ready": "sandbox"}
_COLOURS = {"used": "good", "pulled": "bad", "unknown": "soft", "waits": "line"}
_SAYS = {"used": "used it", "pulled": "pulled", "unknown": "unknown", "waits": "not started"}
_MOST_NODES, _MOST_PODS, _MOST_ROWS = 60, 110, 50
_CELL, _GAP, _NAME = 12, 2, 190


def section(found: Observed) -> str:
    """Return the section: figures, a waterfall from a pod that waits to its start, a map of nodes, and the misses."""
    figures, before = found.figures(), found.before
    head = f"<h2>In the cluster</h2><p class='soft'>{escape(found.cluster)}, {escape(found.at)}</p>".replace("'", '"')
    if not found.pods:
        return f"{head}<p>No pod with an image of the bake runs on a node that has it.</p>{_hidden(found)}"
    rows = [("with the bake", *_cells(figures)), ("without one", *_cells(before))]
    header = ("pods on nodes", "had the image", "pulled", "unknown", "start: median", "slowest")
    return "".join(
        (
            head,
            f"<p><b>{'-' if figures.rate is None else f'{figures.rate:.0%}'}</b> of the pods used the bake.</p>",
            table(header, rows, numbers=(1, 2, 3, 4, 5)),
            "<h3>From a pod that waits to its start, in the middle</h3>",
            _waterfall(found),
            "<h3>Pods, by node</h3>",
            _map(found),
            _misses(found),
            _hidden(found),
        )
    )


def _cells(figures: Figures) -> tuple[str, ...]:
    starts = ("-" if each is None else f"{each:.0f} s" for each in (figures.median, figures.slowest))
    return str(figures.used), str(figures.pulled), str(figures.unknown), *starts


def _waterfall(found: Observed) -> str:
    """Return the stages on one axis: a pod that waits for a node waits while the node's own stages pass."""
    bars, at = list[Bar](), 0.0
    stages = found.stages
    for name, style in _STYLES.items():
        if name in stages:
            bars.append(Bar(name, style, 0.0 if name == "pod pending" else at, stages[name]))
            at += 0.0 if name == "pod pending" else stages[name]
    started = max(at, stages.get("pod pending", 0.0))
    if "pod started" in stages:
        bars.append(Bar("pod started", "start", started, stages["pod started"]))
    return waterfall(bars, until=max((bar.at + bar.seconds for bar in bars), default=0.0))


def _map(found: Observed) -> str:
    """Return a row for each node, with a cell for each pod in the order in which they came."""
    by_node = defaultdict[str, list[PodUse]](list)
    for pod in sorted(found.pods, key=lambda each: (str(each.pod.scheduled or ""), each.name)):
        by_node[pod.pod.node].append(pod)
    worst = sorted(by_node, key=lambda name: (all(each.outcome == "used" for each in by_node[name]), name))
    shown, step, shapes = worst[:_MOST_NODES], _CELL + _GAP, list[str]()
    columns = max(min(len(by_node[name]), _MOST_PODS) for name in shown)
    for row, name in enumerate(shown):
        y = row * step
        label = name if len(name) < 28 else f"{name[:26]}…"
        shapes.append(f'<text x="0" y="{y + _CELL - 2}" font-size="11" fill="var(--ink)">{escape(label)}</text>')
        for column, pod in enumerate(by_node[name][:_MOST_PODS]):
            shapes.append(
                f'<rect x="{_NAME + column * step}" y="{y}" width="{_CELL}" height="{_CELL}" rx="2" '
                f'fill="var(--{_COLOURS[pod.outcome]})"><title>{escape(_title(pod))}</title></rect>'
            )
    width = max(_NAME + columns * step, 640)
    legend = "".join(
        f'<span><i style="background:var(--{colour})"></i>{_SAYS[kind]}</span>' for kind, colour in _COLOURS.items()
    )
    more = f"<span>and {len(worst) - len(shown)} nodes more</span>" if len(worst) > len(shown) else ""
    box = f'viewBox="0 0 {width} {len(shown) * step}" style="max-width:{width}px"'
    return (
        f'<svg {box} role="img" aria-label="pods by node">{"".join(shapes)}</svg>'
        f'<div class="legend">{legend}{more}</div>'
    )


def _title(pod: PodUse) -> str:
    use = pod.deciding
    cause = f": {use.rule.id}" if use.rule else ""
    took = f", started in {pod.seconds:.0f} s" if pod.seconds is not None else ""
    return f"{pod.name} {_SAYS[pod.outcome]}{cause}{took}"


def _misses(found: Observed) -> str:
    missed = [each for each in found.pods if each.outcome in {"pulled", "unknown"}]
    rows = [
        (
            each.name,
            _SAYS[each.outcome],
            f"{each.deciding.rule.id} ({each.deciding.sureness})" if each.deciding.rule else "unknown",
            each.deciding.why,
        )
        for each in missed[:_MOST_ROWS]
    ]
    more = f'<p class="soft">and {len(missed) - _MOST_ROWS} more</p>' if len(missed) > _MOST_ROWS else ""
    return f"<h3>Which did not, and why</h3>{table(('pod', '', 'cause', ''), rows, path=3)}{more}" if rows else ""


def _hidden(found: Observed) -> str:
    return "".join(f'<p class="soft">{escape(each)}</p>' for each in found.hidden)
