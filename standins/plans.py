"""Plans and records made of thin air, for decisions that need no bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from parbake import records
from parbake.builders import Ingredients, Publication, RemoteBuilder
from parbake.core.model import MIB, Artefact, Base, Descriptor, Image, ImageVerdict, Layer, Plan, Platform, Verdict
from parbake.records import Record
from parbake.workflows.demo.outcome import Outcome, Starts

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest(word: str) -> str:
    """Return a digest that follows from a word."""
    return "sha256:" + hashlib.sha256(word.encode()).hexdigest()


def layer(word: str, *, below: str = "", size: int = 10 * MIB, raw_size: int = 25 * MIB) -> Layer:
    return Layer(
        media_type=LAYER,
        digest=digest(word),
        size=size,
        diff_id=digest("diff " + word),
        chain_id=digest(f"chain {below}{word}"),
        raw_size=raw_size,
    )


def image(reference: str = "registry.example/app:1", *, layers: tuple[Layer, ...] | None = None, **more: Any) -> Image:
    target = Descriptor(media_type=MANIFEST, digest=digest("manifest " + reference), size=500)
    return Image(
        reference=reference,
        platform=Platform(architecture="amd64"),
        target=target,
        manifest=target,
        config=Descriptor(media_type=CONFIG, digest=digest("config " + reference), size=900),
        layers=(layer(reference),) if layers is None else layers,
        **more,
    )


def plan(**more: Any) -> Plan:
    fields: dict[str, Any] = {
        "name": "node",
        "platform": Platform(architecture="amd64"),
        "base": Base(kind="none"),
        "artefact": Artefact(kind="volume"),
        "images": (image(),),
        "size": 1 << 30,
    }
    return Plan(**{**fields, **more})


def record(word: str = "a", *, name: str = "node", passed: bool | None = None, at: int = 0) -> Record:
    made = plan(name=name, images=(image(f"registry.example/{word}:1"),))
    verdict = None if passed is None else Verdict(passed=passed, accelerator="tcg", boot_seconds=20.0)
    return Record(
        artefact=made.artefact_name,
        key=made.key,
        sha256=digest(word)[7:],
        size=made.size,
        allocated=made.size // 3,
        builder="local",
        parbake="0.1.0",
        started_at=f"2026-11-24T00:00:{at:02}Z",
        finished_at=f"2026-11-24T00:01:{at:02}Z",
        plan=made,
        verdict=verdict,
    )


def outcome() -> Outcome:
    """Return what a demo ends with: its image started in one or two seconds, and in four or nine from a pull."""
    app = image("127.0.0.1:5055/demo/forecast:1", layers=(layer("forecast", raw_size=0),))  # zstd says no size
    volume = plan(name="demo-volume", images=(app,))
    made = plan(name="demo", artefact=Artefact(kind="machine-image", format="qcow2"), images=(app,))
    start = ImageVerdict(reference=str(app.reference), digest=app.target.digest, start_seconds=2.0)
    verdict = Verdict(passed=True, accelerator="tcg", boot_seconds=30.0, images=(start,))
    changes = {"artefact": made.artefact_name, "key": made.key, "plan": made, "verdict": verdict, "seconds": 5.0}
    of_volume = {"artefact": volume.artefact_name, "key": volume.key, "plan": volume, "seconds": 2.5}
    return Outcome(
        volume=record().model_copy(update=of_volume),
        record=record().model_copy(update=changes),
        folder=Path("demo/artefacts"),
        changed=True,
        here=Starts(baked=1.0, pull=3.0, start=1.0),
        machine=Starts(baked=2.0, pull=6.5, start=2.5),
        first_result=40.0,
        seconds=150.0,
    )


def release(made: Path, described: Record, folder: Path, work: Path, **more: Any) -> Path:
    """Let a disk appear with its record, as a bake does: it waits first. ``more`` are its blocks, trace and signer."""
    kept = records.keep(made, described, folder, work, **more)
    return records.publish_artefact(kept, described, folder, work, signer=more.get("signer"))


def bake_remotely(builder: RemoteBuilder, plan: Plan, ingredients: Ingredients) -> Publication:
    """Take a builder's steps in a cloud, in the order of a bake."""
    with builder.opened(plan, ingredients) as steps:
        made = steps.build()
        return steps.publish(made, steps.verify(made))
