"""A machine image from its bake to its start on a cold disk, in two boots.

The first is the rehearsal: by BIOS and with cloud-init, offline, as a node of the default base whose user data mount a
baked volume. At the boot no disk is labelled as one, and the node keeps its own store; then one is. In the second it is
verified, on a cold disk: hydrated by its own service, and neither a list of what is not there nor a disk that fails
stops its boot. What else can be wrong is told without a machine, in ``tests/system/coldstart/test_hydrate.py``.
By UEFI, and without cloud-init, the default base boots in ``tests/vm/verify/test_verify.py``.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.cold import ColdSource
from bench.lazy import Profile
from parbake import records
from parbake.coldstart.hydrate import LIST
from parbake.coldstart.trace import Trace
from parbake.containerd import connect
from parbake.containerd.labels import PINNED
from parbake.core import run
from parbake.core.events import Events
from parbake.core.model import GIB
from parbake.core.nodefiles import node_file
from parbake.machine import disk
from parbake.machine.vm import Drive, Machine, agent_credentials
from parbake.records import Record
from parbake.verify import Verification
from parbake.workflows import verify
from parbake.workflows.trace import trace_of
from standins.base import check_node, default_base, in_journal, lean, mounting
from standins.containerd_support import busybox, fill, filling, pause
from standins.every_layer_feature import busybox_layer
from standins.further import Steps
from standins.images import image, index, push
from standins.registry import DockerRegistry
from standins.runs import bakefile, parbake, traces

__all__ = ["default_base"]

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow(300)]

COLD = Profile("test", 0.005, 32, 200.0)  # the emulated processor is slow enough
SERVICE = "etc/systemd/system/parbake-hydrate.service"
WANTS = "etc/systemd/system/sysinit.target.wants"
NO_UUID = "00000000-0000-0000-0000-000000000000"


# The runtime waits for the prefetch here, which waits for nothing that a runtime brings: it would never come otherwise.
AWAITING = "etc/systemd/system/containerd.service.d/await.conf"
AWAIT_PREFETCH = """[Service]
ExecStartPre=/bin/sh -c 'until grep -q phase....done /run/parbake/hydrate.json; do sleep 3; done'
TimeoutStartSec=infinity
"""

# Counts the pages that are in memory of what the list names, in the guest (mincore(2)); files that are gone count too.
RESIDENT = """
import ctypes, mmap, urllib.parse
libc, wanted, found = ctypes.CDLL(None), 0, 0
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
for line in open("/etc/parbake/prefetch.list"):
    kind, _, rest = line.partition(" ")
    ranges, _, path = rest.strip().partition(" ")
    if kind != "file" or not path.startswith("var/lib/containerd/"):
        continue
    for offset, length in (map(int, each.split("+")) for each in ranges.split(",")):
        wanted += length // 4096
        try:
            with open(b"/" + urllib.parse.unquote_to_bytes(path), "rb") as file:
                at = libc.mmap(None, length, 1, 1, file.fileno(), offset)
        except OSError:
            continue
        pages = ctypes.create_string_buffer(length // 4096)
        libc.mincore(at, length, pages)
        found += sum(page & 1 for page in pages.raw)
        libc.munmap(at, length)
print(wanted, found)
"""


APP, PAUSE = "registry.test/team/app:1", "localhost/parbake/pause:1"
VOLUME, DISK = 4 * GIB, 20 * GIB
"""What was baked, and the disk that it is given."""

# Says of places whether they can be connected to; the last word of each line is empty then.
REACHES = """
import socket, sys
for place in sys.argv[1:]:
    host, _, port = place.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10)
        print(place, "yes")
    except OSError as error:
        print(place, error)
"""


def comes_up_by_bios(verification: Verification) -> None:
    check_node(verification.node, uefi=False)


def gets_a_network_later(verification: Verification) -> None:
    """By DHCP, and it leads to the port that was lent, and nowhere else."""
    machine = verification.node.machine
    guest, within = machine.guest, 60 * machine.stretch
    lent, other = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    with lent, other:
        machine.attach_network(lent.getsockname()[1])
        waited = guest.run(
            ["sh", "-c", "until ip -4 -o address show scope global | grep 10.0.2.15; do sleep 1; done"], timeout=within
        )
        assert waited.code == 0, "a network card that is plugged in later is configured by DHCP"
        places = [*(f"10.0.2.2:{each.getsockname()[1]}" for each in (lent, other)), "169.254.169.254:80"]
        said = guest.check(["python3", "-c", REACHES, *places], timeout=within).splitlines()
        assert said[0] == f"{places[0]} yes", "the port that was lent"
        lent.settimeout(10)
        lent.accept()[0].close()
        other.setblocking(False)
        with pytest.raises(BlockingIOError):  # QEMU's network says yes before it knows
            other.accept()
        assert not said[2].endswith(" yes"), "the metadata service of a cloud"


def keeps_its_own_store(verification: Verification) -> None:
    machine = verification.node.machine
    assert in_journal(machine, "no disk labelled parbake within 8 s: the node keeps its own store, and pulls")
    assert machine.guest.run(["mountpoint", "-q", "/var/lib/containerd"]).code != 0


def takes_a_small_volume_on_a_large_disk(verification: Verification) -> None:
    """Grown, pinned, and started offline, by the program that cloud-init runs; the runtime runs by then."""
    machine, guest = verification.node.machine, verification.node.machine.guest
    within = 120 * machine.stretch
    guest.check(["e2label", "/dev/disk/by-id/virtio-volume", "parbake"])
    guest.check(["sh", "/etc/parbake/mount.sh"], timeout=within)
    assert in_journal(machine, "is mounted at /var/lib/containerd")
    with connect(machine.containerd(), patience=machine.stretch) as client:
        images = {each.name: each.labels for each in client.images.list()}
        assert images[APP].items() >= PINNED.items()
        assert images[PAUSE].items() >= PINNED.items()
    size = int(guest.check(["df", "--output=size", "-B1", "/var/lib/containerd"]).split()[-1])
    assert size >= 0.93 * DISK, "all of the disk but ext4's tables of inodes, one of 256 bytes for each 4 KiB"
    options = guest.check(["findmnt", "-no", "OPTIONS", "/var/lib/containerd"])
    assert "noatime" in options
    started = ["ctr", "-n", "k8s.io", "run", "--rm", APP, "once", "/bin/busybox", "cat", "/greeting"]
    assert "hello from the bake" in guest.check(started, timeout=within), "no registry serves it"


def switches_itself_off(verification: Verification) -> None:
    assert verification.node.machine.power_off()


@dataclass(frozen=True)
class Baked:
    """What was baked, and what its rehearsal's machine was asked once that was over: it is not in the trace."""

    artefact: Path
    record: Record
    trace: Trace
    steps: Steps
    console: str


def baked_volume(folder: Path) -> Path:
    """Return a disk with a volume that is not labelled as one yet."""
    folder.mkdir()
    made = folder / "volume.raw"
    with filling(made, VOLUME, name="volume") as client:
        fill(client, APP, busybox({"greeting": b"hello from the bake\n"}))
        fill(client, PAUSE, pause())
    run.run(["tune2fs", "-L", "later", str(made)])
    with made.open("r+b") as file:
        file.truncate(DISK)
    return made


@pytest.fixture(scope="module")
def baked(default_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Baked]:
    assert default_base.exists()
    folder = tmp_path_factory.mktemp("cold")
    volume, consoles = baked_volume(folder / "volume"), []

    def prepare(rehearsal: Verification) -> None:
        machine = rehearsal.node.machine
        machine._seed, machine._drives = mounting(PAUSE), [Drive(volume, "volume")]

    def keep_console(rehearsal: Verification) -> None:
        consoles.append(rehearsal.node.machine.console_log.read_text(errors="replace"))

    steps = Steps(
        {
            "whole": comes_up_by_bios,
            "network": gets_a_network_later,
            "own store": keeps_its_own_store,
            "volume": takes_a_small_volume_on_a_large_disk,
            "console": keep_console,
            "off": switches_itself_off,
        },
        prepare=prepare,
    )
    with DockerRegistry(folder / "registry") as registry, pytest.MonkeyPatch.context() as patch:
        shell, serve = busybox_layer(), ["/bin/busybox", "httpd", "-f", "-p", "8081"]
        push(registry.url, "team/app", index(image(shell), image(shell, platform="linux/arm64")), "1")
        app = {"reference": f"{registry.host}/team/app:1", "also_by_digest": True}
        images = [{**app, "startup": {"command": serve, "up": {"tcp": 8081}}}]
        path = bakefile(folder / "here", images, artefact="raw")
        steps.join(patch, "parbake.coldstart.rehearsal.machine")
        document = parbake("bake", "-f", path, "--rehearse", "--no-verify", "--json").good()
        assert traces(folder / "here") == []
        artefact = Path(document["artefact_path"])
        _, record = records.locate(str(artefact), artefact.parent)
        assert record
        yield Baked(artefact, record, trace_of(artefact, record), steps, "".join(consoles))


def test_the_base_boots_by_bios_with_cloud_init(baked: Baked) -> None:
    baked.steps.check("whole")


def test_a_network_that_comes_later_leads_to_what_was_lent(baked: Baked) -> None:
    baked.steps.check("network")


def test_without_a_volume_the_node_keeps_its_own_store(baked: Baked) -> None:
    baked.steps.check("own store")


def test_a_small_volume_on_a_large_disk_is_the_nodes_store(baked: Baked) -> None:
    baked.steps.check("volume")


def test_the_node_goes_off_in_order(baked: Baked) -> None:
    baked.steps.check("off")


def test_no_script_of_the_boot_lacks_a_program(baked: Baked) -> None:
    baked.steps.check("console")
    assert baked.console
    assert ": not found" not in baked.console


def test_the_boot_is_in_the_trace(baked: Baked) -> None:
    boot, *apps = baked.trace.parts
    assert ([boot.kind, *(app.kind for app in apps)], baked.trace.how) == (["boot", "image"], "boot")
    assert baked.trace.skipped == {}
    names = [entry.path for entry in baked.trace.files]
    for read in (r"boot/vmlinuz", r"boot/initrd", r"/systemd$", r"bin/containerd$", r"/fs/bin/busybox$"):
        assert any(re.search(read, name) for name in names), read
    assert names.index(next(name for name in names if "vmlinuz" in name)) < names.index(
        next(name for name in names if name.endswith("/fs/bin/busybox"))
    )
    summary = baked.record.trace
    assert summary
    assert 0 < summary.hot_bytes < baked.record.size
    # Its root was laid out: what the boot and the image read lies together.
    assert 0 < summary.hot_blocks < summary.scattered_blocks


def lists(good: str, failing: str) -> dict[str, str]:
    """Return lists of what is not there and of what cannot be read, by the name of the unit that gets them."""
    return {
        "stale": re.sub(r"uuid \S+", f"uuid {NO_UUID}", good),
        "failing": "".join([
            f"parbake-hydrate 1\nuuid {failing}\nsize {64 << 20}\nranges 64\n",
            *(f"{number << 20} 524288\n" for number in range(64)),
        ]),
    }  # fmt: skip


def spoil(copy: Path, at: Path, failing: str) -> list[str]:
    """Make a machine image lean, and add a unit for each wrong list; return their names.

    Its runtime waits for the prefetch.
    """
    with disk.private_mounts():
        root = disk.find_root(copy)
        with disk.mount(copy, at, offset=root.start, size=root.size, filesystem=root.filesystem) as mounted:
            good = (mounted.path / LIST).read_text()
            assert (mounted.path / SERVICE).read_text() == node_file("parbake-hydrate.service").read_text()
            wrong = lists(good, failing)
            lean(mounted.path)
            for name, text in wrong.items():
                (mounted.path / f"etc/parbake/{name}.list").write_text(text)
                unit = node_file("parbake-hydrate.service").read_text()
                unit = re.sub(r"(?m)^ConditionPathExists=.*\n", "", unit)
                options = f"--list /etc/parbake/{name}.list --state /run/parbake/{name}.json --wait 40"
                unit = unit.replace("$HYDRATE_OPTIONS", options)
                (mounted.path / f"etc/systemd/system/hydrate-{name}.service").write_text(unit)
                link = mounted.path / WANTS / f"hydrate-{name}.service"
                link.symlink_to(f"/etc/systemd/system/hydrate-{name}.service")
            awaiting = mounted.path / AWAITING
            awaiting.parent.mkdir()
            awaiting.write_text(AWAIT_PREFETCH)
    return list(wrong)


def failing_drive(folder: Path, stack: ExitStack) -> tuple[Path, str]:
    """Return a disk that answers half of all reads with an error, and its file system's UUID."""
    volume, link, file = folder / "volume.raw", folder / "error.sock", folder / "failing"
    disk.make_filesystem(volume, "ext4", 64 << 20, name="failing")
    uuid = run.run(["blkid", "-p", "-o", "value", "-s", "UUID", str(volume)]).text
    command = ["nbdkit", "--foreground", "--unix", str(link), "--filter=error", "file", str(volume)]
    stack.enter_context(run.Process([*command, "error-pread-rate=50%"], log=folder / "nbdkit.log"))
    deadline = run.Deadline(20, "nbdkit")
    while not link.exists():
        deadline.sleep(0.02)
    file.touch()
    command = ["qemu-storage-daemon", "--blockdev", f"driver=nbd,node-name=n,server.type=unix,server.path={link}"]
    command += ["--export", f"type=fuse,id=e,node-name=n,mountpoint={file}"]
    stack.enter_context(run.Process(command, log=folder / "storage2.log"))
    while not file.stat().st_size:
        deadline.sleep(0.02)
    return file, uuid


def test_a_cold_machine_hydrates_and_starts_whatever_is_wrong(baked: Baked, tmp_path: Path) -> None:
    copy = tmp_path / "copy.raw"
    disk.copy_sparse(baked.artefact, copy, Events())
    with disk.private_mounts(), ExitStack() as stack:
        drive, uuid = failing_drive(tmp_path, stack)
        units = spoil(copy, tmp_path / "mnt", uuid)
        source = stack.enter_context(ColdSource(copy, tmp_path, COLD))
        rehearsal = Verification(source.file, baked.record.plan, events=Events(), folder=tmp_path / "vm")
        drives = [Drive(drive, "failing")]
        rehearsal.node.machine = Machine(
            source.file, tmp_path / "vm/machine", credentials=agent_credentials(), drives=drives
        )
        stack.enter_context(rehearsal)
        machine, guest = rehearsal.node.machine, rehearsal.node.machine.guest
        within = 120 * machine.stretch
        state = guest.run(["systemctl", "is-system-running", "--wait"], timeout=within).output.strip()
        assert state == "running", guest.run(["systemctl", "--failed", "--no-legend"]).output
        # Before anything of the image was started.
        prefetched = json.loads(guest.read("/run/parbake/hydrate.json"))["prefetch"]
        pages = [int(count) for count in guest.check(["python3", "-c", RESIDENT], timeout=within).split()]
        verdict = rehearsal.verdict()
        # Its figures go into the record.
        record = verify.write_verdict(baked.artefact, baked.record, verdict)
        told = {}
        for name in units:
            wait = f"until grep -E 'phase.*(done|failed)' /run/parbake/{name}.json; do sleep 0.5; done"
            told[name] = json.loads(guest.check(["sh", "-c", wait], timeout=within))
        # Read once all have told their figures: what they log comes before.
        journal = guest.check(["journalctl", "--no-pager", "--output=cat", "--boot"], timeout=within)
        asked = ["systemctl", "show", "--property=ExecMainStartTimestampMonotonic", "--value"]
        starts = [int(guest.check([*asked, unit])) for unit in ("parbake-hydrate.service", "containerd.service")]
        loaded = source.loaded
    assert verdict.passed, verdict
    assert len(verdict.images) == 3, "by its tag, by its digest, and the pause image"
    assert all(seen.pinned and seen.unpacked for seen in verdict.images)
    hydrated = verdict.hydrate
    assert hydrated is not None
    blocks = baked.record.trace.hot_blocks if baked.record.trace else 0
    assert (hydrated.state, hydrated.ranges, hydrated.errors) == ("done", blocks, 0)
    assert loaded >= hydrated.ranges // 2  # some of its blocks are holes, which are never cold
    assert starts[0] < starts[1]
    # Under the unit's own confinement, by the list in the image: nearly all that the start reads is in memory.
    # What the boot itself replaces or hides is not there any more.
    said = [line for line in journal.splitlines() if line.startswith("prefetch: ")]
    assert prefetched["state"] == "done", said
    assert prefetched["left"] < 0.05 * prefetched["bytes"], said
    assert prefetched["errors"] + prefetched["gone"] < 0.05 * prefetched["files"], said
    assert prefetched["started_after"] < starts[1] / 1e6
    assert pages[0] > 0
    assert pages[1] >= 0.98 * pages[0]
    assert f"hydrate: {hydrated.bytes >> 20} MiB of" in journal
    assert records.read(baked.artefact.with_name(record.file_name)).verdict == verdict
    states = {name: figures["state"] for name, figures in told.items()}
    assert states == {"stale": "no-device", "failing": "done"}
    assert told["failing"]["errors"] > 0
    assert "no device holds the file system" in journal
