"""Rollouts to Karpenter beside others, and killed: who comes second is told, and the next goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from parbake.rollouts.karpenter import Karpenter as Target
from standins.clusters import NEEDS_KUBECTL, parbake, project
from standins.keys import key_pair
from standins.kubernetes.karpenter import Karpenter
from standins.kubernetes.server import Server
from tests.unit.rollouts.test_karpenter import FIRST, GPU, QUICK, SECOND, cluster, images, server, terms

__all__ = ["cluster", "server"]

pytestmark = [NEEDS_KUBECTL, pytest.mark.usefixtures("made_up_records")]


@pytest.mark.usefixtures("cluster")
def test_two_rollouts_race(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the look and the write, somebody else writes: a status is nothing, an image is."""
    project(tmp_path, [GPU], FIRST)
    decided = Target.plan
    meanwhile: list[Any] = []

    def plan(self: Target, offer: Any) -> Any:
        change = decided(self, offer)
        meanwhile.pop()()
        return change

    monkeypatch.setattr(Target, "plan", plan)
    meanwhile.append(
        lambda: server.change("ec2nodeclasses", "gpu", {"spec": {"amiSelectorTerms": [{"alias": "al2023@v20260101"}]}})
    )
    code, error = parbake(capsys, "rollout", FIRST.key, "--no-follow")
    assert (code, error["error"], terms(server)) == (1, "TargetMoved", [{"alias": "al2023@v20260101"}])
    meanwhile.append(lambda: server.set_status("ec2nodeclasses", "gpu", {"instanceProfile": "new"}))
    code, _ = parbake(capsys, "rollout", FIRST.key, "--no-follow")
    assert (code, terms(server)) == (0, [{"id": "ami-1"}])


@pytest.mark.usefixtures("cluster")
def test_two_processes_race(server: Server, tmp_path: Path) -> None:
    """Both have read the node class before the first of them writes: one writes, the other is told."""
    signer = key_pair(tmp_path)  # other processes have no stand-in of AWS to compare records with
    project(tmp_path, [GPU], FIRST, SECOND, signer=signer, trust=["key.pub"])
    together = threading.Barrier(2, timeout=60)
    server.store.before_patch = together.wait
    command = [sys.executable, "-m", "parbake", "rollout", "--no-follow", "--json"]
    racing = [
        subprocess.Popen([*command, each.key], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for each in (FIRST, SECOND)
    ]
    said = [json.loads(each.communicate(timeout=60)[0]) for each in racing]
    codes = [each.returncode for each in racing]
    assert sorted(codes) == [0, 1]
    winner = codes.index(0)
    assert terms(server) == [{"id": f"ami-{winner + 1}"}]
    assert said[1 - winner]["error"] == "TargetMoved"
    assert "run the same command again" in said[1 - winner]["hint"]
    server.store.before_patch = lambda: None
    loser = (FIRST, SECOND)[1 - winner]
    assert subprocess.run([*command, loser.key], cwd=tmp_path, capture_output=True, check=False).returncode == 0
    note = json.loads(server.get("ec2nodeclasses", "gpu")["metadata"]["annotations"]["parbake/rollout"])
    assert note["previous"]["images"] == [f"ami-{winner + 1}"], "the way back is to what was there"


def test_a_rollout_that_was_killed_is_finished_by_the_next(
    cluster: Karpenter, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path, [GPU], FIRST, signer=key_pair(tmp_path), trust=["key.pub"])
    command = [sys.executable, "-m", "parbake", "rollout", FIRST.key, *QUICK]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    written = threading.Event()
    while not written.wait(0.05) and process.poll() is None:
        if terms(server) == [{"id": "ami-1"}]:
            process.send_signal(signal.SIGKILL)
            written.set()
    assert process.wait() == -signal.SIGKILL
    with cluster:
        code, done = parbake(capsys, "rollout", FIRST.key, *QUICK)
        assert (code, done["changed"], images(server)) == (0, False, ["ami-1", "ami-1"])
        assert parbake(capsys, "rollback", *QUICK)[0] == 0
    assert images(server) == ["ami-0", "ami-0"]
