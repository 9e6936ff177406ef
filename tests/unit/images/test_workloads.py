from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parbake.core.errors import CommandFailed, EnvironmentProblem, InputError
from parbake.images.workloads import Use, from_cluster, images_in, read_folder

WORKLOADS = """\
apiVersion: v1
kind: Pod
metadata: {name: alone, namespace: apps}
spec:
  initContainers: [{name: init, image: ghcr.io/a/init:1}]
  containers:
    - {name: main, image: "ghcr.io/a/main:1"}
    - {name: side, image: ghcr.io/a/side@sha256:0000000000000000000000000000000000000000000000000000000000000000}
  ephemeralContainers: [{name: debug, image: busybox:1.37}]
  volumes:
    - {name: model, image: {reference: ghcr.io/a/model:1, pullPolicy: IfNotPresent}}
    - {name: tmp, emptyDir: {}}
---
# nothing here
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec:
  jobTemplate: {spec: {template: {spec: {containers: [{name: job, image: ghcr.io/a/job:1}]}}}}
---
apiVersion: v1
kind: PodTemplate
metadata: {name: stencil}
template: {spec: {containers: [{name: t, image: ghcr.io/a/template:1}]}}
---
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: {name: canary}
spec: {template: {spec: {containers: [{name: r, image: ghcr.io/a/rollout:1}]}}}
---
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
metadata: {name: llm}
spec: {leaderWorkerTemplate: {workerTemplate: {spec: {containers: [{name: w, image: ghcr.io/a/worker:1}]}}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: rules}
data:
  alert: "{{ $labels.instance }} is down"
  pod.yaml: |
    {{ range .Items }}
    spec: {containers: [{image: not/this:1}]}
    {{ end }}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: rollouts.argoproj.io}
spec: {versions: [{schema: {openAPIV3Schema: {properties: {spec: {properties: {containers: {type: array}}}}}}}]}
---
image: ghcr.io/a/values-file:1
"""


def _workload(kind: str, image: str, policy: str = "", name: str = "web") -> str:
    pull = f", imagePullPolicy: {policy}" if policy else ""
    return (
        f"apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {name}}}\n"
        f"spec: {{template: {{spec: {{containers: [{{name: c, image: {image}{pull}}}]}}}}}}\n"
    )


def test_images_are_found_wherever_pods_are_described() -> None:
    found = images_in([("all.yaml", WORKLOADS)])
    assert {str(image.reference): [str(use) for use in image.uses] for image in found.images} == {
        "docker.io/library/busybox:1.37": ["Pod apps/alone, debug"],
        "ghcr.io/a/init:1": ["Pod apps/alone, init"],
        "ghcr.io/a/job:1": ["CronJob nightly, job"],
        "ghcr.io/a/main:1": ["Pod apps/alone, main"],
        "ghcr.io/a/model:1": ["Pod apps/alone, volume model"],
        "ghcr.io/a/rollout:1": ["Rollout canary, r"],
        f"ghcr.io/a/side@sha256:{'0' * 64}": ["Pod apps/alone, side"],
        "ghcr.io/a/template:1": ["PodTemplate stencil, t"],
        "ghcr.io/a/worker:1": ["LeaderWorkerSet llm, w"],
    }
    assert found.warnings == ()


@pytest.mark.parametrize(
    "kind", ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"]
)
def test_workloads(kind: str) -> None:
    (image,) = images_in([("x", _workload(kind, "ghcr.io/a/b:1"))]).images
    assert image.uses == (Use(kind, "", "web", "c"),)


def test_one_image_under_several_names_is_one() -> None:
    texts = [("a", _workload("Deployment", "nginx:1.27")), ("b", _workload("Job", "docker.io/library/nginx:1.27"))]
    (image,) = images_in(texts).images
    assert str(image.reference) == "docker.io/library/nginx:1.27"
    assert [use.kind for use in image.uses] == ["Deployment", "Job"]


def test_lists_as_kubectl_prints_them() -> None:
    containers = [{"name": "c", "image": "a.example/b:1"}]
    pod = {"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": containers}}
    typed = {"apiVersion": "v1", "kind": "PodList", "items": [pod, None, "x"]}
    mixed = {"apiVersion": "v1", "kind": "List", "items": [{**pod, "apiVersion": "v1", "kind": "Pod"}]}
    for document in (typed, mixed):
        (image,) = images_in([("kubectl", json.dumps(document))]).images
        assert image.uses == (Use("Pod", "n", "p", "c"),)


def test_what_controllers_made_is_named_only_for_want_of_better() -> None:
    containers = [{"name": "c", "image": "a.example/b:1"}, {"name": "proxy", "image": "a.example/mesh:1"}]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web-5d9-x1", "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d9"}]},
        "spec": {"containers": containers},
    }
    found = images_in([("files", _workload("Deployment", "a.example/b:1")), ("cluster", json.dumps(pod))])
    uses = [[str(use) for use in image.uses] for image in found.images]
    assert uses == [["Deployment web, c"], ["ReplicaSet web-5d9, proxy"]]


def test_what_is_injected_is_named_by_the_owner_that_lasts() -> None:
    """As a cluster says it, by uid: the pod's ReplicaSet is of a Deployment; owners that nobody read are named."""
    spec: dict[str, Any] = {"containers": [{"name": "c", "image": "a.example/b:1"}]}
    injected = {"containers": [*spec["containers"], {"name": "proxy", "image": "a.example/mesh:1"}]}

    def made(kind: str, name: str, uid: str, spec: dict[str, Any], owner: tuple[str, str, str] | None) -> object:
        metadata: dict[str, object] = {"name": name, "namespace": "shop", "uid": uid}
        if owner:
            reference = dict(zip(("kind", "name", "uid"), owner, strict=True))
            metadata["ownerReferences"] = [
                {"kind": "Other", "name": "x", "uid": "9"},
                {**reference, "controller": True},
            ]
        return {"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": spec}

    items = [
        made("Pod", "web-5d9-x1", "3", injected, ("ReplicaSet", "web-5d9", "2")),
        made("ReplicaSet", "web-5d9", "2", {"template": {"spec": spec}}, ("Deployment", "web", "1")),
        made("Deployment", "web", "1", {"template": {"spec": spec}}, None),
        made(
            "Pod", "step-1", "4", {"containers": [{"name": "s", "image": "a.example/s:1"}]}, ("Workflow", "step", "8")
        ),
        made("Pod", "old", "5", {"containers": [{"name": "s", "image": "a.example/o:1"}]}, ("Deployment", "web", "7")),
    ]
    found = images_in([("cluster", json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))])
    assert {str(image.reference): [str(use) for use in image.uses] for image in found.images} == {
        "a.example/b:1": ["Deployment shop/web, c"],
        "a.example/mesh:1": ["Deployment shop/web, proxy"],
        "a.example/o:1": ["Deployment shop/web, s"],
        "a.example/s:1": ["Workflow shop/step, s"],
    }


def test_owners_that_go_round_do_not_hang() -> None:
    text = "".join(
        f"---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {one}, ownerReferences: [{{kind: Pod, name: {other}}}]}}\n"
        f"spec: {{containers: [{{name: c, image: 'a.example/{one}:1'}}]}}\n"
        for one, other in (("a", "b"), ("b", "a"))
    )
    assert len(images_in([("x", text)]).images) == 2


def test_pull_policies_that_ask_the_registry_are_warned_of() -> None:
    texts = [
        _workload("Deployment", "a.example/always:1", "Always"),
        _workload("Deployment", "a.example/latest"),
        _workload("Deployment", "a.example/calm:latest", "IfNotPresent"),
        _workload("Deployment", f"a.example/digest:latest@sha256:{'0' * 64}"),
        _workload("Deployment", "a.example/fine:1"),
        *(_workload("Job", "a.example/many:1", "Always", f"j{number:02}") for number in range(12)),
    ]
    warnings = images_in([("x", text) for text in texts]).warnings
    assert [warning.split(": a start still")[0] for warning in warnings] == [
        "a.example/always:1: imagePullPolicy is Always in Deployment web, c",
        "a.example/calm:latest: `latest` moves: what is baked today may not be what runs tomorrow",
        "a.example/latest:latest: `latest` moves: what is baked today may not be what runs tomorrow",
        "a.example/latest:latest: imagePullPolicy is Always in Deployment web, c",
        "a.example/many:1: imagePullPolicy is Always in "
        + "; ".join(f"Job j{number:02}, c" for number in range(10))
        + "; and 2 more",
    ]


def test_containers_without_an_image_and_kustomizations_are_warned_of() -> None:
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n    - name: c\n"
    kustomization = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nimages: [{name: a, newTag: b}]\n"
    empty, replaced = images_in([("pod.yaml", pod), ("kustomization.yaml", kustomization)]).warnings
    assert empty.startswith("pod.yaml, line 6: spec.containers[0].image: Pod p, c has no image")
    assert replaced.startswith("kustomization.yaml replaces images")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('image: "{{ .Values.image }}"', 6),
        ("image: {{ .Values.image }}", 6),
        ('image: "{{ .repo }}:{{ .tag }}"', 6),
        ("image: ok/ok:1\n      {{- if .x }}\n      resources: {}\n      {{- end }}", 7),
        ("image: ok/ok:1\n      {{ include }}", 7),
    ],
)
def test_templates_are_sent_to_be_rendered(text: str, line: int) -> None:
    pod = f"apiVersion: v1\nkind: Pod\nspec:\n  containers:\n    - name: c\n      {text}\n"
    with pytest.raises(InputError) as caught:
        images_in([("chart/pod.yaml", pod)])
    assert f"chart/pod.yaml, line {line}" in caught.value.message
    assert "helm template" in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_template_that_begins_with_a_brace() -> None:
    with pytest.raises(InputError, match=r"line 1: a template"):
        images_in([("x.yaml", "{{- if .Values.on }}\nkind: Pod\n{{- end }}\n")])


def test_everything_that_is_wrong_is_told_at_once() -> None:
    texts = [
        ("a.yaml", "kind: Pod\nspec: [\n"),
        ("b.yaml", _workload("Job", "Upper/Case:1")),
        ("c.yaml", _workload("Job", "'registry/$TAG'")),
        ("d.json", '{"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"image": "a:b:c"}]}}'),
        ("e.json", '{"kind": \n"Pod",,}'),
    ]
    with pytest.raises(InputError) as caught:
        images_in(texts)
    first, *told = caught.value.message.splitlines()
    assert first == "the manifests have 5 problem(s)"
    assert [line.split(":")[0] for line in told] == [
        "  a.yaml, line 2",
        "  b.yaml, line 4",
        "  c.yaml, line 4",
        "  d.json",
        "  e.json, line 2",
    ]


def test_what_is_no_manifest_is_passed_over() -> None:
    texts = ["", "# only words", "- a\n- list", "text", "5", '{"kind": "Pod"}', "kind: [a]\napiVersion: v1", "{}", "[]"]
    found = images_in([("x", text) for text in texts])
    assert (found.images, found.warnings) == ((), ())


def test_a_folder_is_read_with_what_lies_below(tmp_path: Path) -> None:
    for name in ("b.yaml", "a/z.yml", "a/k.json", "readme.md", ".git/c.yaml", "a/values.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(_workload("Job", "a/b:1"))
    assert [name for name, _ in read_folder(tmp_path)] == [
        str(tmp_path / name) for name in ("b.yaml", "a/k.json", "a/z.yml")
    ]
    assert [name for name, _ in read_folder(tmp_path / "b.yaml")] == [str(tmp_path / "b.yaml")]


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder or file"):
        read_folder(tmp_path / "gone")
    with pytest.raises(InputError, match=r"there is no .yaml"):
        read_folder(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(InputError, match="not UTF-8 at byte 3"):
        read_folder(tmp_path)
    with (tmp_path / "latin.yaml").open("wb") as handle:
        handle.truncate(1 << 40)
    with pytest.raises(InputError, match="larger than 64 MiB"):
        read_folder(tmp_path)


def _kubectl(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "kubectl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_cluster_is_asked_through_kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "web", "namespace": "prod"},
                "spec": {"template": {"spec": {"containers": [{"name": "c", "image": "ghcr.io/a/b:1"}]}}},
            }
        ],
    }
    (tmp_path / "answer").write_text(json.dumps(answer))
    _kubectl(tmp_path, f'echo "$KUBECONFIG $AWS_PROFILE $*" > {tmp_path}/asked; cat {tmp_path}/answer', monkeypatch)
    monkeypatch.setenv("KUBECONFIG", "/etc/a-kubeconfig")
    monkeypatch.setenv("AWS_PROFILE", "staging")
    (image,) = images_in(from_cluster("prod-eu")).images
    assert (str(image.reference), str(image.uses[0])) == ("ghcr.io/a/b:1", "Deployment prod/web, c")
    assert (tmp_path / "asked").read_text() == (
        "/etc/a-kubeconfig staging get pods,deployments,statefulsets,daemonsets,replicasets,replicationcontrollers,"
        "jobs,cronjobs -A -o json "
        "--context prod-eu\n"
    )
    from_cluster()
    assert "--context" not in (tmp_path / "asked").read_text()


def test_what_kubectl_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _kubectl(tmp_path, "echo 'error: You must be logged in to the server' >&2; exit 1", monkeypatch)
    with pytest.raises(CommandFailed, match="You must be logged in"):
        from_cluster()


def test_without_kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _kubectl(tmp_path, "exit 1", monkeypatch)
    (tmp_path / "kubectl").unlink()
    if Path("/usr/bin/kubectl").exists() or Path("/usr/local/bin/kubectl").exists():
        pytest.skip("this machine has kubectl")
    with pytest.raises(EnvironmentProblem) as caught:
        from_cluster()
    assert "kubernetes-client" in caught.value.hint
