"""The decisions of a verification, without a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.containerd.cri import ContainerStatus, State, has_image_volumes
from parbake.core import run
from parbake.core.errors import BadBase, InputError, MachineError
from parbake.core.events import Events
from parbake.core.model import (
    Artefact,
    Base,
    ExitProbe,
    HttpProbe,
    Image,
    LogProbe,
    MountedProbe,
    Platform,
    Probe,
    RunningProbe,
    Startup,
    TcpProbe,
)
from parbake.core.reference import Reference
from parbake.machine.vm import Clock, agent_seed
from parbake.machine.vm.guest import Ran
from parbake.verify import Pulled, Verification, verify
from parbake.verify.booted import BootedNode, Kind, Settings, identify, settings_of
from parbake.verify.starter import Log, Starter, describe, shorten
from parbake.verify.store import choose
from parbake.verify.verify import images_in, images_of, sandbox_action
from standins.plans import digest, image, plan

OLD = """
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.test/pause:3.8"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = true
"""
NEW = """
version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = 'localhost/kubernetes/pause'
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = 'nvidia'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia.options]
  SystemdCgroup = false
"""


@pytest.mark.parametrize(
    ("dump", "expected", "parent"),
    [
        (OLD, Settings("registry.test/pause:3.8", systemd_cgroups=True), "/parbake.slice"),
        (NEW, Settings("localhost/kubernetes/pause:latest", systemd_cgroups=False), "/parbake"),
        (
            f"{OLD.replace('pause:3.8', 'pause:3.8@sha256:' + 64 * 'a')}",
            Settings(f"registry.test/pause@sha256:{64 * 'a'}", True),
            "/parbake.slice",
        ),
        ("version = 2\n", Settings(), "/parbake"),
    ],
)
def test_both_generations_of_containerd_are_read(dump: str, expected: Settings, parent: str) -> None:
    assert settings_of(dump) == expected
    assert settings_of(dump).cgroup_parent == parent


def test_a_plan_promises_its_images_all_their_names_and_the_sandbox() -> None:
    startup = Startup(up=ExitProbe())
    app = image("registry.test/app:1", startup=startup, also_by_digest=True)
    other = image(f"registry.test/other:2@{digest('x')}")
    part = image(f"registry.test/base@{digest('y')}", part_of=Reference.parse("registry.test/base:3"))
    images = images_of(plan(images=(app, other, part), sandbox=image("localhost/pause:1")))
    assert [(s.reference, s.name, s.startup) for s in images] == [
        ("registry.test/app:1", "registry.test/app:1", startup),
        (f"registry.test/app@{app.target.digest}", f"registry.test/app@{app.target.digest}", None),
        (f"registry.test/other:2@{digest('x')}", "registry.test/other:2", Startup()),
        (f"registry.test/other@{digest('x')}", f"registry.test/other@{digest('x')}", None),
        (f"registry.test/base@{digest('y')}", f"registry.test/base@{digest('y')}", None),
        ("localhost/pause:1", "localhost/pause:1", None),
    ]
    assert images[0].expected == app


def test_without_a_plan_each_content_is_started_once_and_the_sandbox_never() -> None:
    records = {
        digest("id"): "app",
        "registry.test/app@" + digest("app"): "app",
        "registry.test/app:1": "app",
        "registry.test/app:2": "app2",
        "localhost/pause:1": "pause",
        "localhost/pause@" + digest("pause"): "pause",
    }
    images = images_in(records, "localhost/pause:1")
    assert {s.name: s.startup is not None for s in images} == {
        "registry.test/app:1": True,
        "registry.test/app:2": True,
        "registry.test/app@" + digest("app"): False,
        "localhost/pause:1": False,
        "localhost/pause@" + digest("pause"): False,
    }
    assert all(s.expected is None for s in images)


@pytest.mark.parametrize(
    ("present", "kind", "planned", "seen", "action"),
    [
        (True, "machine-image", None, False, "none"),
        (True, "volume", image(), True, "none"),
        (False, "volume", image(), True, "name"),
        (False, "volume", None, False, "warn"),
        (False, "machine-image", None, False, "warn"),
        (False, "machine-image", image(), True, "refuse"),
        (False, "volume", image(), False, "refuse"),
    ],
)
def test_what_is_done_about_the_sandbox_image(
    *, present: bool, kind: Kind, planned: Image | None, seen: bool, action: str
) -> None:
    assert sandbox_action(present=present, kind=kind, planned=planned, seen=seen) == action


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        (ExitProbe(), "the main process ends with code 0"),
        (LogProbe(pattern="^up$"), "a line of its output matches '^up$'"),
        (TcpProbe(port=80), "something accepts connections on port 80"),
        (HttpProbe(port=80, path="/x"), "GET http://127.0.0.1:80/x answers with 200 to 399"),
        (RunningProbe(), "the main process has run for 1 s"),
        (MountedProbe(path="/weights"), "a pod has it as a volume, with /weights"),
    ],
)
def test_probes_in_words(probe: Probe, words: str) -> None:
    assert describe(probe) == words


@pytest.mark.parametrize(
    ("version", "mounts"),
    [
        ("containerd 1.7.24~ds1", False),
        ("containerd v2.0.5", False),
        ("containerd 2.1.9~ds1", True),
        ("containerd v2.2.4+unknown", True),
        ("containerd v10.0.0", True),
        ("containerd", True),  # one that says nothing is asked
    ],
)
def test_runtimes_that_mount_images(version: str, *, mounts: bool) -> None:
    assert has_image_volumes(version) is mounts


def test_a_log_is_read_as_it_grows() -> None:
    data = (
        b"2026-11-24T08:00:00.123456789Z stdout F ready\n"
        b"2026-11-24T08:00:01.5Z stdout P long\n"
        b"2026-11-24T08:00:01.6Z stderr F aside\n"
        b"2026-11-24T08:00:02Z stdout F  line\n"
        b"not a log line\n"
        b"2026-11-24T09:00:03.000000001+01:00 stderr F \xff\n"
        b"2026-11-24T08:00:04Z stdout F unfinished"
    )
    log = Log()
    lines = [line for byte in data for line in log.feed(bytes([byte]))]
    assert lines == Log().feed(data)
    assert [text for _, text in lines] == ["ready", "aside", "long line", "\ufffd"]
    times = [time - lines[0][0] for time, _ in lines]
    assert times == pytest.approx([0.0, 1.476544, 1.876544, 2.876544], abs=1e-5)


@given(st.text())
def test_output_is_short_and_its_end(text: str) -> None:
    shown = shorten(text * 3)
    assert len(shown.splitlines()) <= 40
    assert len(shown) <= 8 << 10
    assert "\n".join((text * 3).splitlines()).endswith(shown)


def test_an_artefact_without_machines_is_not_booted(tmp_path: Path) -> None:
    other = "riscv64"
    foreign = plan(platform=Platform(architecture=other))
    verdict = verify(tmp_path / "none.raw", foreign, events=Events(), folder=tmp_path)
    assert not verdict.passed
    assert verdict.accelerator == "none"
    [problem] = verdict.problems
    assert f"the artefact is for linux/{other}" in problem


def test_a_volume_of_another_architecture_is_attached_to_a_base_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What boots there, and proves images, does so for a machine image of it in tests/vm."""
    made: list[tuple[Path, dict[str, Any]]] = []
    monkeypatch.setattr("parbake.machine.base.ensure", lambda *_, platform: tmp_path / platform.architecture)
    monkeypatch.setattr("parbake.verify.booted.Machine", lambda disk, _folder, **more: made.append((disk, more)))
    volume, foreign = tmp_path / "volume.raw", Platform(architecture="arm64")
    wanted = plan(platform=foreign, artefact=Artefact(kind="volume"), base=Base(kind="none"))
    Verification(volume, wanted, events=Events(), folder=tmp_path)
    [(base, more)] = made
    assert (base.name, more["architecture"]) == ("arm64", "arm64")
    [drive] = more["drives"]
    assert (drive.path, drive.plugged) == (volume, False)
    assert b"ConditionPathIsMountPoint=" in more["credentials"]["systemd.unit-dropin.containerd.service"]
    assert more["credentials"]["systemd.unit-dropin.systemd-resolved.service"] == b"[Unit]\nConditionPathExists=!/\n"


def test_a_node_of_the_users_own_gets_its_agent_by_cloud_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a machine image does that is rehearsed, which boots so in tests/vm/coldstart."""
    made: list[tuple[Path, dict[str, Any]]] = []
    monkeypatch.setattr("parbake.verify.booted.Machine", lambda disk, _folder, **more: made.append((disk, more)))
    monkeypatch.setattr("parbake.verify.booted.node_format", lambda _: "qcow2")
    volume, node = tmp_path / "volume.raw", tmp_path / "node.qcow2"
    wanted = plan(artefact=Artefact(kind="volume"), base=Base(kind="none"))
    Verification(volume, wanted, events=Events(), folder=tmp_path, base=node)
    [(disk, more)] = made
    assert (disk, more["format"], [drive.path for drive in more["drives"]]) == (node, "qcow2", [volume])
    assert more["seed"] == agent_seed()
    assert "credentials" not in more


def test_files_are_told_apart(tmp_path: Path) -> None:
    volume, machine, nothing, swap = (tmp_path / name for name in ("volume", "machine", "nothing", "swap"))
    for path in (volume, machine, nothing, swap):
        with path.open("wb") as file:
            file.truncate(32 << 20)
    run.run(["mke2fs", "-q", "-t", "ext4", str(volume)])
    run.run(["mkswap", str(swap)])
    run.run(["sfdisk", "--quiet", str(machine)], stdin=b"label: gpt\ntype=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n")
    assert identify(volume) == ("volume", "raw")
    assert identify(machine) == ("machine-image", "raw")
    for image_format, name in (("qcow2", "qcow2"), ("vmdk", "vmdk"), ("vpc", "vhd")):
        converted = tmp_path / name
        run.run(["qemu-img", "convert", "-O", image_format, str(machine), str(converted)])
        assert identify(converted) == ("machine-image", name)
    with pytest.raises(BadBase, match="neither a bootable disk nor a volume"):
        identify(nothing)
    with pytest.raises(BadBase, match="it holds swap"):
        identify(swap)
    with pytest.raises(InputError, match="missing: No such file"):
        identify(tmp_path / "missing")


@pytest.mark.parametrize(
    ("wanted", "there", "chosen"),
    [
        ("b", "", "b"),  # the planned one, whose absence is then found
        ("", "abc", "a"),
        ("", "bc", "b"),  # an attestation's or another variant's content was never fetched
        ("gone", "c", ""),
        ("", "", ""),
    ],
)
def test_the_manifest_of_an_index_is_the_one_that_runs_here(wanted: str, there: str, chosen: str) -> None:
    words = {"os": "linux", "architecture": "amd64"}
    entries: list[dict[str, object]] = [
        {"digest": "none"},
        {"digest": "a", "platform": words},
        {"digest": "b", "platform": {**words, "variant": "v3"}},
        {"digest": "c", "platform": {**words, "architecture": "arm64"}},
    ]
    assert choose(entries, Platform(architecture="amd64"), wanted, lambda digest: digest in there) == chosen


def test_a_pulled_start_is_both() -> None:
    assert Pulled(2.0, 0.5).seconds == 2.5


class SlowMachine:
    """A machine whose clock goes on by two seconds whenever somebody looks at it, and a container that soon fails."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.states: Iterator[tuple[State, int]] = iter([("running", 0), ("exited", 7)])

    def now(self) -> Clock:
        self.seconds += 2
        return Clock(int(self.seconds * 10**9), self.seconds)

    def read(self, *_: object, **__: object) -> bytes:
        return b""

    def run_pod_sandbox(self, *_: object, **__: object) -> object:
        return SimpleNamespace(id="pod")

    def __getattr__(self, name: str) -> Callable[..., str]:
        return lambda *_, **__: "0"

    def container_status(self, _: str) -> ContainerStatus:
        state, code = next(self.states)
        return ContainerStatus(
            id="c", state=state, exit_code=code, reason="", message="", created=0, started=self.seconds - 0.5,
            finished=0, log_path="",
        )  # fmt: skip


def test_who_ends_while_the_clock_is_read_has_not_run_for_long() -> None:
    machine = SlowMachine()
    started = Starter(machine, machine, stretch=1, pause="pause").start("image", Startup())  # type: ignore[arg-type]
    assert started.seconds is None
    assert started.problems[0].startswith("it ended with code 7")


class NodeWithAVolume:
    """A node's guest that enforces SELinux, or has none, and remembers what it was asked."""

    def __init__(self, enforces: bytes) -> None:
        self.enforces = enforces
        self.asked: list[list[str]] = []

    def run(self, *_: object, **__: object) -> Ran:
        return Ran(0, "")

    def read(self, path: str) -> bytes:
        if not self.enforces:
            raise MachineError(f"the guest could not do read: FileNotFoundError: {path}")
        return self.enforces

    def check(self, argv: list[str], **_: object) -> str:
        self.asked.append(argv)
        return ""


@pytest.mark.parametrize(
    ("enforces", "options"),
    [(b"1", "defcontext=system_u:object_r:container_ro_file_t:s0"), (b"0", "defaults"), (b"", "defaults")],
)
def test_a_volume_has_one_label_where_a_users_own_node_enforces_selinux(enforces: bytes, options: str) -> None:
    node, guest = object.__new__(BootedNode), NodeWithAVolume(enforces)
    node.machine = SimpleNamespace(guest=guest, stretch=1)  # type: ignore[assignment]
    node._whose = Path("node.raw")
    node._mount_volume()
    device = "/dev/disk/by-id/virtio-parbake-volume"
    assert guest.asked[-1] == ["mount", "-o", options, device, "/var/lib/containerd"]
