"""What a cluster is asked through kubectl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parbake.core.errors import RolloutError
from parbake.rollouts.cluster import Cluster
from standins.kubernetes.kubectl_in_process import replace_kubectl
from standins.kubernetes.server import serving


def test_pods_come_a_page_at_a_time_and_no_more_than_a_cluster_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    last = 3

    def page(_: Cluster, arguments: list[str]) -> dict[str, Any]:
        asked.append(arguments[2])
        go_on = "next&page" if len(asked) < last else ""
        return {"metadata": {"continue": go_on}, "items": [{"metadata": {"name": f"pod{len(asked)}"}}, "odd"]}

    monkeypatch.setattr(Cluster, "_json", page)
    assert [pod["metadata"]["name"] for pod in Cluster().each_pod("a/b")] == ["pod1", "pod2", "pod3"]
    assert asked[0] == "/api/v1/namespaces/a%2Fb/pods?limit=250"
    assert asked[1] == f"{asked[0]}&continue=next%26page"
    last = 1_000_000
    with pytest.raises(RolloutError, match="more than 150000 pods"):
        list(Cluster().each_pod())


def test_pods_of_a_namespace_are_those_of_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        replace_kubectl(monkeypatch)
        for namespace in ("shop", "data"):
            server.create("namespaces", namespace)
            server.create("pods", f"in-{namespace}", metadata={"namespace": namespace}, spec={})
        assert [pod["metadata"]["name"] for pod in Cluster().each_pod("shop")] == ["in-shop"]
        assert len(list(Cluster().each_pod())) == 2
