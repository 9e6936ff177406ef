"""Results, as text for people and as JSON for programs. Pure: takes nouns, returns text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from parbake import records
from parbake.cli.text.tables import table, wrapped
from parbake.core.model import Image, ImageVerdict, Plan, Published, TraceSummary, Verdict
from parbake.core.plan import measure, title
from parbake.core.printable import word
from parbake.core.timestamps import timestamp
from parbake.core.units import human_bytes
from parbake.records import Record

if TYPE_CHECKING:
    from parbake.aws.costs import Pull
    from parbake.images.cache import CachedLayer
    from parbake.workflows.build import Built
    from parbake.workflows.coverage import Covered, Row
    from parbake.workflows.demo.outcome import Outcome, Starts
    from parbake.workflows.doctor import Check
    from parbake.workflows.lint import Finding
    from parbake.workflows.plan import BakeResult, Preview


def seconds(value: float | None) -> str:
    """Return seconds for people."""
    return "-" if value is None else f"{value:.1f} s"


def preview_json(preview: Preview) -> dict[str, object]:
    """Return the frozen plan with its key (null while images are to be built), its sizes in bytes, and what exists."""
    plan = preview.plan
    document: dict[str, object] = {
        "key": None,
        "to_build": list(preview.to_build),
        "exists": preview.existing is not None,
        "verified": bool(preview.existing and preview.existing.verified),
        "cautions": list(preview.cautions),
        "images_from": preview.image_lock.model_dump(mode="json", exclude={"seen"}) if preview.image_lock else None,
    }
    if plan:
        sizes = asdict(measure(plan.all_images, keep_layers=plan.keep_layers))
        document |= {
            "artefact_name": plan.artefact_name,
            "sizes": sizes,
            "layout": list(_layout(plan)),
            **plan.to_json(),
        }
    return document


def preview_text(preview: Preview) -> str:
    """Return the preview for people."""
    if preview.plan is None:
        names = "\n".join(f"  {reference}" for reference in preview.to_build)
        return (
            f"Images to build first (the key depends on their content):\n{names}\nThen `parbake bake` plans and bakes."
        )
    plan = preview.plan
    sizes = measure(plan.all_images, keep_layers=plan.keep_layers)
    about = "about " if sizes.estimated else ""
    images = table(
        ((title(image), image.manifest.digest[7:19], len(image.layers), human_bytes(image.size), _from(image))
         for image in plan.all_images),
        header=("image", "digest", "layers", "compressed", "from"),
    )  # fmt: skip
    lines = table([
        ("artefact", plan.artefact_name),
        ("key", plan.key),
        ("platform", plan.platform),
        ("base", _base(plan)),
        ("disk", _disk(plan)),
        ("layout", "; ".join(_layout(plan))),
        ("to fetch", human_bytes(sizes.transfer)),
        ("unpacked", f"{about}{human_bytes(sizes.raw)}"),
        ("state", _state(preview)),
    ])  # fmt: skip
    lock = preview.image_lock
    follows = (
        [f"{len(lock.images)} of them follow {lock.cluster}, as of {lock.at:%Y-%m-%d %H:%M}"
         f"; {len(lock.left_out)} are left out"]
        if lock else []
    )  # fmt: skip
    return "\n".join([f"{images}\n\n{lines}", *follows, *(f"warning: {caution}" for caution in preview.cautions)])


def built_json(built: Built) -> dict[str, object]:
    """Return the images that were built and those that were there, and what a bake of them would be."""
    images = [
        {"reference": str(image.reference), "digest": image.target.digest, "built": image.reference in built.made}
        for image in built.images
    ]
    return {"key": built.plan.key, "artefact_name": built.plan.artefact_name, "images": images}


def built_text(built: Built) -> str:
    """Return which images were built, for people."""
    rows = (
        (image.reference, image.target.digest[7:19], "built" if image.reference in built.made else "there")
        for image in built.images
    )
    images = table(rows, header=("image", "digest", "state"))
    return f"{images}\n\n{table([('artefact', built.plan.artefact_name), ('key', built.plan.key)])}"


def _from(image: Image) -> str:
    return "local build" if image.layout else "registry"


def _base(plan: Plan) -> str:
    match plan.base.kind:
        case "none":
            return "none"
        case "debian":
            return f"debian, recipe {plan.base.identity.removeprefix('sha256:')[:12]}"
        case "ami":
            return f"{plan.base.identity} ({human_bytes(plan.base.size)})"
        case _:
            return f"{plan.base.path} ({human_bytes(plan.base.size)})"


def _disk(plan: Plan) -> str:
    chosen = "fixed" if plan.size_is_fixed else "automatic"
    what = f"{plan.artefact.filesystem} volume" if plan.artefact.kind == "volume" else "machine image"
    return f"{human_bytes(plan.size)} ({chosen}), {what}, {plan.artefact.format}"


def _layout(plan: Plan) -> tuple[str, ...]:
    """Return the parts of the disk, first to last."""
    match plan.base.kind:
        case "none":
            return (f"the whole disk: {plan.artefact.filesystem}, the root of the runtime's store",)
        case "debian":
            from parbake.machine import base  # loads only where it is asked for

            parts = base.describe(plan.platform).slices
            fixed = tuple(f"{part.name} {human_bytes(part.size)}" for part in parts[:-1])
            return (*fixed, f"{parts[-1].name} {human_bytes(plan.size - parts[-1].start)}, ext4")
        case _:
            return ("the base's partitions", "its root file system takes the added space")


def _state(preview: Preview) -> str:
    if preview.existing is None:
        return "to be baked"
    return "exists, verified: nothing to do" if preview.existing.verified else "exists, not verified"


def record_json(path: Path, record: Record) -> dict[str, object]:
    """Return a record with the paths of its files."""
    return {
        "artefact_path": str(path.parent / record.artefact),
        "record_path": str(path.parent / record.file_name),
        "verified": record.verified,
        **record.model_dump(mode="json"),
    }


def finished_json(finished: BakeResult) -> dict[str, object]:
    """Return the record of what was baked, and whether this run changed anything."""
    return {"changed": finished.changed, **record_json(finished.artefact, finished.record)}


def finished_text(finished: BakeResult) -> str:
    """Return what a bake made, for people."""
    first = "baked" if finished.changed else "exists already, nothing to do"
    return f"{finished.artefact.name}: {first}\n{record_text(finished.artefact, finished.record)}"


def finished_id(finished: BakeResult) -> str:
    """Return what names an artefact alone: its AMI or snapshot in the bake's own region, or its file's name."""
    there = next(iter(finished.record.published.values()), None)
    return (there.image or there.snapshots[0].id) if there else finished.artefact.name


def record_text(artefact: Path, record: Record, *, wide: bool = False) -> str:
    """Return one record for people; ``wide`` names images by their whole digests, to be copied."""
    times = ", ".join(f"{name} {value:.1f} s" for name, value in record.timings.items())
    size = human_bytes(record.size) + (
        "" if record.published and not record.allocated else f", {human_bytes(record.allocated)} on disk"
    )
    where: list[tuple[str, object]] = [("artefact", artefact)]
    if record.published:
        where = [("artefact", tuple(_place(*each) for each in record.published.items()))]
    rows: list[tuple[str, object]] = [
        *where,
        ("record", artefact.with_name(record.file_name)),
        ("size", size),
        *_digests(record),
        ("key", record.key),
        ("baked", f"{record.finished_at} by {record.builder}, parbake {record.parbake}"),
        ("times", times or "-"),
        ("images", tuple(_named(image, wide=wide) for image in record.plan.all_images)),
    ]
    if record.trace is not None:
        rows.append(("start reads", trace_line(record.trace)))
    if record.verdict is None:
        how = "`parbake bake` proves it" if record.published else "`parbake verify` boots it"
        return table([*rows, ("verified", f"not yet: {how}")])
    return f"{table(rows)}\n\n{verdict_table(record.verdict)}"


def _named(image: Image, *, wide: bool) -> str:
    digest = image.target.digest
    if image.part_of:
        return title(image)
    return f"{image.reference}@{digest}" if wide else f"{image.reference} ({digest.removeprefix('sha256:')[:12]})"


def _place(region: str, there: Published) -> str:
    return f"{there.image or 'snapshot'} in {region} ({', '.join(each.id for each in there.snapshots)})"


def _digests(record: Record) -> Iterator[tuple[str, object]]:
    if record.blocks:
        yield "blocks", (record.blocks.digest, f"{record.blocks.count} of 512 KiB")
    if record.sha256 or (record.blocks and not record.published):  # what lies in a cloud has no file
        yield "sha256", record.sha256 or "not yet: computed while it is verified"


def records_text(found: Sequence[tuple[Path, Record]]) -> str:
    """Return the list of records for people."""
    if not found:
        return "no artefacts yet: `parbake bake` makes one"
    rows = [
        (
            record.artefact,
            human_bytes(record.allocated),
            len(record.plan.images),
            record.finished_at,
            " ".join(filter(None, (_proof(record), "".join(_MARKS[each] for each in meant(found, record))))),
        )
        for _, record in found
    ]
    note = f"{_MARKS['newest']} the newest artefact of its Bakefile; {_MARKS['rollout']} the one that `rollout` takes"
    return f"{table(rows, header=('artefact', 'on disk', 'images', 'baked', 'verified'))}\n{note}"


_MARKS = {"newest": "*", "rollout": ">"}


def meant(found: Sequence[tuple[Path, Record]], record: Record) -> list[str]:
    """Return as what the name of its Bakefile alone means this of the records found: `newest`, `rollout`, or both."""
    name = record.plan.name
    ways = {"newest": records.newest(found, name), "rollout": records.newest(found, name, verified=True)}
    return [way for way, item in ways.items() if item and item[1].artefact == record.artefact]


def _proof(record: Record) -> str:
    if record.verdict is None:
        return "not yet"
    if record.verdict.accelerator == "canary":
        return "by the canary"
    return "yes" if record.verdict.passed else "FAILED"


def verdict_json(artefact: Path, verdict: Verdict) -> dict[str, object]:
    """Return the verdict on an artefact."""
    return {"artefact_path": str(artefact), **verdict.model_dump(mode="json")}


def verdict_text(artefact: Path, verdict: Verdict) -> str:
    """Return the verdict for people."""
    head = f"{artefact.name}: {'passed' if verdict.passed else 'FAILED'}"
    return "\n".join([head, *(f"  {word(problem)}" for problem in verdict.problems), verdict_table(verdict)])


def verdict_table(verdict: Verdict) -> str:
    """Return what verification saw of each image, and what to know of an artefact that passed."""
    how = ", ".join(filter(None, (verdict.accelerator, verdict.emulator)))
    boot, resumed = verdict.boot_seconds, verdict.resumed_seconds
    lines = [f"booted in {seconds(boot)} ({how})" if boot else "not booted"]
    if verdict.accelerator == "rehearsal":
        lines = ["not booted: in the rehearsal, an image failed already"]
    if verdict.accelerator == "canary":
        lines = [f"proven by the canary of {word(verdict.canary)}"]
    if boot and resumed:
        lines = [f"resumed in {seconds(resumed)} ({how}) from a machine that had booted in {seconds(boot - resumed)}"]
    rows = (
        (
            image.reference,
            image.digest.removeprefix("sha256:")[:12] or "-",
            "yes" if image.pinned else "no",
            "yes" if image.unpacked else "no",
            seconds(image.start_seconds),
            "FAILED" if image.problems else _SHOWN.get(image.shown, image.shown or "ok"),
            image.problems or _ran(image),
        )
        for image in verdict.images
    )
    if verdict.images:
        lines.append(table(rows, header=("image", "digest", "pinned", "unpacked", "start", "verdict"), notes=True))
    return "\n".join([*lines, *(f"warning: {word(warning)}" for warning in verdict.warnings)])


_SHOWN = {"running": "ran", "logged": "wrote"}


def _ran(image: ImageVerdict) -> tuple[str, ...]:
    return (f"it ran for {image.ran_seconds or 0:.0f} s; nothing was asked of it",) * (image.shown == "running")


_MOST_FILES = 10


def trace_line(trace: TraceSummary) -> str:
    """Return what a start reads of the whole, in one line."""
    share = ""
    if trace.volume_bytes:
        share = f" of {human_bytes(trace.volume_bytes)} ({trace.hot_bytes / trace.volume_bytes:.1%})"
    instead = f", {trace.hot_blocks} blocks instead of {trace.scattered_blocks}" if trace.scattered_blocks else ""
    return f"{human_bytes(trace.hot_bytes)}{share} in {trace.reads} reads{instead}"


def trace_text(trace: TraceSummary, files: Sequence[tuple[str, int]] = ()) -> str:
    """Return a start-up trace for people: its size, each start's stages, and the files that most was read of."""
    lines = [table([("trace", trace.file), ("file system", trace.uuid or "-"), ("hot", trace_line(trace))])]
    rows = [
        (name, seconds(total), ", ".join(f"{key} {value:.1f} s" for key, value in trace.stages.get(name, {}).items()))
        for name, total in trace.seconds.items()
    ]
    if rows:
        lines.append(table(rows, header=("part", "cold start", "of which")))
    if files:
        most = sorted(files, key=lambda item: -item[1])[:_MOST_FILES]
        lines.append(table(((human_bytes(size), path) for path, size in most), header=("read", "file")))
    lines += [word(f"skipped: {name}: {reason}") for name, reason in trace.skipped.items()]
    return "\n\n".join(lines)


def layers_json(gone: Sequence[CachedLayer], kept: Sequence[CachedLayer]) -> dict[str, object]:
    """Return what of the cache of layers went and what stayed, in bytes."""
    return {
        "freed": sum(entry.size for entry in gone),
        "left": sum(entry.size for entry in kept),
        "layers": [
            {"digest": entry.digest, "size": entry.size, "used_at": _date(entry.used_at), "keep": keep}
            for entries, keep in ((gone, False), (kept, True))
            for entry in entries
        ],
    }


def layers_text(gone: Sequence[CachedLayer], kept: Sequence[CachedLayer], *, dry_run: bool) -> str:
    """Return what of the cache of layers went and what stayed, for people."""
    verb = "would be removed" if dry_run else "removed"
    rows = [
        (entry.digest[:19], human_bytes(entry.size), f"used {_date(entry.used_at)}", what)
        for entries, what in ((gone, verb), (kept, "kept"))
        for entry in entries
    ]
    freed = human_bytes(sum(entry.size for entry in gone))
    left = human_bytes(sum(entry.size for entry in kept))
    total = f"{freed} {'would be freed' if dry_run else 'freed'}, {left} left"
    return f"{table(rows)}\n{total}" if rows else "no cached layers"


def _date(seconds: float) -> str:
    return timestamp(datetime.fromtimestamp(seconds, UTC))


def outcome_json(outcome: Outcome) -> dict[str, object]:
    """Return what the demo showed: times in seconds, sizes in bytes, and the record of each artefact."""

    def shown(record: Record, starts: Starts) -> dict[str, object]:
        return {
            "bake_seconds": record.seconds,
            "start_baked_seconds": starts.baked,
            "pull_seconds": starts.pull,
            "start_pulled_seconds": starts.pulled,
            **record_json(outcome.folder / record.artefact, record),
        }

    return {
        "first_result_seconds": outcome.first_result,
        "seconds": outcome.seconds,
        "volume": shown(outcome.volume, outcome.here),
        "machine_image": shown(outcome.record, outcome.machine),
        "caveat": outcome.caveat,
    }


def outcome_text(outcome: Outcome) -> str:
    """Return what the demo showed, for people."""
    return "\n".join((table(outcome.rows()), "", *wrapped(outcome.caveat)))


def checks_json(checks: Sequence[Check]) -> list[dict[str, object]]:
    """Return what was found on this machine."""
    return [check.model_dump(mode="json") for check in checks]


def checks_text(checks: Sequence[Check]) -> str:
    """Return what was found on this machine, for people."""
    marks = {"ok": "ok", "warn": "warn", "missing": "MISSING"}
    rows = [
        (
            marks[check.status],
            wrapped(check.name, 20),
            wrapped(check.found or "-", 24),
            ", ".join(check.needed_by),
            check.hint if check.status != "ok" else "",
        )
        for check in checks
    ]
    return table(rows, header=("", "what", "found", "for"), notes=True)


def findings_text(findings: Sequence[Finding]) -> str:
    """Return what lint found, as compilers print it, and the count of each level."""
    lines = []
    for each in findings:
        what = f"{each.what}: " if each.what else ""
        found = word(f"{each.place}: {each.level}: {what}{each.message} [{each.rule.id}]")
        lines += [found, f"    {each.rule.help}"]
    counts = Counter(each.level for each in findings)
    summary = ", ".join(
        f"{counts[level]} {level}{'s' * (counts[level] != 1)}" for level in ("error", "warning", "note")
    )
    return "\n".join([*lines, summary if findings else "nothing stands in the way of the bake"])


_FOUND = {"baked": "baked", "other-digest": "baked, but the tag has moved", "other-name": "not under this name"}


def coverage_json(covered: Covered, pulls: Sequence[Pull]) -> dict[str, object]:
    """Return for each image what the bake has and what a pull fetches, in bytes, layers and seconds."""
    return {
        "artefact": covered.record.artefact,
        "images": [_row_json(row, pulls) for row in covered.rows],
        "fetched": covered.fetched,
        "seconds": {each.name: each.seconds(covered.fetched) for each in pulls},
    }


def _row_json(row: Row, pulls: Sequence[Pull]) -> dict[str, object]:
    found = row.coverage
    if found is None:
        return {"reference": str(row.reference), "problem": row.problem}
    return {
        "reference": str(row.reference),
        "digest": found.image.target.digest,
        "found": row.found,
        "size": found.size,
        "fetched": found.missing,
        "layers": {"all": len(found.image.layers), "held": len(found.held)},
        "blobs": list(found.fetched),
        "seconds": {each.name: each.seconds(found.missing) for each in pulls},
    }


def coverage_text(covered: Covered, pulls: Sequence[Pull]) -> str:
    """Return what nodes still fetch, an image a row."""
    usual = pulls[0]
    rows = []
    for row in covered.rows:
        found = row.coverage
        if found is None:
            rows.append((row.reference, "unknown", "-", "-", row.problem))
            continue
        layers = f"{len(found.layers)} of {len(found.image.layers)}"
        fetched = f"{human_bytes(found.missing)} of {human_bytes(found.size)}" if found.missing else "nothing"
        rows.append((row.reference, fetched, layers, seconds(usual.seconds(found.missing)), _FOUND[row.found]))
    shown = table(rows, header=("image", "fetched", "layers", "seconds"), notes=True)
    total = f"together {human_bytes(covered.fetched)}, {seconds(usual.seconds(covered.fetched))}"
    return "\n".join(
        [
            shown,
            "",
            *wrapped(
                f"{total} by {usual.what} at {usual.fastest:.0f} MB/s; {covered.record.artefact} is held against them"
            ),
        ]
    )
