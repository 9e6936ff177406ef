"""Rollouts to managed node groups with a warm pool: it is emptied, filled anew, and comes back whatever happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from botocore.client import BaseClient

from parbake.core.events import Events
from parbake.rollouts.nodegroup import POOL as POOL_TAG
from parbake.workflows import rollout
from parbake.workflows.rollout import RolloutOptions
from standins.aws.autoscaling import Fleets
from standins.aws.interceptor import Killed
from standins.clusters import parbake, project
from tests.aws.rollouts.test_rollouts import DATA, NODES, QUICK, fleets, node_group

__all__ = ["fleets"]

pytestmark = pytest.mark.usefixtures("aws_mock", "made_up_records")


POOL: dict[str, Any] = {
    "enabled": True, "minSize": 3, "maxGroupPreparedCapacity": 9, "poolState": "STOPPED", "reuseOnScaleIn": False,
}  # fmt: skip


def pooled(fleets: Fleets) -> None:
    """Make a managed node group of EKS's own image with a warm pool."""
    node_group("AL2023_x86_64_STANDARD", image="")
    fleets.pools["nodes"], fleets.warm["nodes"] = dict(POOL), ["1"] * 3


def test_a_warm_pool_is_recycled(fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The volume goes into the template; no instance that booted without it ever joins."""
    pooled(fleets)
    project(tmp_path, [NODES], DATA)
    code, done = parbake(capsys, "rollout", DATA.key, *QUICK)
    assert code == 0, done
    assert "its warm pool is emptied" in json.dumps(done)
    assert (fleets.pools["nodes"], fleets.warm["nodes"]) == (POOL, ["2"] * 3)
    assert POOL_TAG not in fleets.tags
    kinds = [each["type"] for each in fleets.updates["nodes"]]
    assert kinds == ["ConfigUpdate", "VersionUpdate", "ConfigUpdate"]
    assert parbake(capsys, "rollback", *QUICK)[0] == 0
    assert (fleets.pools["nodes"], fleets.warm["nodes"]) == (POOL, ["3"] * 3)


def test_a_failed_update_brings_the_warm_pool_back(
    fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pooled(fleets)
    fleets.fails = "the pods stay"
    project(tmp_path, [NODES], DATA)
    assert parbake(capsys, "rollout", DATA.key, *QUICK)[0] == 1
    assert fleets.updates["nodes"][-1]["pool"] == POOL
    assert parbake(capsys, "rollout", DATA.key, *QUICK)[0] == 0
    assert (fleets.warm["nodes"], POOL_TAG in fleets.tags) == (["2"] * 3, False)


CALLS = (
    ("TagResource", 1), ("TagResource", 2), ("UpdateNodegroupConfig", 1), ("CreateLaunchTemplateVersion", 1),
    ("UpdateNodegroupVersion", 1), ("UpdateNodegroupConfig", 2), ("UntagResource", 2),
)  # fmt: skip


@pytest.mark.parametrize("kill", CALLS, ids=str)
def test_killed_while_a_warm_pool_is_recycled(
    fleets: Fleets,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kill: tuple[str, int],
) -> None:
    """After each of its calls: the same command goes on, and the pool is what it was."""
    pooled(fleets)
    project(tmp_path, [NODES], DATA)
    answer, seen = BaseClient._make_api_call, [""]

    def die(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        found = answer(client, operation, arguments)
        seen.append(operation)
        if (operation, seen.count(operation)) == kill:
            raise Killed
        return found

    with monkeypatch.context() as cut:
        cut.setattr(BaseClient, "_make_api_call", die)
        with pytest.raises(Killed):
            rollout.rollout(tmp_path / "parbake.yaml", [DATA.key], Events(), RolloutOptions(interval=0.01))
    assert parbake(capsys, "rollout", DATA.key, *QUICK)[0] == 0
    assert (fleets.pools["nodes"], fleets.warm["nodes"], POOL_TAG in fleets.tags) == (POOL, ["2"] * 3, False)
    assert fleets.versions["nodes"] == "2", "nothing was made twice"
