"""The EBS builder, killed with SIGKILL at each of its calls: the same command finishes, or a clean-up leaves nothing.

Each run is a child process, and the stand-in kills it: when a call arrives (the answer before it was heard, what
followed from it on this machine is done), and when AWS has changed something and nobody has heard of it.
"""

from __future__ import annotations

import copy
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parbake import aws
from parbake.aws.leftovers import Wanted, remove
from parbake.events import Events
from parbake.model import Plan
from tests.aws.test_ebs import held
from tests.aws.test_ebs_builder import MACHINE, VOLUME, Oven, build, cloud, oven
from tests.support.children import in_child
from tests.support.ebsdirect import Cloud

__all__ = ["cloud", "oven"]

HOME, OTHER = "eu-west-1", "us-east-1"
SETTINGS: dict[str, Any] = {
    "region": HOME,
    "copy_to": [OTHER],
    "share_with": ["123456789012"],
    "fast_snapshot_restore": [f"{OTHER}b"],
}


class Killer:
    """Kills a child at its ``number``-th call; ``when`` is ``before`` AWS acts or ``after`` that."""

    def __init__(self, cloud: Cloud, number: int, when: str) -> None:
        self.cloud, self.number, self.when, self.child, self.seen = cloud, number, when, 0, 0
        cloud.witness = self.see
        cloud.lock.acquire()  # nothing is answered before it is known whose call it is

    def born(self, child: int) -> None:
        """Know the child."""
        self.child = child
        self.cloud.lock.release()

    def see(self, when: str) -> None:
        with self.cloud.lock:
            if when == self.when:
                self.seen += 1
                if self.seen == self.number:
                    os.kill(self.child, signal.SIGKILL)


def clean(name: str) -> None:
    for region in (HOME, OTHER):
        remove(Wanted(name=name), region, Events())


def left(cloud: Cloud) -> list[str]:
    """Return all that is there, as region and what parbake says of it."""
    tagged = [(each["region"], each["tags"]) for each in cloud.images.values()]
    tagged += [(each.region, each.tags) for each in cloud.snapshots.values()]
    return sorted(f"{region} {tags['parbake:managed']}" for region, tags in tagged)


def begin_anew(cloud: Cloud, folder: Path) -> None:
    for there in (cloud.snapshots, cloud.images, cloud.tokens):
        there.clear()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("wanted", [VOLUME, MACHINE], ids=lambda plan: plan.name)
def test_killed_at_each_call(
    tmp_path: Path, oven: Oven, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, wanted: Plan
) -> None:
    settings = {**SETTINGS, **({"deprecate_after": "90d"} if wanted is MACHINE else {})}
    for service, region in (("ec2", HOME), ("ec2", OTHER), ("ebs", HOME)):
        aws.client(service, region)  # made once for all children; nothing connects yet
    cloud.slow, killed = 1, 0
    work = tmp_path / "work"
    monkeypatch.setenv("PARBAKE_CACHE", str(work / "cache"))
    for when in ("before", "after") if wanted is VOLUME else ("after",):  # what is kept here is the same for both
        number = 0
        while True:
            begin_anew(cloud, work)
            number += 1
            killer = Killer(cloud, number, when)
            code = in_child(lambda: build(work, wanted, **settings), killer.born)
            cloud.witness = lambda _when: None
            if code == 0:
                break
            assert code == -signal.SIGKILL
            both_ways(cloud, oven, wanted, lambda: build(work, wanted, **settings), f"call {number}, {when}")
            killed += 1
    assert killed > 10


def both_ways(cloud: Cloud, oven: Oven, wanted: Plan, again: Callable[[], object], at: str) -> None:
    """Check what a clean-up makes of what a kill left, and what the same command makes of it."""
    parts = 2 if wanted is MACHINE else 1
    home, other = [f"{HOME} artefact"] * parts, [f"{OTHER} artefact"] * parts
    saved = copy.deepcopy((cloud.snapshots, cloud.images, cloud.tokens))
    assert in_child(lambda: clean(wanted.name)) == 0, at
    assert left(cloud) in ([], other, home + other), f"{at}: what is done stays, the home region's last"

    cloud.snapshots, cloud.images, cloud.tokens = saved
    assert in_child(again) == 0, at
    assert left(cloud) == home + other, at
    assert all(set(held(cloud, snapshot)) == set(oven.content) for snapshot in cloud.snapshots), at
