"""The page: one record, or two side by side. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from parbake import __version__
from parbake.cli.report.charts import Bar, block_map, table, waterfall
from parbake.cli.report.observed import section
from parbake.coldstart.trace import Trace, merged
from parbake.core.model import MIB, HydrateFigures, Image
from parbake.core.units import human_bytes
from parbake.records import Record
from parbake.workflows.observe import Observed

_MOST_FILES = 20
_STAGES = ("mount", "containerd", "sandbox", "start")
_NAMES = {"mount": "mount", "containerd": "containerd", "sandbox": "sandbox", "start": "application"}
_GZIP, _ZSTD = 488 * MIB, 820 * MIB
"""Bytes of tar that a core inflates in a second: ``docs/explanation/engine.md``, both of the same layer."""
_USUAL_RATIO = 2.5
"""Bytes of tar for a byte of gzip, where nobody has unpacked the layer yet."""
_WORTH_A_WORD = 2.0
"""Seconds that would be saved."""
# Nothing is loaded and nothing runs: what an image's name says stays text.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True)
class Subject:
    """A record and, where there is one, its start-up trace."""

    record: Record
    trace: Trace | None = None

    @property
    def hot(self) -> int | None:
        """Bytes that a start reads, in whole blocks."""
        return self.record.trace.hot_bytes if self.record.trace else None

    @property
    def slowest(self) -> float | None:
        """Seconds of the slowest cold start that was rehearsed."""
        seconds = self.record.trace.seconds.values() if self.record.trace else ()
        return max(seconds, default=None)


def page(subject: Subject, other: Subject | None = None, *, seen: Observed | None = None) -> str:
    """Return the report of a record, compared with another one, and with what pods did if that was seen."""
    both = [subject, *([other] if other else [])]
    until = max((bar.at + bar.seconds for each in both for _, bars in _falls(each) for bar in bars), default=0.0)
    parts = [_head(subject)]
    if other:
        parts.append(f"<h2>Compared</h2>{_comparison(subject, other)}")
    parts.append(f'<h2>Cold start</h2><div class="two">{"".join(_waterfalls(each, until) for each in both)}</div>')
    parts.append(f'<h2>What is read of the volume</h2><div class="two">{"".join(_map(each) for each in both)}</div>')
    if seen:
        parts.append(section(seen))
    for each in both:
        parts += [f"<h2>{escape(each.record.artefact)}</h2>" if other else "", _images(each), _files(each)]
    return framed(
        f"parbake: {subject.record.artefact}",
        parts,
        "Starts are timed on the machine that baked, with cold caches and a disk that is hot: a volume from a snapshot "
        "adds what its blocks take to arrive.",
    )


def framed(title: str, parts: Sequence[str], note: str) -> str:
    """Return a page that needs nothing else; ``parts`` are HTML, ``title`` and ``note`` are text."""
    style = resources.files(__package__).joinpath("report.css").read_text()
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>\n{style}</style></head><body><main>{''.join(parts)}"
        f'<p class="soft">Made by parbake {escape(__version__)}. {escape(note)}</p></main></body></html>\n'
    )


def _head(subject: Subject) -> str:
    record = subject.record
    verdict = record.verdict
    state = "not verified yet" if verdict is None else "verified" if verdict.passed else "verification failed"
    if verdict and verdict.accelerator == "canary":
        state = "proven by the canary"
    colour = "soft" if verdict is None else "good" if verdict.passed else "bad"
    tiles = [("size", human_bytes(record.size)), ("data", human_bytes(record.allocated))]
    if subject.hot is not None:
        share = f" · {subject.hot / record.allocated:.1%} of the data" if record.allocated else ""
        tiles.append(("read by a start", human_bytes(subject.hot)))
        tiles[-1] = (f"read by a start{share}", tiles[-1][1])
    if subject.slowest is not None:
        tiles.append(("slowest cold start", f"{subject.slowest:.1f} s"))
    if verdict and verdict.boot_seconds:
        took, what = (verdict.resumed_seconds, "resumed") if verdict.resumed_seconds else (verdict.boot_seconds, "boot")
        tiles.append((f"{what} ({verdict.accelerator})", f"{took:.1f} s"))
    return (
        f'<h1>{escape(record.artefact)}</h1><p><span class="{colour}">{state}</span> '
        f'<span class="soft">· baked {escape(record.finished_at)} · key '
        f"<code>{escape(record.key[:12])}</code></span></p>"
        f"{tiled(tiles)}"
    )


def tiled(tiles: Sequence[tuple[str, str]]) -> str:
    """Return names and values as tiles."""
    shown = "".join(f'<div class="tile"><b>{escape(value)}</b>{escape(name)}</div>' for name, value in tiles)
    return f'<div class="tiles">{shown}</div>'


def _falls(subject: Subject) -> list[tuple[str, list[Bar]]]:
    """Return a waterfall for each start: the machine's boot before it where one was seen."""
    record = subject.record
    falls = []
    hydrate = record.verdict.hydrate if record.verdict else None
    for name, stages in (record.trace.stages if record.trace else {}).items():
        bars, at = [], 0.0
        if hydrate:
            bars.append(Bar("boot", "boot", 0.0, hydrate.started_after))
            bars.append(Bar("hydrate", "hydrate", hydrate.started_after, hydrate.seconds))
            bars += _prefetched(hydrate)
            at = hydrate.started_after
        for stage in (*(each for each in _STAGES if each in stages), *(each for each in stages if each not in _STAGES)):
            kind = stage if stage in _STAGES else "boot"
            bars.append(Bar(_NAMES.get(stage, stage), kind, at, stages[stage]))
            at += stages[stage]
        falls.append((name, bars))
    if falls or record.verdict is None:
        return falls
    boot = record.verdict.boot_seconds or 0.0
    for image in record.verdict.images:
        if image.start_seconds is not None:
            sandbox = image.sandbox_seconds or 0.0
            bars = [Bar("boot", "boot", 0.0, boot)] if boot else []
            bars += [Bar("sandbox", "sandbox", boot, sandbox)]
            bars += [Bar("application", "start", boot + sandbox, image.start_seconds)]
            falls.append((image.reference, bars))
    return falls


def _prefetched(hydrate: HydrateFigures) -> list[Bar]:
    """Return the bar of what was read into memory, where anything was."""
    began, seconds = (hydrate.prefetch.get(key) for key in ("started_after", "seconds"))
    if not isinstance(began, int | float) or not isinstance(seconds, int | float):
        return []  # it found no mount, or no list
    return [Bar("prefetch", "prefetch", began, seconds)]


def _waterfalls(subject: Subject, until: float) -> str:
    falls = _falls(subject)
    shown = "".join(f"<h3>{escape(name)}</h3>{waterfall(bars, until=until)}" for name, bars in falls)
    skipped = subject.record.trace.skipped if subject.record.trace else {}
    shown += "".join(f'<h3>{escape(name)}</h3><p class="soft">{escape(why)}</p>' for name, why in skipped.items())
    return f"<section>{shown or waterfall((), until=0)}</section>"


def _map(subject: Subject) -> str:
    record, trace = subject.record, subject.trace
    if trace is None:
        return '<section><p class="soft">No start-up trace lies beside the artefact.</p></section>'
    order = merged(trace)
    shown = block_map(order, trace.size or record.size, title=f"hot blocks of {record.artefact}")
    figure = f"{human_bytes(subject.hot or 0)} in {len(order)} blocks, first to last byte of {escape(record.artefact)}"
    return f'<section><p class="soft">{figure}</p>{shown}</section>'


def _images(subject: Subject) -> str:
    record = subject.record
    verdicts = {image.reference: image for image in record.verdict.images} if record.verdict else {}
    cold = record.trace.seconds if record.trace else {}
    rows = []
    for image in record.plan.all_images:
        name = str(image.reference)
        seen = verdicts.get(name)
        start = f"{seen.start_seconds:.1f} s" if seen and seen.start_seconds is not None else "-"
        rehearsed = f"{cold[name]:.1f} s" if name in cold else "-"
        rows.append((name, image.target.digest[7:19], human_bytes(image.size), start, rehearsed))
    header = ("image", "digest", "compressed", "start, verified", "start, cold caches")
    said = filter(None, map(_waits_for_gzip, record.plan.all_images))
    notes = "".join(f'<p class="soft">{escape(each)}</p>' for each in said)
    return f"<h3>Images</h3>{table(header, rows, numbers=(2, 3, 4), path=0)}{notes}"


def _waits_for_gzip(image: Image) -> str:
    """Return what one large layer costs, whose gzip one core has to inflate; empty where that is not worth a word."""
    gzip = [layer for layer in image.layers if "zstd" not in layer.media_type and "gzip" in layer.media_type]
    raw = {layer.digest: layer.raw_size or layer.size * _USUAL_RATIO for layer in gzip}
    largest = round(max(raw.values(), default=0))
    one, rest, zstd = largest / _GZIP, (sum(raw.values()) - largest) / _GZIP, largest / _ZSTD
    if one - zstd < _WORTH_A_WORD:
        return ""
    parts = f", and in two layers of one size, on two cores, {max(one / 2, (one + rest) / 2):.0f} s" * (one > rest)
    return (
        f"{image.reference}: its largest layer ({human_bytes(largest)}) is gzip, which one core has to inflate: "
        f"that is at least {one:.0f} s of each bake and of each pull. Compressed with zstd it takes {zstd:.0f} s"
        f"{parts}."
    )


def _files(subject: Subject) -> str:
    if subject.trace is None or not subject.trace.files:
        return ""
    most = sorted(subject.trace.files, key=lambda entry: -entry.size)[:_MOST_FILES]
    rows = [(human_bytes(entry.size), entry.path) for entry in most]
    more = len(subject.trace.files) - len(most)
    rest = f'<p class="soft">and {more} more</p>' if more > 0 else ""
    return f"<h3>Files that most is read of</h3>{table(('read', 'file'), rows, numbers=(0,), path=1)}{rest}"


def _comparison(one: Subject, two: Subject) -> str:
    rows: list[Sequence[str]] = []

    def add(name: str, first: float | None, second: float | None, unit: str) -> None:
        def shown(value: float | None) -> str:
            if value is None:
                return "-"
            return human_bytes(round(value)) if unit == "bytes" else f"{value:.2f} s" if unit == "s" else f"{value:g}"

        change = f"{second / first - 1:+.0%}" if first and second is not None else "-"
        rows.append((name, shown(first), shown(second), change))

    first, second = one.record, two.record
    add("size", first.size, second.size, "bytes")
    add("data", first.allocated, second.allocated, "bytes")
    add("read by a start", one.hot, two.hot, "bytes")
    reads = [record.trace.reads if record.trace else None for record in (first, second)]
    boots = [record.verdict.boot_seconds if record.verdict else None for record in (first, second)]
    add("reads", reads[0], reads[1], "count")
    add("boot", boots[0], boots[1], "s")
    cold = [record.trace.seconds if record.trace else {} for record in (first, second)]
    for name in dict.fromkeys([*cold[0], *cold[1]]):
        add(f"cold start of {name}", cold[0].get(name), cold[1].get(name), "s")
    return table(("", first.artefact, second.artefact, "change"), rows, numbers=(1, 2, 3))
