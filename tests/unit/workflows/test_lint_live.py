"""Lint of what runs in a cluster: pods say what admission made of them, each cause once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parbake.bakefile import load
from parbake.workflows.lint import Bake, examine, of_bakefile
from tests.unit.workflows.test_lint import APP, INDEX, MACHINE


def live(kind: str, name: str, owner: tuple[str, str] | None, containers: list[dict[str, Any]], **pod: Any) -> Any:
    """Return an object as a cluster has it, with its name as its uid."""
    metadata: dict[str, Any] = {"name": name, "namespace": "shop", "uid": name}
    if owner:
        metadata["ownerReferences"] = [{"kind": owner[0], "name": owner[1], "uid": owner[1], "controller": True}]
    spec = {"containers": containers, **pod}
    return {
        "apiVersion": "v1", "kind": kind, "metadata": metadata,
        "spec": spec if kind == "Pod" else {"template": {"spec": spec}},
    }  # fmt: skip


def box(image: str = APP, policy: str = "IfNotPresent", name: str = "c") -> dict[str, Any]:
    return {"name": name, "image": image, "imagePullPolicy": policy}


def seen(*items: Any, bakes: tuple[Bake, ...] = (MACHINE,)) -> list[tuple[str, str, str]]:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    return [(each.rule.id, each.what, each.message) for each in examine([("the cluster", text)], bakes)]


RS, PODS = ("ReplicaSet", "web-5d9"), ("web-5d9-a", "web-5d9-b")
CHAIN = (live("Deployment", "web", None, [box()]), live("ReplicaSet", RS[1], ("Deployment", "web"), [box()]))


def test_pods_of_a_template_say_nothing_new() -> None:
    assert seen(*CHAIN, *(live("Pod", name, RS, [box()]) for name in PODS)) == []
    wrong = [box(policy="Always")]
    chain = (live("Deployment", "web", None, wrong), live("ReplicaSet", RS[1], ("Deployment", "web"), wrong))
    found = seen(*chain, *(live("Pod", name, RS, wrong) for name in PODS))
    assert [(rule, what) for rule, what, _ in found] == [("pull-policy-always", "Deployment shop/web, c")]


@pytest.mark.parametrize(
    ("containers", "rules", "how"),
    [
        ([box(f"{APP}@{INDEX}")], ["digest-name-missing"], "(c is so in its pods, not in its template)"),
        ([box(policy="Always")], ["pull-policy-always"], "(c is so in its pods, not in its template)"),
        ([box(), box("mesh.example.com/proxy:1", name="p")], ["not-baked"], "(p was put into its pods)"),
        ([box(), box(APP, "Always", name="p")], ["pull-policy-always"], "(p was put into its pods)"),
    ],
)
def test_what_admission_makes_of_pods_is_told_once_of_what_people_know(
    containers: list[dict[str, Any]], rules: list[str], how: str
) -> None:
    """Kyverno turns tags into digests by default, AlwaysPullImages and meshes do the rest."""
    found = seen(*CHAIN, *(live("Pod", name, RS, containers) for name in PODS))
    assert [rule for rule, _, _ in found] == rules
    assert {what for _, what, _ in found} == {f"Deployment shop/web, {how[1]}"}
    assert all(message.endswith(how) for _, _, message in found)


def test_digests_that_admission_sets_are_in_a_bake_as_it_is_by_default(tmp_path: Path) -> None:
    path = tmp_path / "parbake.yaml"
    path.write_text(f"version: 1\nname: node\nplatform: linux/amd64\nbase: none\nimages: [{APP}]\n")
    pods = [live("Pod", name, RS, [box(f"{APP}@{INDEX}")]) for name in PODS]
    assert seen(*CHAIN, *pods, bakes=(of_bakefile(load(path)),)) == []


def test_pods_of_owners_that_were_not_read_are_looked_at() -> None:
    for owner in (("Workflow", "nightly"), RS):
        (found,) = seen(live("Pod", "step-1", owner, [box(policy="Always")]))
        assert found[:2] == ("pull-policy-always", "Pod shop/step-1, c")
    alone = live("ReplicaSet", "web-5d9", None, [box(policy="Always")])
    (found,) = seen(alone, live("Pod", PODS[0], RS, [box(policy="Always")]))
    assert found[:2] == ("pull-policy-always", "ReplicaSet shop/web-5d9, c")
    of_the_past = live("Pod", "p", ("Deployment", "web"), [box(policy="Always")])
    of_the_past["metadata"]["ownerReferences"][0]["uid"] = "an older one of that name"
    assert [each[1] for each in seen(CHAIN[0], of_the_past)] == ["Pod shop/p, c"]
    made_of_nothing_known = live("Pod", "p", ("Tool", "t"), [box(policy="Always")])
    tool = {"apiVersion": "example.com/v1", "kind": "Tool", "metadata": {"name": "t", "namespace": "shop", "uid": "t"}}
    assert [each[:2] for each in seen(tool, made_of_nothing_known)] == [("pull-policy-always", "Pod shop/p, c")]


@pytest.mark.parametrize(
    "spec",
    [
        {"nodeSelector": {"eks.amazonaws.com/compute-type": "auto"}},
        {"nodeSelector": {"eks.amazonaws.com/compute-type": "fargate"}},
        {"nodeSelector": {"kubernetes.io/os": "windows"}},
        {"os": {"name": "windows"}},
    ],
)
def test_pods_that_no_bake_reaches(spec: dict[str, Any]) -> None:
    workload = live("Deployment", "web", None, [box(policy="Always")], **spec)
    assert [rule for rule, _, _ in seen(workload)] == ["cannot-use-a-bake"]
    fargate = live("Pod", "p", None, [box(policy="Always")])
    fargate["metadata"]["labels"] = {"eks.amazonaws.com/fargate-profile": "default"}
    assert [rule for rule, _, _ in seen(fargate)] == ["cannot-use-a-bake"]
