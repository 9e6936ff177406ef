"""The node's program takes a raised volume back by itself, whatever EC2 says, and keeps nothing waiting."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parbake.core.nodefiles import node_file
from standins.aws.volume_changes import DAY, Change, Instance, No, Volumes

MINE, RAISED, BASE = "vol-0123456789abcdef0", (16_000, 1_000), (3_000, 125)


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location("boost", node_file("boost.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Killed(BaseException):
    """The program is dead."""


class Node:
    """A node with a raised volume, and a clock that moves when the program sleeps."""

    def __init__(self, tmp_path: Path) -> None:
        self.clock, self.told, self.states = 1_000_000.0, dict[str, Any](), list[str]()
        self.volumes = Volumes(lambda: self.clock, has={MINE: RAISED, "vol-0bad": RAISED})
        self.instance = Instance(self.volumes, tmp_path)
        self.program = loaded()
        clock = SimpleNamespace(monotonic=lambda: self.clock, sleep=self.sleep)
        clock.strftime, clock.gmtime = time.strftime, time.gmtime
        made = self.program.HTTPConnection
        self.program.time, self.program.METADATA = clock, self.instance.address
        self.program.HTTPSConnection = lambda _, timeout: made(self.instance.address, timeout=timeout)
        self.program.volume_of = lambda _: MINE

    def sleep(self, seconds: float) -> None:
        self.clock += seconds

    def start(self, ready: bool = True) -> str:
        """Run the program; return the last state that it told."""
        event = threading.Event()
        if ready:
            event.set()
        self.program.take_back("/dev/nvme1n1", event, self.told, lambda: 25.0, self.note)
        return str(self.told["state"])

    def note(self) -> None:
        if self.states[-1:] != [self.told["state"]]:
            self.states.append(self.told["state"])

    @property
    def asked(self) -> int:
        return self.instance.calls.count("ModifyVolume")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    with made.instance:
        yield made


def test_a_raised_volume_is_taken_back_once_and_no_other(node: Node) -> None:
    assert node.start() == "optimizing"
    assert node.volumes.has == {MINE: BASE, "vol-0bad": RAISED}
    assert node.states == ["raised", "modifying", "optimizing"]
    assert node.volumes.changes[MINE][0].began == 1_000_035.0, "a minute is paid for anyway"
    assert set(node.instance.calls) == {"DescribeVolumesModifications", "ModifyVolume"}
    assert node.start() == "optimizing"  # after a reboot
    node.sleep(DAY)
    assert (node.start(), node.asked) == ("completed", 1)


def test_what_is_never_read_to_its_end_is_paid_for_ten_minutes(node: Node) -> None:
    waited: list[float] = []
    event = SimpleNamespace(wait=waited.append)
    node.program.take_back("/dev/nvme1n1", event, node.told, lambda: 25.0, node.note)
    assert (waited, node.volumes.has[MINE]) == ([600.0], BASE)


@pytest.mark.parametrize("step", range(14))
def test_killed_at_any_step_the_next_start_finishes_with_one_change(node: Node, step: int) -> None:
    """Before and after each question to EC2, and each wait: in every state of the change."""
    asks, left = node.program.ask, [step]

    def die(act: Callable[..., Any]) -> Callable[..., Any]:
        def step_on() -> None:
            left[0] -= 1
            if left[0] == -1:
                raise Killed

        def dying(*arguments: Any, **more: Any) -> Any:
            step_on()
            found = act(*arguments, **more)
            step_on()
            return found

        return dying

    node.program.ask, node.program.time.sleep = die(asks), die(node.sleep)
    died = False
    try:
        node.start()
    except Killed:
        died = True
    assert died is (step < 13), "these are all steps of a start"
    node.program.ask, node.program.time.sleep = asks, node.sleep
    assert node.start() == "optimizing"
    assert (node.volumes.has[MINE], node.asked) == (BASE, 1)


def _initializes(node: Node) -> None:
    node.volumes.initializes_until = node.clock + 300


def _busy(node: Node) -> None:
    """Somebody makes the volume larger, and it stays as raised as it was."""
    node.volumes.optimizing = 100
    node.volumes.changes[MINE] = [Change(RAISED, RAISED, node.clock)]


def _once_failed(node: Node) -> None:
    node.volumes.fails = 1


def _throttled(node: Node) -> None:
    refusals = iter([No("RequestLimitExceeded", "slower"), No("Unavailable", "later")])
    node.instance.before = lambda _: _raise(next(refusals, None))


def _raise(no: No | None) -> None:
    if no:
        raise no


@pytest.mark.parametrize("trouble", [_initializes, _busy, _once_failed, _throttled])
def test_what_passes_is_waited_for(node: Node, trouble: Callable[[Node], None]) -> None:
    trouble(node)
    assert node.start() in {"optimizing", "completed"}
    assert node.volumes.has[MINE] == BASE


def _four_times_today(node: Node) -> None:
    done = [Change(RAISED, RAISED, node.clock - hour * 3600) for hour in (9, 7, 5, 3)]
    node.volumes.changes[MINE] = done


def _not_allowed(node: Node) -> None:
    def refuse(action: str) -> None:
        if action == "ModifyVolume":
            raise No("UnauthorizedOperation", "You are not authorized to perform this operation.")

    node.instance.before = refuse


def _made_otherwise(node: Node) -> None:
    node.volumes.has[MINE] = (4_000, 500)
    node.volumes.changes[MINE] = [Change((4_000, 500), RAISED, node.clock - 3600)]


def _gone(node: Node) -> None:
    del node.volumes.has[MINE]


def _always_failing(node: Node) -> None:
    node.volumes.fails = 9


def _for_ever_initializing(node: Node) -> None:
    node.volumes.initializes_until = node.clock + DAY


def _no_role(node: Node) -> None:
    tree = node.program.metadata
    node.program.metadata = lambda path, *more, **head: "" if "iam" in path else tree(path, *more, **head)


@pytest.mark.parametrize(
    ("trouble", "state", "asked", "said"),
    [
        (_four_times_today, "refused", 1, "VolumeModificationRateExceeded"),
        (_not_allowed, "refused", 1, "not authorized"),
        (_made_otherwise, "foreign", 0, "'4000'"),
        (_gone, "refused", 1, "InvalidVolume.NotFound"),
        (_always_failing, "failed", 2, ""),
        (_for_ever_initializing, "gave-up", 21, "is initializing"),
        (_no_role, "gave-up", 0, ""),
    ],
)
def test_what_does_not_pass_is_told_and_left(
    node: Node, trouble: Callable[[Node], None], state: str, asked: int, said: str
) -> None:
    trouble(node)
    began = node.clock
    assert node.start() == state
    assert (node.asked, said in node.told["said"]) == (asked, True), node.told
    assert node.clock - began < 3900, "after an hour nothing is tried any more"


def test_a_node_without_metadata_goes_on(node: Node) -> None:
    node.program.METADATA = "127.0.0.1:1"
    assert node.start() == "gave-up"
    assert "refused" in node.states


@pytest.mark.parametrize(
    ("serial", "model", "volume"),
    [
        ("vol0123456789abcdef0\n", "Amazon Elastic Block Store              \n", MINE),
        ("vol-0123456789abcdef0", "Amazon Elastic Block Store", MINE),
        ("AWS1234567890ABCDEF0\n", "Amazon EC2 NVMe Instance Storage\n", ""),
        ("vol0123456789abcdef0\n", "Somebody's disk\n", ""),
        ("vol0123\nvol4567", "Amazon Elastic Block Store", ""),
    ],
)
def test_the_device_says_which_volume_it_is(tmp_path: Path, serial: str, model: str, volume: str) -> None:
    program = loaded()
    disk = tmp_path / "devices/nvme1/nvme1n1"
    (disk / "nvme1n1p1").mkdir(parents=True)
    (disk.parent / "serial").write_text(serial)
    (disk.parent / "model").write_text(model)
    (disk / "device").symlink_to("..")
    (tmp_path / "class").mkdir()
    for name, place in (("nvme1n1", disk), ("nvme1n1p1", disk / "nvme1n1p1")):
        (tmp_path / "class" / name).symlink_to(place)
        assert program.volume_of(f"/dev/{name}", tmp_path / "class") == volume
    assert program.volume_of("/dev/xvdb", tmp_path / "class") == ""
