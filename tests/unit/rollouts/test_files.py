"""Rollouts into files: node classes in repositories, values, JSON, tfvars, kOps, Cluster API. By the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parbake.coldstart.trace import Part, Read, Trace
from parbake.core import run
from parbake.core.errors import InputError
from parbake.core.yamltext import parse as parse_yaml
from parbake.machine.disk import filesystem_uuid
from parbake.rollouts import mount
from parbake.rollouts.files import parse, render
from parbake.rollouts.protocol import History
from parbake.rollouts.userdata import KEEP_STORE, part_of
from parbake.workflows.trace import write_trace
from standins.clusters import goes_out_again, machine_image, parbake, project, refused, volume
from standins.hydrated import brought
from standins.plans import record

pytestmark = pytest.mark.usefixtures("made_up_records")

FIRST, SECOND, DATA = machine_image("first", "ami-1"), machine_image("second", "ami-2"), volume("data", "snap-9")
THIRD = machine_image("third", "ami-3")

NODE_CLASS = """\
# the GPU nodes
apiVersion: karpenter.k8s.aws/v1
kind: EC2NodeClass
metadata:
  name: "gpu"   # quoted on purpose
spec:
  amiFamily: AL2023
  # found by hand
  amiSelectorTerms:
    - id: ami-0   # the old one
  role: nodes
---
kind: Other
"""
KUSTOMIZATION = """\
resources: [../base]
patches:
  # this cluster's image
  - target: {kind: EC2NodeClass, name: gpu}
    patch: |-
      apiVersion: karpenter.k8s.aws/v1
      kind: EC2NodeClass
      metadata:
        name: gpu
      spec:
        amiFamily: AL2023
        amiSelectorTerms:
          - id: ami-0   # the old one
"""
JSON_PATCH = """\
resources: [../base]
patches:
  - target: {kind: EC2NodeClass, name: gpu}
    patch: |-
      - op: replace
        path: /spec/amiSelectorTerms
        value: [{id: ami-0}]
      - op: add
        path: /spec/amiFamily
        value: AL2023
"""
INSTANCE_GROUP = """\
apiVersion: kops.k8s.io/v1alpha2
kind: InstanceGroup
metadata:
  name: gpu
spec:
  image: ami-0  # pinned
  role: Node
"""
MACHINES = """\
kind: AWSMachineTemplate
metadata: {name: gpu}
spec: {template: {spec: {ami: {id: ami-0}, instanceType: g5.xlarge}}}
---
kind: MachineDeployment
metadata: {name: gpu}
spec:
  template:
    spec:
      infrastructureRef: {kind: AWSMachineTemplate, name: gpu}
---
kind: MachineDeployment
metadata: {name: other}
spec: {template: {spec: {infrastructureRef: {kind: AWSMachineTemplate, name: other}}}}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def there_and_back(
    here: Path, capsys: pytest.CaptureFixture[str], target: dict[str, Any], file: str, before: str
) -> str:
    """Roll out twice and back twice; return what the file said after the rollout."""
    (here / file).write_text(before)
    project(here, [target], FIRST, SECOND)
    code, shown = parbake(capsys, "rollout", FIRST.key, "--dry-run")
    assert (code, (here / file).read_text()) == (0, before)
    code, done = parbake(capsys, "rollout", FIRST.key)
    after = (here / file).read_text()
    assert (code, done["changed"]) == (0, True)
    assert shown["targets"][0]["diff"] == done["targets"][0]["diff"] != ""
    code, done = parbake(capsys, "rollout", FIRST.key)
    assert (code, done["changed"], (here / file).read_text()) == (0, False, after)
    report = parbake(capsys, "status")[1][0]
    assert (report["holds"]["artefacts"], report["previous"]["images"]) == ([FIRST.artefact], ["ami-0"])
    code, done = parbake(capsys, "rollback")
    returned = (here / file).read_text()
    assert (code, done["changed"]) == (0, True)
    assert "ami-0" in returned
    code, done = parbake(capsys, "rollback")
    assert (code, done["changed"], (here / file).read_text()) == (0, False, returned)
    assert parbake(capsys, "status")[1][0]["left"]["artefacts"] == [FIRST.artefact]
    assert not goes_out_again(here, FIRST)
    assert goes_out_again(here, SECOND)
    assert parbake(capsys, "rollout", FIRST.key)[0] == 0
    assert parbake(capsys, "rollout", SECOND.key, "--superseding", "ami-1")[0] == 0
    assert parbake(capsys, "status")[1][0]["previous"]["images"] == ["ami-0"], "what never proved itself is no way back"
    assert parbake(capsys, "rollback")[0] == 0
    assert "ami-0" in (here / file).read_text()
    return after


def test_a_node_class_in_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = there_and_back(here, capsys, {"gitops": {"file": "gpu.yaml"}}, "gpu.yaml", NODE_CLASS)
    assert after.startswith("# the GPU nodes\n")
    assert 'name: "gpu"   # quoted on purpose' in after
    assert "- id: ami-1" in after
    assert after.endswith("---\nkind: Other\n")


@pytest.mark.parametrize("patch", [KUSTOMIZATION, JSON_PATCH], ids=["merge", "json"])
def test_a_patch_in_a_kustomization(here: Path, capsys: pytest.CaptureFixture[str], patch: str) -> None:
    after = there_and_back(here, capsys, {"gitops": {"file": "kustomization.yaml"}}, "kustomization.yaml", patch)
    assert after.startswith(patch.partition("    patch")[0]), "what is around it stays"
    assert "{id: ami-1}" in after or "id: ami-1   # the old one" in after


def test_what_loads_the_hot_blocks_in_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = "  userData: |\n    #!/bin/sh\n    echo theirs   # kept\n"
    text = NODE_CLASS.replace("spec:\n", f"spec:\n{script}", 1)
    assert script in text
    (here / "gpu.yaml").write_text(text)
    data = volume("data", "snap-9")
    project(here, [{"gitops": {"file": "gpu.yaml", "remedy": "hydrate"}}], data)
    trace = Trace(size=1 << 30, parts=(Part(name="a", reads=(Read(0, 8, 8),)),))
    write_trace(here / "artefacts" / data.artefact, data, trace)
    code, done = parbake(capsys, "rollout", data.key)
    after = (here / "gpu.yaml").read_text()
    assert (code, done["changed"]) == (0, True)
    assert "text/cloud-boothook" in after
    assert "    echo theirs   # kept\n" in after
    assert parbake(capsys, "rollout", data.key)[1]["changed"] is False
    assert parbake(capsys, "rollback")[0] == 0
    returned = (here / "gpu.yaml").read_text()
    assert script in returned
    assert "text/cloud-boothook" not in returned.partition("spec:")[2]


@pytest.mark.parametrize("mounts", [False, True])
def test_a_volume_in_a_file_is_launched_raised_and_who_takes_it_back_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], mounts: bool
) -> None:
    """The node does, where its user data has room for it beside what mounts the volume."""
    (here / "gpu.yaml").write_text(NODE_CLASS)
    data = volume("data", "snap-9")
    project(here, [{"gitops": {"file": "gpu.yaml", "remedy": "boost", "mount": mounts}}], data)
    trace = Trace(size=1 << 30, parts=(Part(name="a", reads=(Read(0, 8, 8),)),))
    write_trace(here / "artefacts" / data.artefact, data, trace)
    code, done = parbake(capsys, "rollout", data.key)
    after = (here / "gpu.yaml").read_text()
    assert (code, done["changed"]) == (0, True)
    found: Any = parse_yaml(after).documents[0].data
    spec = found["spec"]
    [ebs] = [each["ebs"] for each in spec["blockDeviceMappings"] if "snapshotID" in each["ebs"]]
    assert spec["tags"] == {"parbake:boost": f"/dev/xvdb {ebs['iops']}/{ebs['throughput']}"}
    assert ("boost.py" in brought(spec["userData"])) is not mounts
    assert ("has no room for what lets nodes take their raised volumes back" in json.dumps(done)) is mounts
    assert parbake(capsys, "rollout", data.key)[1]["changed"] is False
    assert parbake(capsys, "rollback")[0] == 0
    assert "parbake:boost" not in (here / "gpu.yaml").read_text().partition("spec:")[2]


def test_the_remedy_is_chosen_anew_with_the_bill_before_and_after(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "gpu.yaml").write_text(NODE_CLASS)
    data = volume("data", "snap-9")

    def trace(blocks: int) -> Trace:
        reads = tuple(Read(at, at * 977 % 57_000 * 1024, 256) for at in range(blocks))
        return Trace(size=30 << 30, parts=(Part(name="a", reads=reads),))

    starts = {"launches": 300, "lifetime": "2h"}
    shown, done = dict[str, Any](), dict[str, Any]()
    for remedy in ("rate", "auto"):
        target = {"name": "gpu", "gitops": {"file": "gpu.yaml", "remedy": remedy}}
        target["gitops"] |= {"starts": starts} if remedy == "auto" else {}  # type: ignore[operator]
        project(here, [target], data)
        write_trace(here / "artefacts" / data.artefact, data, trace(100))
        code, shown = parbake(capsys, "rollout", data.key, "--dry-run")
        code, done = parbake(capsys, "rollout", data.key)
        assert (code, done["changed"]) == (0, True)
        rate = "volumeInitializationRate: 300" in (here / "gpu.yaml").read_text().partition("spec:")[2]
        assert rate is (remedy == "rate")
    said = done["targets"][0]["remedy"]
    assert shown["targets"][0]["remedy"] == said
    assert (said["before"], said["remedy"]) == ("rate", "hydrate")
    assert said["bills"]["hydrate"] < said["bills"]["rate"]
    assert "chosen from the model alone" in said["because"]
    assert "text/cloud-boothook" in (here / "gpu.yaml").read_text()
    measured = here / "odd.json"
    measured.write_text("[]")
    project(here, [{"gitops": {"file": "gpu.yaml", "remedy": "auto", "starts": {"measured": ["odd.json"]}}}], data)
    write_trace(here / "artefacts" / data.artefact, data, trace(100))
    refused(parbake(capsys, "rollout", data.key), 2, "odd.json")
    measured.unlink()
    project(here, [{"gitops": {"file": "gpu.yaml", "remedy": "auto"}}], data)
    write_trace(here / "artefacts" / data.artefact, data, trace(20_000))
    _, shown = parbake(capsys, "rollout", data.key, "--dry-run")
    assert shown["targets"][0]["remedy"]["remedy"] != "hydrate", "its list has no room in the user data"


def test_a_commit_on_a_branch(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def git(*arguments: str) -> str:
        env = {
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@b",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@b",
        }
        return run.run(["git", *arguments], cwd=here, env=env).text

    (here / "gpu.yaml").write_text(NODE_CLASS)
    git("init", "-q", "-b", "main")
    git("add", "gpu.yaml")
    git("commit", "-qm", "begin")
    project(here, [{"gitops": {"file": "gpu.yaml", "branch": "rollouts"}}], FIRST)
    assert parbake(capsys, "rollout", FIRST.key)[0] == 0
    assert (here / "gpu.yaml").read_text() == NODE_CLASS, "the work tree is not touched"
    assert "ami-1" in git("show", "rollouts:gpu.yaml")
    assert git("log", "--format=%s", "rollouts").splitlines() == [f"Roll out {FIRST.artefact}", "begin"]
    code, done = parbake(capsys, "rollout", FIRST.key)
    assert (code, done["changed"]) == (0, False)
    assert parbake(capsys, "rollback")[0] == 0
    assert git("log", "--format=%s", "rollouts").splitlines()[0] == "Roll back"


@pytest.mark.parametrize("branch", ["", "parbake"])
def test_node_pools_beside_a_node_class_say_what_it_launches(
    here: Path, capsys: pytest.CaptureFixture[str], branch: str
) -> None:
    """As those of a cluster do: one image for an alias is refused where they name several of its variants."""
    alias = NODE_CLASS.replace("- id: ami-0   # the old one", "- alias: al2023@latest")
    (here / "class.yaml").write_text(alias)
    pools = [
        f"""\
apiVersion: karpenter.sh/v1
kind: NodePool
metadata: {{name: {family}}}
spec:
  template:
    spec:
      nodeClassRef: {{group: karpenter.k8s.aws, kind: EC2NodeClass, name: {name}}}
      requirements: [{{key: karpenter.k8s.aws/instance-family, operator: In, values: [{family}]}}]
"""
        for family, name in (("m5", "gpu"), ("g5", "gpu"), ("m6g", "another"))
    ]
    target = {
        "name": "gpu",
        "gitops": {"file": "class.yaml", "nodeclass": "gpu", **({"branch": branch} if branch else {})},
    }
    project(here, [target], FIRST)
    (here / "bad.yaml").write_bytes(b"\xff")
    (here / "pools.yaml").write_text(pools[2])
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in ([*git, "init", "-q"], [*git, "add", "*.yaml"], [*git, "commit", "-qm", "x"]):
        run.run(command, cwd=here)
    code, done = parbake(capsys, "rollout", FIRST.key, "--dry-run")
    assert code == 0, done
    assert "no NodePool of the node class is known here" in done["targets"][0]["cautions"][-1]
    (here / "pools.yaml").write_text("---\n".join(pools))
    run.run([*git, "commit", "-qam", "x"], cwd=here)
    code, error = parbake(capsys, "rollout", FIRST.key)
    assert code == 1, error
    assert "several variants of its image (nvidia: NodePool g5; standard: NodePool m5)" in error["message"]
    assert (here / "class.yaml").read_text() == alias


def test_values_of_a_chart(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "values.yaml").write_text("nodeClass:\n  amiIds: [ami-0]   # one\n")
    target = {"gitops": {"file": "values.yaml", "image_at": "nodeClass.amiIds[0]", "snapshot_at": "data.snapshot"}}
    project(here, [target], FIRST, DATA)
    assert parbake(capsys, "rollout", FIRST.key, DATA.key)[0] == 0
    after = (here / "values.yaml").read_text()
    assert "  amiIds: [ami-1]   # one\n" in after
    assert "snapshot: snap-9" in after
    code, error = parbake(capsys, "rollback")
    assert (code, error["hint"]) == (2, "git revert the commit")


def user_data(path: Path) -> str:
    (document,) = parse_yaml(path.read_text()).documents
    values: Any = document.data
    return str(values["nodeClass"]["userData"])


@pytest.mark.parametrize("theirs", ["", "#!/bin/sh\necho theirs\n"])
def test_values_of_a_chart_get_what_mounts_the_volume(
    here: Path, capsys: pytest.CaptureFixture[str], theirs: str
) -> None:
    before = "nodeClass:\n  snapshot: snap-0\n" + (f"  userData: {json.dumps(theirs)}\n" if theirs else "")
    (here / "values.yaml").write_text(before)
    target: dict[str, Any] = {"file": "values.yaml", "snapshot_at": "nodeClass.snapshot"}
    project(here, [{"gitops": target}], DATA)
    shown = parbake(capsys, "rollout", DATA.key, "--dry-run")[1]["targets"][0]
    assert "the parts for mount: name `user_data_at`" in shown["cautions"][0]
    assert parbake(capsys, "rollout", DATA.key, "--dry-run", "--no-mount")[1]["targets"][0]["cautions"] == []
    project(here, [{"gitops": {**target, "user_data_at": "nodeClass.userData", "keep_store": True}}], DATA)
    assert parbake(capsys, "rollout", DATA.key)[0] == 0
    text = user_data(here / "values.yaml")
    assert part_of(text, "mount") == mount.user_data("", uuid=filesystem_uuid(DATA.key))
    assert part_of(text, "store") == KEEP_STORE
    assert theirs in text
    assert parbake(capsys, "rollout", DATA.key)[1]["changed"] is False
    project(here, [{"gitops": {**target, "user_data_at": "nodeClass.userData"}}], DATA)
    assert parbake(capsys, "rollout", DATA.key, "--no-mount")[0] == 0
    assert user_data(here / "values.yaml") == theirs, "it goes without a trace"


@pytest.mark.parametrize(("kind", "text"), [("kops", INSTANCE_GROUP), ("capi", MACHINES)])
def test_further_disks_that_name_no_snapshot(
    here: Path, capsys: pytest.CaptureFixture[str], kind: str, text: str
) -> None:
    (here / "m.yaml").write_text(text)
    project(here, [{"file": {"path": "m.yaml", "as": kind}}], DATA)
    code, error = parbake(capsys, "rollout", DATA.key)
    refused((code, error), 2, "name no snapshot")
    assert (here / "m.yaml").read_text() == text


@pytest.mark.parametrize("suffix", ["json", "tfvars"])
def test_what_mounts_the_volume_for_other_tools(here: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    path = here / f"data.{suffix}"
    root = "/var/lib/rancher/k3s/agent/containerd"
    project(here, [{"file": {"path": path.name, "root": root}}], DATA)
    assert parbake(capsys, "rollout", DATA.key)[0] == 0
    assert parse(suffix, path.read_text())[0]["user_data"] == mount.user_data("", root, uuid=filesystem_uuid(DATA.key))
    assert parbake(capsys, "rollout", DATA.key)[1]["changed"] is False
    project(here, [{"file": {"path": path.name, "mount": False}}], DATA)
    assert parbake(capsys, "rollout", DATA.key)[0] == 0
    assert parse(suffix, path.read_text())[0]["user_data"] == ""


def test_an_instance_group_of_kops(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = there_and_back(here, capsys, {"file": {"path": "ig.yaml", "as": "kops"}}, "ig.yaml", INSTANCE_GROUP)
    assert "  image: ami-1  # pinned\n" in after


def test_a_machine_template_of_cluster_api(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = there_and_back(here, capsys, {"file": {"path": "m.yaml", "as": "capi"}}, "m.yaml", MACHINES)
    assert "name: gpu-parbake-1" in after.partition("---")[0], "a new template"
    assert "infrastructureRef: {kind: AWSMachineTemplate, name: gpu-parbake-1}" in after
    assert "name: other}}}}" in after, "what refers to others stays"
    returned = (here / "m.yaml").read_text()
    assert "infrastructureRef: {kind: AWSMachineTemplate, name: gpu}" in returned


@pytest.mark.parametrize("suffix", ["json", "tfvars"])
def test_files_for_other_tools(here: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    path = here / f"out/image.{suffix}"
    project(here, [{"file": f"out/image.{suffix}"}], FIRST, SECOND, THIRD)
    assert parbake(capsys, "rollout", FIRST.key)[0] == 0
    assert parbake(capsys, "rollback")[0] == 2, "there was nothing before"
    assert parbake(capsys, "rollout", SECOND.key)[0] == 0
    said, history = parse(suffix, path.read_text())
    assert history.previous is not None
    assert (said["image"], said["volume_size"], history.previous["image"]) == ("ami-2", 8, "ami-1")
    assert parbake(capsys, "rollback")[0] == 0
    assert parse(suffix, path.read_text())[0]["image"] == "ami-1"
    code, done = parbake(capsys, "rollback")
    assert (code, done["changed"]) == (0, False)
    assert parbake(capsys, "rollout", SECOND.key)[0] == 0
    assert parbake(capsys, "rollout", THIRD.key, "--superseding", SECOND.key[:32])[0] == 0
    assert parbake(capsys, "rollback")[0] == 0
    assert parse(suffix, path.read_text())[0]["image"] == "ami-1", "what never proved itself is no way back"
    assert parbake(capsys, "rollout", SECOND.key)[0] == 0
    assert parbake(capsys, "rollout", THIRD.key, "--superseding", "ami-7")[0] == 0
    assert parbake(capsys, "rollback")[0] == 0
    assert parse(suffix, path.read_text())[0]["image"] == "ami-2", "it held something else"
    assert [each.name for each in (here / "out").iterdir()] == [path.name]
    path.write_text("somebody's own")
    code, error = parbake(capsys, "rollout", FIRST.key)
    assert code == 2
    assert "not a file of parbake" in error["message"]


def test_what_is_rendered_is_read_back() -> None:
    said = dict.fromkeys(("image", "snapshot", "region", "architecture", "artefact", "key"), 'a "quoted" one')
    for kind in ("json", "tfvars"):
        document = {**said, "volume_size": 3, "user_data": "echo ${A} $${B} %{C} $D\n"}
        assert parse(kind, render(kind, document, History(document))) == (document, History(document))
    with pytest.raises(InputError):
        parse("tfvars", "x = 1")
    assert json.loads(render("json", {"image": "x"}, History())) == {"image": "x"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "line 1: a value is missing"),
        ("kind: Other\n", "no manifest describes a node class"),
        (NODE_CLASS + "---\n" + NODE_CLASS.replace('"gpu"', "cpu"), "2 manifests describe a node class"),
    ],
)
def test_bad_manifests(here: Path, capsys: pytest.CaptureFixture[str], text: str, says: str) -> None:
    (here / "gpu.yaml").write_text(text)
    project(here, [{"gitops": {"file": "gpu.yaml"}}], FIRST)
    code, error = parbake(capsys, "rollout", FIRST.key)
    assert code == 2
    assert says in error["message"]


def test_records_that_do_not_go_together(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = record("nowhere", name="nowhere", passed=True)
    project(here, [{"file": "a.json"}, {"name": "us", "region": "us-east-1", "file": "b.json"}], FIRST, SECOND, nowhere)
    (here / "artefacts" / nowhere.artefact).touch()
    refused(parbake(capsys, "rollout", FIRST.key, SECOND.key), 2, "two records of the kind")
    refused(parbake(capsys, "rollout", FIRST.key, "--to", "us"), 2, "not published in us-east-1, but in eu-central-1")
    refused(parbake(capsys, "rollout", "nowhere", "--to", "us"), 2, "published in no region of a cloud")
    assert not (here / "a.json").exists()


def test_what_lies_in_no_cloud_is_handed_out_by_name_and_key(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (record(word, name=word, passed=True) for word in ("one", "two"))
    project(here, [{"file": "a.json"}, {"name": "image", "file": {"path": "ig.yaml", "as": "kops"}}], one, two)
    for each in (one, two):
        (here / "artefacts" / each.artefact).touch()
    assert parbake(capsys, "rollout", one.key, "--to", "file")[0] == 0
    code, done = parbake(capsys, "rollout", two.key, "--to", "file")
    assert code == 0
    [handed] = done["targets"]
    assert (handed["before"]["artefacts"], handed["after"]["artefacts"]) == ([one.artefact], [two.artefact])
    said = json.loads((here / "a.json").read_text())
    assert (said["artefact"], said["key"], said["image"], said["snapshot"]) == (two.artefact, two.key, "", "")
    refused(parbake(capsys, "rollout", one.key, "--to", "image"), 2, "published in no region")
    code, done = parbake(capsys, "rollback", "--to", "file", "--holding", one.key[:12])
    assert (code, done["targets"], done["changed"]) == (0, [], False), "it holds the other one"
    for _ in range(2):  # a killed rollback is finished by the same command
        code, done = parbake(capsys, "rollback", "--to", "file", "--holding", two.artefact)
        assert code == 0
        assert len(done["targets"]) == 1
    assert json.loads((here / "a.json").read_text())["artefact"] == one.artefact
    project(here, [{"file": "a.json"}], one, two)
    assert not goes_out_again(here, two)
    assert goes_out_again(here, one)
