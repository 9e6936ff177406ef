"""The report in a real browser: it fits, light and dark, narrow and wide, alone and compared."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from parbake.cli.report import Subject, page
from parbake.cli.report.fleet import FleetNow, fleet_page
from parbake.coldstart.trace import Part, Read, Trace, summary
from parbake.coldstart.trace.data import HotEntry
from parbake.core import run
from parbake.core.model import EBS_BLOCK, GIB, HydrateFigures, ImageVerdict, Verdict
from parbake.workflows.observe import of_seen
from parbake.workflows.observe.seen import read
from standins.fleet_told import NOW, fleet_now
from standins.kubernetes.kubelet import objects
from standins.kubernetes.observed import MADE, shop
from standins.plans import image, plan, record

HOSTILE = "registry.example/<script>document.title='broken'</script>&\"':1"
LONG = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/a-team-with-a-long-name/and-an-image-with-a-longer-name:2026.11"
# What the page is asked once it is laid out: does anything stick out, and what colours does it have?
PROBE = """<script>addEventListener("load", () => { const wide = document.documentElement.scrollWidth;
const out = [...document.querySelectorAll("main, .tile, .fall, .track, svg, h1, h3")].filter(e => {
  const box = e.getBoundingClientRect(); return box.right > innerWidth + 1 || box.left < -1; }).length;
const labels = [...document.querySelectorAll(".time")].filter(e => {
  const box = e.getBoundingClientRect(), around = e.parentElement.getBoundingClientRect();
  return box.right > around.right + 1 || box.left < around.left - 1; }).length;
const style = getComputedStyle(document.body);
document.body.dataset.probe = [wide <= innerWidth, out, labels, style.backgroundColor, document.title].join("|"); });
</script></body>"""

READER = """<script>addEventListener("load", () => setTimeout(() => { document.body.dataset.probe =
[...document.querySelectorAll("iframe")].map(frame => frame.contentDocument.body.dataset.probe).join(";"); }, 1000));
</script>"""
WIDTHS = (380, 1400)


@pytest.fixture(scope="module")
def chromium() -> str:
    found = run.find("chromium")
    if found is None and not os.environ.get("CI"):
        pytest.skip("chromium is not installed (apt-get install chromium)")
    assert found
    return found


def subject(word: str, *names: str, blocks: int = 2000, hydrated: bool = False) -> Subject:
    random.seed(blocks)
    parts = tuple(
        Part(
            name=name,
            seconds=12.5,
            stages={"mount": 0.12, "containerd": 0.6, "sandbox": 0.25, "start": 9.0 + number},
            reads=tuple(
                Read(ms, int(random.gauss(4000, 1500)) % 20_000 * EBS_BLOCK // 512, 64) for ms in range(blocks)
            ),
        )
        for number, name in enumerate(names)
    )
    place = "io.containerd.snapshotter.v1.overlayfs/snapshots"
    files = tuple(HotEntry(f"{place}/{n}/fs/usr/lib/{n * 'deep/'}lib.so", n << 20) for n in range(1, 30))
    trace = Trace(
        uuid="0a", size=10 * GIB, parts=parts, files=files, skipped={"registry.example/needs-a-database:1": "no"}
    )
    told = summary(trace, file="x.trace")
    figures = HydrateFigures(state="done", bytes=9 << 26, seconds=7.5, started_after=3.1) if hydrated else None
    verdict = Verdict(
        passed=True,
        accelerator="kvm",
        boot_seconds=11.2,
        hydrate=figures,
        images=(ImageVerdict(reference=names[0], start_seconds=3.4),),
    )
    made = record(word).model_copy(
        update={
            "plan": plan(
                images=tuple(image("registry.example/a:1").model_copy(update={"reference": n}) for n in names)
            ),
            "size": 10 * GIB,
            "allocated": 7 * GIB,
            "trace": told,
            "verdict": verdict,
        }
    )
    return Subject(made, trace)


PAGES: dict[str, Callable[[], str]] = {
    "fleet": lambda: fleet_page(fleet_now(HOSTILE, LONG)),
    "silent": lambda: fleet_page(FleetNow("shop", NOW, [], silence=HOSTILE)),
    "one": lambda: page(subject("a", HOSTILE, LONG, hydrated=True)),
    "two": lambda: page(subject("a", LONG), subject("b", LONG, blocks=700, hydrated=True)),
    "observed": lambda: page(Subject(MADE), seen=of_seen(read(objects(shop(nodes=70)), cluster=HOSTILE), [MADE])),
    "bare": lambda: page(Subject(record("a", passed=None))),
}


def test_nothing_in_it_is_loaded_or_run() -> None:
    for name, made in PAGES.items():
        text = made()
        assert "<script" not in text
        assert not re.search(r"(src|href|url\(|@import)", re.sub(r"default-src|style-src", "", text))
        assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text
        assert made() == text or name == "observed", "that has the time in it"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits(chromium: str, tmp_path: Path, scheme: str) -> None:
    frames = []
    for name, made in PAGES.items():
        # The page's own policy lets no script run, so the question goes into a copy without it.
        text = re.sub(r"<meta http-equiv[^>]*>", "", made()).replace("</body>", PROBE)
        (tmp_path / f"{name}.html").write_text(text)
        # A window has a least width, a frame has none.
        frames += [f'<iframe src="{name}.html" style="border:0" width="{width}" height="2600"></iframe>'
                   for width in WIDTHS]  # fmt: skip
    index = tmp_path / "index.html"
    index.write_text(f"<body>{''.join(frames)}{READER}</body>")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--blink-settings=preferredColorScheme={1 if scheme == 'light' else 0}", "--window-size=1500,2700"]
    command += ["--virtual-time-budget=5000"]
    told = run.run([*command, "--dump-dom", index.as_uri()], timeout=120).text
    if folder := os.environ.get("PARBAKE_SCREENSHOTS"):  # for people who look at them
        for number, frame in enumerate(frames):
            (tmp_path / "frame.html").write_text(f'<body style="margin:0">{frame}</body>')
            shot = f"--screenshot={folder}/{number}-{scheme}.png"
            run.run([*command, shot, (tmp_path / "frame.html").as_uri()], timeout=120)
    probe = re.search(r'data-probe="([^"]*)"', told)
    assert probe, told[-500:]
    answers = probe[1].split(";")
    assert len(answers) == len(PAGES) * len(WIDTHS)
    for answer in answers:
        fits, sticking_out, labels, background, title = answer.split("|")
        assert (fits, sticking_out, labels) == ("true", "0", "0")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 21, 26)"}[scheme]
        assert title.startswith("parbake: ")
