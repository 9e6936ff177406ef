"""The report's waterfall, as far as no browser is needed: what a node told of itself is in it."""

from __future__ import annotations

import re

from parbake.cli.report import Subject, page
from parbake.core.model import GIB, HydrateFigures, Layer, TraceSummary, Verdict
from standins.plans import record

STAGES = {"mount": 0.1, "containerd": 0.6, "sandbox": 0.3, "start": 9.0}


def bars(figures: HydrateFigures | None) -> list[tuple[str, str]]:
    """Return the names and styles of the bars of one start."""
    update = {
        "verdict": Verdict(passed=True, accelerator="kvm", hydrate=figures),
        "trace": TraceSummary(stages={"example.com/a:1": STAGES}),
    }
    found = page(Subject(record("node").model_copy(update=update)))
    return re.findall(
        r'<span>(\w+)</span><div class="track"><div class="bar" style="[^"]*background:var\(--(\w+)\)', found
    )


def test_hydrate_and_prefetch_come_before_the_start() -> None:
    prefetch: dict[str, str | float] = {"state": "done", "bytes": 5 << 20, "seconds": 2.0, "started_after": 4.0}
    told = HydrateFigures(state="done", seconds=3.0, started_after=1.5, prefetch=prefetch)
    before = [("boot", "boot"), ("hydrate", "hydrate"), ("prefetch", "prefetch")]
    start = [("mount", "mount"), ("containerd", "containerd"), ("sandbox", "sandbox"), ("application", "start")]
    assert bars(told) == [*before, *start]
    nothing = told.model_copy(update={"prefetch": {"state": "no-mount"}})
    assert bars(nothing) == [*before[:2], *start]
    assert bars(None) == start


def test_one_large_layer_of_gzip_says_what_it_costs() -> None:
    """3 GiB of tar are 6.3 s of a core as gzip, and 3.7 s as zstd; a small one is not worth a word."""
    one = record("node")
    image = one.plan.images[0]

    def told(*layers: tuple[str, int]) -> list[str]:
        made = tuple(
            Layer(media_type=kind, digest=digest, size=size // 3, diff_id=digest, chain_id=digest, raw_size=size)
            for number, (kind, size) in enumerate(layers)
            for digest in [f"sha256:{number:064x}"]
        )
        plan = one.plan.model_copy(update={"images": (image.model_copy(update={"layers": made}),)})
        found = page(Subject(one.model_copy(update={"plan": plan})))
        return re.findall(r"which one core has to inflate: ([^<]+)\.</p>", found)

    gzip, zstd = (f"application/vnd.oci.image.layer.v1.tar+{kind}" for kind in ("gzip", "zstd"))
    said = "that is at least 6 s of each bake and of each pull. Compressed with zstd it takes 4 s"
    assert told((gzip, 3 * GIB)) == [f"{said}, and in two layers of one size, on two cores, 3 s"]
    assert told((gzip, 3 * GIB), (gzip, 3 * GIB)) == [said]
    assert told((zstd, 3 * GIB), (gzip, GIB)) == []
