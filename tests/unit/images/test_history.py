"""What was started, from what clusters write down: each form tells the same, and what does not count is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parbake.core.errors import InputError
from parbake.images.history import StartHistory, gather

APP = "registry.example.com/team/app:1"
SIDE = "registry.example.com/mesh/proxy:3"
UID = "8f0c9a52-0000-4000-8000-000000000001"
AT = "2026-11-20T10:00:00Z"
SEEN = {"node-1": {APP, SIDE}}

POD: dict[str, Any] = {
    "metadata": {"namespace": "shop", "name": "web-1", "uid": UID, "creationTimestamp": AT},
    "spec": {
        "nodeName": "node-1",
        "initContainers": [{"name": "proxy", "image": SIDE}],
        "containers": [{"name": "app", "image": APP}],
    },
}


def pulled(image: str, **more: Any) -> dict[str, Any]:
    """An event as kubelets write it."""
    return {
        "involvedObject": {"kind": "Pod", "namespace": "shop", "name": "web-1", "uid": UID},
        "reason": "Pulled",
        "message": f'Successfully pulled image "{image}" in 2.1s (2.1s including waiting). Image size: 77 bytes.',
        "source": {"component": "kubelet", "host": "node-1"},
        "lastTimestamp": AT,
        **more,
    }


def audited(**more: Any) -> dict[str, Any]:
    return {
        "auditID": "1",
        "verb": "create",
        "objectRef": {"resource": "pods", "namespace": "shop", "name": "web-1", "uid": UID},
        "requestReceivedTimestamp": AT,
        **more,
    }


def series(name: str, **labels: str) -> dict[str, Any]:
    return {"metric": {"__name__": name, "namespace": "shop", "pod": "web-1", **labels}, "value": [1795168800, "1"]}


BIND = {"subresource": "binding", "resource": "pods", "namespace": "shop", "name": "web-1", "uid": UID}
FORMS: dict[str, Any] = {
    "events": {"kind": "EventList", "items": [pulled(APP), pulled(SIDE)]},
    "events that found it": {
        "items": [pulled(APP, message=f'Container image "{APP}" already present on machine'), pulled(SIDE)]
    },
    "events.k8s.io": {
        "items": [
            {
                "regarding": {"kind": "Pod", "namespace": "shop", "name": "web-1", "uid": UID},
                "reason": "Pulled",
                "note": f'Successfully pulled image "{image}" in 1s',
                "reportingInstance": "node-1",
                "eventTime": AT,
            }
            for image in (APP, SIDE)
        ]
    },
    "pods": {"items": [POD]},
    "a pod": POD,
    "Prometheus": {
        "status": "success",
        "data": {
            "resultType": "vector",
            "result": [
                series("kube_pod_container_info", container="app", image_spec=APP, image="sha256:1"),
                series("kube_pod_init_container_info", container="proxy", image=SIDE),
                series("kube_pod_info", node="node-1"),
            ],
        },
    },
}
AUDIT = [
    audited(responseObject={**POD, "spec": {**POD["spec"], "nodeName": ""}}),
    audited(objectRef=BIND, requestObject={"target": {"kind": "Node", "name": "node-1"}}),
]
METRICS = f"""\
# TYPE kube_pod_container_info gauge
kube_pod_container_info{{namespace="shop",pod="web-1",uid="{UID}",container="app",image_spec="{APP}"}} 1
kube_pod_init_container_info{{namespace="shop",pod="web-1",uid="{UID}",container="proxy",image="{SIDE}"}} 1
kube_pod_info{{namespace="shop",pod="web-1",uid="{UID}",node="node-1"}} 1
kube_pod_start_time{{namespace="shop",pod="web-1",uid="{UID}"}} 1795168800
"""


def of_nodes(history: StartHistory) -> list[set[str]]:
    return [set(map(str, names)) for names in history.nodes]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("indent", [None, 2], ids=["one line", "many lines"])
def test_each_form_tells_the_same(form: str, indent: int | None, tmp_path: Path) -> None:
    file = tmp_path / "history.json"
    file.write_text(json.dumps(FORMS[form], indent=indent))
    assert of_nodes(gather([file])) == [{APP, SIDE}]


def test_so_do_audit_logs_and_the_text_of_metrics(tmp_path: Path) -> None:
    (tmp_path / "audit.log").write_text("".join(f"{json.dumps(each)}\n" for each in AUDIT))
    (tmp_path / "metrics").write_text(METRICS)
    for name in ("audit.log", "metrics"):
        assert of_nodes(gather([tmp_path / name])) == [{APP, SIDE}], name
    both = gather([tmp_path / "audit.log", tmp_path / "metrics"], [FORMS["pods"]])
    assert of_nodes(both) == [{APP, SIDE}], "a pod that several files tell of is one pod"


def started(namespace: str, name: str, at: str) -> dict[str, Any]:
    return {**POD, "metadata": {"namespace": namespace, "name": name, "uid": name, "creationTimestamp": at}}


def test_holes_and_namespaces_that_ended_are_said() -> None:
    days = [*range(1, 8), *range(20, 28)]
    pods = [started("old" if day < 8 else "new", f"p{day}", f"2026-11-{day:02}T00:00:00Z") for day in days]
    found = gather((), pods)
    assert found.seconds == 13 * 86400, "the days that are missing do not count"
    hole, ended = found.notes
    assert hole.startswith("nothing was started between 2026-11-07 00:00 and 2026-11-20 00:00")
    assert ended == "the namespace old starts nothing since 2026-11-07 00:00: it was renamed, or is gone"


def test_what_does_not_count_is_said() -> None:
    nowhere = {**POD, "spec": {"containers": [{"image": APP}, {"image": "sha256:" + "1" * 64}, {"image": "A B"}]}}
    found = gather((), [nowhere, {"kind": "Secret"}, audited(requestObject={})])
    assert of_nodes(found) == [{APP}]
    assert [note.partition(":")[0] for note in found.notes] == [
        "of 1 pods the node is not known",
        "2 images without a name to ask a registry for are left out",
        "1 entries of other kinds do not count; "
        "1 audited pods without their specification (level Metadata) do not count",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is none of the forms that are known"),
        ('{"kind": "Secret"}', "1 entries of other kinds do not count"),
        ("{broken\n", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_file_that_tells_nothing_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "history").write_text(text)
    with pytest.raises(InputError, match=says):
        gather([tmp_path / "history"])
    with pytest.raises(InputError, match="No such file"):
        gather([tmp_path / "none"])
