"""What is to be watched of a repository of records, as metrics and as JSON. Pure.

Dates are told as such (seconds since 1970); an age is ``time()`` less the date, so that a file grows old without a lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from parbake import records
from parbake.cli.text.observed import observed_json, observed_metrics
from parbake.cli.text.prometheus import Sample, gauge
from parbake.core.timestamps import read_timestamp
from parbake.records import Record

if TYPE_CHECKING:
    from parbake.workflows.metrics import Measured, ServedImage


class Metric(NamedTuple):
    """A gauge: its name, with the unit at the end, what it is in a sentence, and its samples."""

    name: str
    help: str
    samples: tuple[Sample, ...]


def metrics_text(measured: Measured) -> str:
    """Return the metrics in Prometheus' text format; one of which nothing is known is left out."""
    text = "".join(gauge(*each) for each in _metrics(measured))
    return (text + (observed_metrics(measured.observed) if measured.observed else "")).rstrip("\n")


def metrics_json(measured: Measured) -> dict[str, object]:
    """Return the metrics for programs, by the names that Prometheus knows them by."""
    observed = observed_json(measured.observed) if measured.observed else None
    return {
        "observed": observed,
        "metrics": [
            {
                "name": name,
                "help": what,
                "samples": [{"labels": dict(labels), "value": value} for labels, value in all_],
            }
            for name, what, all_ in _metrics(measured)
        ],
    }


def _metrics(measured: Measured) -> tuple[Metric, ...]:
    found = [record for _, record in measured.found]
    names = sorted({record.plan.name for record in found})
    failed = Counter(each.plan.name for each in found if each.verdict and not each.verified)
    newest = [item[1] for name in names if (item := records.newest(measured.found, name))]
    oldest = {each.record.plan.name: each for each in reversed(measured.in_use)}
    told = (
        Metric(
            "parbake_oldest_bake_in_use_timestamp_seconds",
            "When the oldest artefact that nodes may run was baked: of what targets hold, or else what rollouts take.",
            tuple((_of(each.record, known_by=each.known_by), _date(each.record)) for _, each in sorted(oldest.items())),
        ),
        Metric(
            "parbake_newest_bake_timestamp_seconds",
            "When the newest artefact was baked.",
            tuple((_of(each), _date(each)) for each in newest),
        ),
        Metric(
            "parbake_newest_bake_verified",
            "Whether the newest artefact has passed its verification.",
            tuple((_of(each), each.verified) for each in newest),
        ),
        Metric(
            "parbake_failed_verifications",
            "How many artefacts there are whose verification said no.",
            tuple(({"name": name}, failed[name]) for name in names),
        ),
        Metric(
            "parbake_image_served",
            "Whether the registry still has the digest that was baked, of images in use.",
            tuple((_image(each), each.served) for each in measured.images if each.served is not None),
        ),
        Metric(
            "parbake_image_current",
            "Whether the image's name still means the digest that was baked, of images in use.",
            tuple((_image(each), each.current) for each in measured.images if each.current is not None),
        ),
        Metric(
            "parbake_unanswered",
            "A target or a registry that did not answer: what depends on it is missing here.",
            tuple(({"kind": kind, "who": who}, 1) for kind, who in measured.silent),
        ),
    )
    return tuple(each for each in told if each.samples)


def _date(record: Record) -> float:
    at = read_timestamp(record.finished_at)
    return at.timestamp() if at else 0.0


def _of(record: Record, **more: str) -> Mapping[str, str]:
    return {"name": record.plan.name, "artefact": record.artefact, **more}


def _image(served: ServedImage) -> Mapping[str, str]:
    return _of(served.record, image=str(served.image.reference), digest=served.image.target.digest)
