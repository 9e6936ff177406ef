"""Figures in Prometheus' text format 0.0.4: for node_exporter's textfile collector, or a push gateway. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

type Sample = tuple[Mapping[str, str], float | None]
"""Labels and a value; None is not known, and left out."""


def gauge(name: str, what: str, samples: Iterable[Sample]) -> str:
    """Return one metric with its samples, each a line; ``what`` is its help, a sentence."""
    lines = [f"# HELP {name} {_plain(what)}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        if value is not None:
            shown = ",".join(f'{key}="{_plain(text)}"' for key, text in labels.items())
            lines.append(f"{name}{{{shown}}} {float(value)!r}" if shown else f"{name} {float(value)!r}")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Escape a label's value, or a help's text, as the format asks for."""
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
