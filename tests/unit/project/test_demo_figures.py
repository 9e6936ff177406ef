"""The demo's figures: the README's run is the one place, and all that is said elsewhere agrees with it."""

from __future__ import annotations

import re

from parbake.workflows.demo.outcome import STEPS
from standins.documents import ROOT

README = (ROOT / "README.md").read_text()


def test_the_demo_takes_as_long_as_every_document_says() -> None:
    [block] = re.findall(r"```text\n(image  .*?)```", README, re.DOTALL)
    rows = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in block.splitlines())
    first, whole = map(int, re.findall(r"\d+", rows["first result"]))
    seconds = {name: usual for name, (_, usual) in STEPS.items()}
    assert abs(sum(seconds[name] for name in ("sample", "image", "volume", "here")) - first) <= 5
    assert abs(sum(seconds.values()) - whole) <= 10
    baked, pulled = (rows[f"start here, {how}"].partition(" (")[0] for how in ("baked", "pulled"))
    assert f"| start of a container in the demo, baked / pulled over the loopback | {baked} / {pulled} |" in README
