"""The stand-in's API server against what a real one answered: 72 commands of kubectl, in one order.

Recorded of kube-apiserver 1.36.2 by kubectl 1.32.3 (``cases/kubernetes-1.36.json``): exit code, output (1,500 letters)
and errors (900); TIME, N, UID and HOST stand for what differs each time.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from parbake.core import run
from standins.clusters import NEEDS_KUBECTL
from standins.kubernetes.server import serving
from tests.unit.rollouts.test_node_classes import NEW

pytestmark = NEEDS_KUBECTL
ANSWERS: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("cases").joinpath("kubernetes-1.36.json").read_text()
)
_DIFFERS = (
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UID"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME"),
    (r'"resourceVersion": "\d+"', '"resourceVersion": "N"'),
    (r"127\.0\.0\.1:\d+", "HOST"),
)


def told(text: str, most: int) -> str:
    for pattern, word in _DIFFERS:
        text = re.sub(pattern, word, text)
    return text.strip()[:most].strip()


def test_the_stand_in_answers_as_a_real_api_server_did(tmp_path: Path) -> None:
    differing = []
    with serving(tmp_path, NEW, "karpenter.sh_nodepools.v1", "karpenter.sh_nodeclaims.v1") as server:
        env = {"KUBECONFIG": str(server.kubeconfig), "HOME": str(tmp_path)}
        for case in ANSWERS:
            arguments = [each.replace("{90000 y}", "y" * 90_000) for each in case["args"]]
            stdin = json.dumps(case["doc"]).encode() if "doc" in case else None
            done = run.run(["kubectl", *arguments], stdin=stdin, env=env, check=False, timeout=120)
            now = (done.code, told(done.stdout.decode(), 1500), told(done.stderr, 900))
            wanted = (case["code"], case["out"].strip(), case["err"].strip())
            if now != wanted:
                differing.append((case["name"], now, wanted))
    assert differing == []
    assert len(ANSWERS) == 72
