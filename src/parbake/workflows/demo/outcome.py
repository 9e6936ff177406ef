"""What the demo does, how long that takes as a rule, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from parbake.core.model import MIB, Frozen, Image
from parbake.core.plan import measure
from parbake.records import Record

STEPS: Final = {
    "sample": ("Make the sample application's files from Debian packages", 9),
    "image": ("Build its image and push it to a registry on the loopback", 22),
    "volume": ("Bake the image into a volume", 1),
    "here": ("Start it on this machine: from the volume, and from a pull", 10),
    "base": ("Make a base image of Debian, which was begun meanwhile", 26),
    "machine": ("Bake the image into a machine image", 9),
    "boot": ("Boot that without a network, and start the image in it", 62),
    "pull": ("Pull the image in the same machine, and start it again", 57),
}
"""The steps, in order: what is done, and the seconds that it takes (see ``USUAL``; the README has the whole run)."""
USUAL: Final = "on two cores in emulation, when nothing was made before"


class Starts(Frozen):
    """How long it took until the container was up: from what was baked, and with the pull before it. In seconds."""

    baked: float
    pull: float
    start: float
    """Of the container, after the pull."""

    @property
    def pulled(self) -> float:
        """Seconds from asking for the image until the container was up."""
        return self.pull + self.start

    @property
    def ratio(self) -> str:
        """How many times as long the pulled start took, for people; empty where nothing was measured."""
        return f" ({self.pulled / self.baked:.1f} times as long)" if self.baked else ""


class Outcome(Frozen):
    """What the demo shows: the volume and the machine image, and both starts from each. Times are in seconds.

    ``first_result`` and ``seconds`` are from the beginning until the starts on this machine were known, and to the end.
    """

    volume: Record
    record: Record
    folder: Path
    changed: bool
    here: Starts
    machine: Starts
    first_result: float
    seconds: float

    @property
    def image(self) -> Image:
        """The sample application."""
        return self.record.plan.images[0]

    def rows(self) -> tuple[tuple[str, str], ...]:
        """Return the table: what, and how much."""
        record, image, verdict = self.record, self.image, self.record.verdict
        sizes = measure([image], keep_layers=False)
        raw = f"{'about ' * sizes.estimated}{sizes.raw / MIB:.0f} MiB"
        how = {"kvm": "with KVM", "tcg": "in emulation", "none": ""}[verdict.accelerator] if verdict else ""
        boot = verdict.boot_seconds if verdict else None
        before = "" if self.changed else " (done before; nothing changed)"
        return (
            ("image", str(image.reference)),
            ("image size", f"{image.size / MIB:.0f} MiB compressed, {raw} unpacked"),
            ("first result", f"after {self.first_result:.0f} s, all of it after {self.seconds:.0f} s"),
            ("bake, volume", f"{self.volume.seconds:.1f} s{before}"),
            ("  start here, baked", f"{self.here.baked:.1f} s"),
            ("  start here, pulled", f"{self.here.pulled:.1f} s{self.here.ratio}"),
            ("bake, machine image", f"{record.seconds:.1f} s{before}"),
            ("  boot", f"{boot:.1f} s {how}".rstrip() if boot is not None else "not booted"),
            ("  start in it, baked", f"{self.machine.baked:.1f} s"),
            ("  start in it, pulled", f"{self.machine.pulled:.1f} s{self.machine.ratio}"),
            ("volume", str(self.folder / self.volume.artefact)),
            ("machine image", str(self.folder / record.artefact)),
        )

    @property
    def caveat(self) -> str:
        """What these figures are of, and what they leave out."""
        size = self.image.size
        return (
            "Both starts are of the same image on the same machine, until it answers; a pulled one has the pull in it. "
            f"The registry is on this machine's loopback: over a network, each node also waits for {size / MIB:.0f} "
            f"MiB ({size * 8 / 1e9:.1f} s at 1 Gbit/s, if nobody else pulls). The volume is a local file: one that a "
            "cloud makes from a snapshot is read cold at first (docs/explanation/cold-start.md)."
        )
