"""Machines that share a store, each with an output folder of its own, and what they have baked."""

from __future__ import annotations

import random
from pathlib import Path

from parbake import records
from parbake.bakefile import load
from parbake.core.events import Event, Events
from parbake.core.model import EBS_BLOCK, Verdict
from parbake.core.workspace import work_folder
from parbake.machine.disk import block_list
from parbake.records import Record
from parbake.records.store import Shared, session_store
from parbake.records.store.port import Store
from standins.plans import record, release

PASSED = Verdict(passed=True, accelerator="tcg", boot_seconds=20.0)


def content(seed: int, *, blocks: int = 12, changed: int = -1) -> bytes:
    """Return a disk of which every third block is a hole; ``changed`` is the one block that differs."""
    chance = random.Random(seed)
    parts = [
        bytes(EBS_BLOCK) if index % 3 == 2 else chance.randbytes(16) * (EBS_BLOCK // 16) for index in range(blocks)
    ]
    if changed >= 0:
        parts[changed] = b"changed." * (EBS_BLOCK // 8)
    return b"".join(parts)[:-100]  # a disk need not end with a block


class Machine:
    """A Bakefile with a store, and the artefacts of one machine."""

    def __init__(self, folder: Path, address: str, *, name: str = "node") -> None:
        folder.mkdir()
        self.folder, self.said = folder, list[Event]()
        self.file = folder / "parbake.yaml"
        self.file.write_text(f"version: 1\nname: {name}\nimages: [r.example/app:1]\nbase: none\nstore: {address}\n")
        self.output = folder / "artefacts"
        self.output.mkdir()

    @property
    def shared(self) -> Shared:
        found = session_store(load(self.file), Events(self.said.append))
        assert found
        return found

    @property
    def store(self) -> Store:
        return self.shared.store

    @property
    def warnings(self) -> list[str]:
        return [event.text for event in self.said if event.kind == "warning"]

    def baked(self, word: str, disk: bytes, *, raw: bool = True, at: int = 0, passed: bool | None = None) -> Record:
        """Publish an artefact as a bake does."""
        with work_folder(self.output, "test") as work:
            made = work / "disk"
            made.write_bytes(disk)
            listed = block_list(made, Events(), algorithm="blake3") if raw else None
            described = record(word, passed=passed, at=at)
            changes = {
                "blocks": listed
                and records.Blocks(algorithm="blake3", count=len(listed.blocks), digest=listed.digest()),
                "sha256": "" if raw else described.sha256,
                "size": len(disk),
            }
            described = described.model_copy(update=changes)
            release(made, described, self.output, work, blocks=listed)
        return described

    def files(self) -> dict[str, bytes]:
        """Return what lies in the output folder."""
        return {path.name: path.read_bytes() for path in self.output.iterdir() if path.is_file()}
