"""Verification for real: a volume on the default base, in one boot for all of it, by UEFI and without cloud-init.

Where this machine has seen that boot before, nothing boots here. Where it has not, a broken state is put in the place
of the machine's: it is found out, the machine boots and is kept, and what is proven here is what resumed from that.

What can be wrong with an image or a store is told without a machine, in tests/system/verify; that a start fails in a
machine as well, in test_own_node; what answers by HTTP is started in test_other_architecture and in the tutorial.

The same machine rehearses an image of the volume: what it reads is compared with what it reads on this machine.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from parbake.coldstart.rehearsal import rehearse_volume
from parbake.coldstart.rehearsal.machine import start_all, trace_of
from parbake.coldstart.trace import Trace
from parbake.core import run
from parbake.core.errors import BadBase
from parbake.core.events import Events
from parbake.core.model import (
    Artefact,
    Base,
    ImageVerdict,
    LogProbe,
    Plan,
    Platform,
    Verdict,
)
from parbake.machine import disk
from parbake.machine.vm import Saved, saved
from parbake.verify import Pulled, Verification, compare_pull, verify
from standins.base import check_node
from standins.containerd_support import Made, busybox, document, fill, filling, pause
from standins.registry import DockerRegistry
from standins.starts import described, shell

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow(120)]

SANDBOX, STEADY = "registry.test/pause:9", "registry.test/steady:1"


@dataclass(frozen=True)
class Proof:
    talk: str
    verdict: Verdict
    pulled: Pulled
    volume_before: str
    volume_after: str
    without_cloud_init: bool
    agent_files: str
    told: tuple[str, ...]
    in_machine: Trace
    here: Trace
    """What the first image reads when it is rehearsed in the machine, and on this one."""
    guest_is_late: int
    """Seconds that the guest's clock is behind this machine's."""

    def image(self, reference: str) -> ImageVerdict:
        [found] = [image for image in self.verdict.images if image.reference == reference]
        return found


def push(made: Made, reference: str, folder: Path) -> None:
    """Push an image with skopeo, byte for byte."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    for digest, data in made.blobs.items():
        (blobs / digest.partition(":")[2]).write_bytes(data)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index = {"schemaVersion": 2, "manifests": [document(made.manifest)]}
    (folder / "index.json").write_text(json.dumps(index))
    source, target = f"oci:{folder}", f"docker://{reference}"
    run.run(["skopeo", "copy", "--preserve-digests", "--dest-tls-verify=false", source, target])


def by_uefi(volume: Path, plan: Plan, folder: Path, told: list[str]) -> Verification:
    """Return a verification on the default base, which can do both, and BIOS comes first; ``told`` gets its notes."""
    events = Events(lambda event: told.append(event.text) if event.kind == "note" else None)
    verification = Verification(volume, plan, events=events, folder=folder, reads=folder / "reads.log")
    verification.node.machine._firmware = "uefi"
    return verification


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proof]:
    folder = tmp_path_factory.mktemp("verify")
    made = busybox(Cmd=["/bin/sh", "-c", "exec sleep 1000"])
    layered = busybox({"greeting": b"to serve\n", "padding": os.urandom(1 << 20)})
    volume = folder / "volume.raw"
    with DockerRegistry(folder) as registry:
        talk = f"{registry.host}/team/app:1"
        push(layered, talk, folder / "layout")
        said = "sleep 0.2; echo $WORD $(/bin/busybox cat /greeting); sleep 1000"
        startup = shell(said, up=LogProbe(pattern="^ready"), env={"WORD": "ready"}, watch=1)
        plan = Plan(
            name="node",
            platform=Platform.host(),
            base=Base(kind="none"),
            artefact=Artefact(kind="volume"),
            images=(described(layered, talk, startup), described(made, STEADY)),
            sandbox=described(pause(), SANDBOX),
            size=256 << 20,
        )
        with filling(volume, plan.size) as client:
            fill(client, STEADY, made)
            fill(client, talk, layered)
            fill(client, SANDBOX, pause())
        before = disk.sha256_file(volume, Events())
        told: list[str] = []
        verification = by_uefi(volume, plan, folder / "run", told)
        if verification.node.machine.accelerator == "tcg" and not verification.node.resumes:
            assert verification.node._carrier
            state = Saved(verification.node._carrier._state)
            state.folder.mkdir()
            state.write_age(0.0)
            for path in (state.memory, state.root):
                saved.pack(io.BytesIO(os.urandom(100_000)), path)
            with verification:
                assert verification.node.runtime, "it boots, and the volume is where it belongs"
            assert ["did not resume, and boots" in line for line in told] == [True]
            verification = by_uefi(volume, plan, folder / "again", told := [])
            assert verification.node.resumes
        machine = verification.node.machine
        with verification:
            late = time.time_ns() - machine.guest.now().wall
            check_node(verification.node, uefi=True)
            without_cloud_init = machine.guest.run(["test", "-e", "/run/cloud-init/disabled"]).code == 0
            ports = machine.guest.check(["sh", "-c", "ls -l /proc/$(systemctl show -P MainPID parbake-agent)/fd"])
            verdict = verification.verdict()
            [image] = [image for image in plan.images if str(image.reference) == talk]
            alone = plan.model_copy(update={"images": (image,)})
            starts = start_all(verification, alone)
            seconds = compare_pull(verification, image)
        after = disk.sha256_file(volume, Events())
        (works := folder / "here").mkdir()
        in_machine = trace_of(volume, alone, verification.folder / "reads.log", starts, verification.folder)
        here = rehearse_volume(volume, alone, Events(), works)
        yield Proof(
            talk, verdict, seconds, before, after, without_cloud_init, ports, tuple(told), in_machine, here,
            guest_is_late=late // 10**9,
        )  # fmt: skip


def test_the_base_boots_by_uefi_and_systemd_starts_the_agent(proof: Proof) -> None:
    assert proof.without_cloud_init, "cloud-init finds nothing to do"
    assert "/dev/vport" in proof.agent_files
    assert "ttyS1" not in proof.agent_files, "the agent speaks over a slow serial line"


def test_a_machine_that_resumed_lives_now(proof: Proof) -> None:
    assert proof.told == (), "it booted again, or was not kept"
    assert abs(proof.guest_is_late) < 600
    if proof.verdict.accelerator == "tcg":
        assert proof.verdict.boot_seconds is not None
        assert 0 < (proof.verdict.resumed_seconds or 0) < proof.verdict.boot_seconds


def test_it_is_measured(proof: Proof) -> None:
    assert proof.verdict.boot_seconds is not None
    assert proof.verdict.accelerator in {"kvm", "tcg"}
    for reference in (proof.talk, STEADY):
        image = proof.image(reference)
        assert image.start_seconds is not None
        assert image.sandbox_seconds is not None
        assert 0 < image.start_seconds < 600
        assert 0 < image.sandbox_seconds < 600


def test_good_images_pass(proof: Proof) -> None:
    for reference in (proof.talk, STEADY, SANDBOX):
        image = proof.image(reference)
        assert image.problems == ()
        assert image.pinned
        assert image.unpacked
        assert image.digest
    assert "ready to serve" in proof.image(proof.talk).output
    assert proof.verdict.passed
    assert proof.verdict.problems == ()
    [warning] = proof.verdict.warnings
    assert warning.startswith(f"nothing was asked of {STEADY} (")


def test_the_artefact_is_not_changed(proof: Proof) -> None:
    assert proof.volume_before == proof.volume_after


def test_a_rehearsal_in_a_machine_reads_what_one_on_this_machine_does(proof: Proof) -> None:
    """The same files, and nothing of the node's own disk, of a search of all the disk, or of the other starts.

    Two kernels read somewhat differently ahead (of a program that is mapped, and of the inodes near a new one), so that
    either has some hundred KiB of its own.
    """
    machine, here = proof.in_machine, proof.here
    assert (machine.uuid, machine.filesystem, machine.size) == (here.uuid, here.filesystem, here.size)
    assert (machine.skipped, here.skipped) == ({}, {})
    [seen], [part] = machine.parts, here.parts
    assert (seen.name, seen.kind, list(seen.stages)) == (part.name, part.kind, list(part.stages))
    assert {file.path for file in machine.files} == {file.path for file in here.files}
    sizes = [sum(read.length for read in each.reads) * 512 for each in (seen, part)]
    assert abs(sizes[0] - sizes[1]) < 0.3 * sizes[1], sizes
    # All of its reads are of the volume, beginning with its superblock.
    assert (seen.reads[0].sector, seen.reads[0].length) == (2, 2)


def test_a_pulled_start_is_measured_in_the_same_machine(proof: Proof) -> None:
    assert proof.pulled.pull_seconds > 0
    assert proof.pulled.start_seconds > 0
    assert proof.pulled.seconds == proof.pulled.pull_seconds + proof.pulled.start_seconds


def test_a_machine_image_that_does_not_boot_is_a_verdict(tmp_path: Path) -> None:
    broken = tmp_path / "broken.raw"
    broken.write_bytes(bytes.fromhex("f4ebfd").ljust(446, b"\0") + bytes(64) + b"\x55\xaa" + bytes(1 << 20))
    plan = Plan(
        name="node",
        platform=Platform.host(),
        base=Base(kind="file"),
        artefact=Artefact(kind="machine-image"),
        images=(),
        size=1 << 20,
    )
    verdict = verify(broken, plan, events=Events(), folder=tmp_path)
    assert not verdict.passed
    [problem] = verdict.problems
    assert "no boot loader" in problem
    with pytest.raises(BadBase):
        verify(broken, None, events=Events(), folder=tmp_path)
