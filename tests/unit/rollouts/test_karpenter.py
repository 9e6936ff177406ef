"""Rollouts to Karpenter, from the command line to nodes: kubectl, the API server and Karpenter's double."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parbake.coldstart.hydrate import user_data
from parbake.coldstart.trace import Part, Read, Trace, hydrate_list
from parbake.core.run import Deadline
from parbake.machine.disk import filesystem_uuid
from parbake.rollouts import mount
from parbake.rollouts.userdata import part_of
from parbake.workflows import rollout
from parbake.workflows.trace import write_trace
from standins.clusters import NEEDS_KUBECTL, goes_out_again, machine_image, parbake, project, refused, volume
from standins.kubernetes.karpenter import Ami, Karpenter
from standins.kubernetes.kubectl_in_process import replace_kubectl
from standins.kubernetes.server import Server, serving
from tests.unit.rollouts.test_node_classes import ALIAS, BOTH, COMMON, NEW, OLD
from tests.unit.rollouts.test_userdata_of_others import terraform

pytestmark = [NEEDS_KUBECTL, pytest.mark.usefixtures("made_up_records")]

FIRST, SECOND = machine_image("first", "ami-1"), machine_image("second", "ami-2")
DATA = volume("data", "snap-9")
GPU = {"name": "gpu", "karpenter": {"nodeclass": "gpu"}}
QUICK = ("--interval", "0.05")
AMIS = [Ami("ami-0", "al2023-node"), Ami("ami-1", "first", "2026-02-01"), Ami("ami-2", "second", "2026-03-01")]
AMD64 = {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(tmp_path, NEW, "karpenter.sh_nodepools.v1", "karpenter.sh_nodeclaims.v1") as server:
        use(server, monkeypatch)
        yield server


def use(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
    monkeypatch.setenv("HOME", str(server.kubeconfig.parent))
    monkeypatch.chdir(server.kubeconfig.parent)


@pytest.fixture
def without_kubectl(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is about parbake's rules and Karpenter: other tests here are about what kubectl takes and says."""
    replace_kubectl(monkeypatch)


@pytest.fixture
def in_turns(cluster: Karpenter, monkeypatch: pytest.MonkeyPatch, without_kubectl: None) -> None:
    """While a rollout waits, Karpenter does a round, and a tenth of a second is over, however long it took."""
    del without_kubectl

    class Turns(Deadline):
        passed = 0.0

        @property
        def left(self) -> float:
            return max(0.0, self.seconds - self.passed)

        def sleep(self, seconds: float) -> None:
            del seconds
            cluster.step()
            self.passed += 0.1

    monkeypatch.setattr(rollout, "Deadline", Turns)


@pytest.fixture
def cluster(server: Server) -> Karpenter:
    """A cluster with two nodes of one node class."""
    server.create("ec2nodeclasses", "gpu", spec=ALIAS["spec"])
    server.create("nodepools", "gpu", spec=pool("gpu"))
    karpenter = Karpenter(server, AMIS)
    karpenter.start_nodes("gpu", "gpu", 2)
    return karpenter


def pool(node_class: str, *requirements: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of a NodePool."""
    reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": node_class}
    return {"template": {"spec": {"nodeClassRef": reference, "requirements": list(requirements or (AMD64,))}}}


def images(server: Server) -> list[str]:
    return [claim["status"].get("imageID", "") for claim in server.list("nodeclaims")]


def terms(server: Server) -> Any:
    return server.get("ec2nodeclasses", "gpu")["spec"]["amiSelectorTerms"]


def test_from_a_record_to_nodes_and_back(
    cluster: Karpenter,
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The way there with kubectl, each look starts it anew; from there on without it."""
    project(tmp_path, [GPU], FIRST, SECOND)
    assert images(server) == ["ami-0", "ami-0"]
    code, shown = parbake(capsys, "rollout", FIRST.key, "--dry-run")
    assert (code, terms(server)) == (0, [{"alias": "al2023@latest"}]), "a dry run writes nothing"
    assert '+      "id": "ami-1"' in shown["targets"][0]["diff"]
    with cluster:
        code, done = parbake(capsys, "rollout", FIRST.key, *QUICK)
        assert (code, done["changed"], images(server)) == (0, True, ["ami-1", "ami-1"])
        generation = server.get("ec2nodeclasses", "gpu")["metadata"]["generation"]
        code, done = parbake(capsys, "rollout", FIRST.key, *QUICK)
        assert (code, done["changed"]) == (0, False), "the same again is nothing"
        assert server.get("ec2nodeclasses", "gpu")["metadata"]["generation"] == generation
        replace_kubectl(monkeypatch)
        code, _ = parbake(capsys, "rollout", SECOND.key, *QUICK)
        assert (code, images(server)) == (0, ["ami-2", "ami-2"])
        code, status = parbake(capsys, "status")
        assert (status[0]["holds"]["artefacts"], status[0]["previous"]["artefacts"]) == (
            [SECOND.artefact],
            [FIRST.artefact],
        )
        code, done = parbake(capsys, "rollback", *QUICK)
        assert (code, done["changed"], images(server)) == (0, True, ["ami-1", "ami-1"])
        code, done = parbake(capsys, "rollback", *QUICK)
        assert (code, done["changed"], images(server)) == (0, False, ["ami-1", "ami-1"]), "it has gone back already"
        assert [goes_out_again(tmp_path, each) for each in (FIRST, SECOND)] == [True, False]
    assert len(cluster.replaced) == 6


@pytest.mark.usefixtures("without_kubectl")
def test_two_architectures_of_one_node_class(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The usual set-up with Graviton: one node class, a NodePool for both; Karpenter resolves an image for each."""
    both = {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64", "arm64"]}
    server.create("ec2nodeclasses", "gpu", spec=ALIAS["spec"])
    server.create("nodepools", "gpu", spec=pool("gpu", both))
    of_aws = Ami("ami-a", "al2023-arm", architecture="arm64")
    amis = [*AMIS, of_aws, Ami("ami-3", "first-arm", "2026-02-02", architecture="arm64")]
    cluster = Karpenter(server, amis)
    cluster.start_nodes("gpu", "gpu", 1)
    cluster.start_nodes("gpu", "gpu", 1, "c6g.large")
    arm = machine_image("first", "ami-3", architecture="arm64")
    project(tmp_path, [GPU], FIRST, arm, SECOND, DATA)
    assert images(server) == ["ami-0", "ami-a"]
    refused(parbake(capsys, "rollout", FIRST.key, *QUICK), 1, "asks for amd64, arm64; the image is for amd64")
    with cluster:
        assert parbake(capsys, "rollout", arm.key, FIRST.key, *QUICK)[0] == 0
        assert (images(server), terms(server)) == (["ami-1", "ami-3"], [{"id": "ami-1"}, {"id": "ami-3"}])
        assert parbake(capsys, "rollout", FIRST.key, arm.key, *QUICK)[1]["changed"] is False, "whatever their order"
        holds = parbake(capsys, "status")[1][0]["holds"]
        assert (holds["images"], holds["artefacts"]) == (["ami-1", "ami-3"], sorted([FIRST.artefact, arm.artefact]))
        assert parbake(capsys, "rollback", "--holding", "ami-3", *QUICK)[0] == 0
    assert (images(server), terms(server)) == (["ami-0", "ami-a"], [{"alias": "al2023@latest"}])
    assert len(cluster.replaced) == 4
    newer = SECOND.model_copy(update={"finished_at": "2027-01-01T00:00:00Z"})
    project(tmp_path, [GPU], newer, name="node", platforms=["linux/amd64", "linux/arm64"])
    # One was baked anew, and not the other.
    refused(parbake(capsys, "rollout", "node", "--no-follow"), 2, "has other images than")
    (tmp_path / "artefacts" / f"{SECOND.artefact}.json").unlink()
    shown = parbake(capsys, "rollout", "node", "--dry-run")[1]["targets"][0]
    assert shown["after"]["images"] == ["ami-1", "ami-3"], "the name means both"
    (tmp_path / "artefacts" / f"{arm.artefact}.json").unlink()
    code, error = parbake(capsys, "rollout", "node")
    assert (code, error["message"]) == (2, "there is no record of node for linux/arm64")
    project(tmp_path, [GPU], FIRST, arm, SECOND, DATA)
    for selectors, says in (
        ((FIRST.key, SECOND.key), "two records of the kind machine-image for amd64"),
        ((arm.key, DATA.key), "all nodes of a target get the same volume"),
    ):
        refused(parbake(capsys, "rollout", *selectors), 2, says)
    project(tmp_path, [{"name": "gpu", "karpenter": {"nodeclass": "gpu", "remedy": "hydrate"}}])
    refused(
        parbake(capsys, "rollout", FIRST.key, arm.key), 2, "`remedy: hydrate` loads the blocks of one machine image"
    )
    for target in ({"karpenter": {"nodeclass": "gpu", "parameter": "/gpu"}}, {"file": "image.json"}):
        project(tmp_path, [target])
        refused(parbake(capsys, "rollout", FIRST.key, arm.key), 2, "it takes one machine image")


def test_image_and_volume_in_one_write(
    cluster: Karpenter, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path, [GPU], FIRST, DATA)
    with cluster:
        code, _ = parbake(capsys, "rollout", FIRST.key, DATA.key, *QUICK)
    assert code == 0
    found = server.get("ec2nodeclasses", "gpu")
    assert found["metadata"]["generation"] == 2, "one write"
    assert len(cluster.replaced) == 2, "each node once"
    disks = {each["deviceName"]: each["ebs"] for each in found["spec"]["blockDeviceMappings"]}
    assert (disks["/dev/xvdb"]["snapshotID"], disks["/dev/xvdb"]["volumeSize"]) == ("snap-9", "30Gi")
    assert disks["/dev/xvda"]["volumeSize"] == "20Gi", "what the default gave is kept"


@pytest.mark.usefixtures("in_turns")
def test_nodes_come_with_user_data_as_terraform_writes_it(
    cluster: Karpenter, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = terraform(("text/x-shellscript", "#!/bin/sh\necho theirs\n"))
    server.change("ec2nodeclasses", "gpu", {"spec": {"userData": theirs}})
    for _ in range(3):
        cluster.step()
    project(tmp_path, [GPU], DATA)
    assert parbake(capsys, "rollout", DATA.key, "--deadline", "2")[0] == 0
    found = server.get("ec2nodeclasses", "gpu")
    assert found["status"]["conditions"][0]["status"] == "True"
    assert part_of(found["spec"]["userData"], "mount") == mount.user_data("", uuid=filesystem_uuid(DATA.key))
    assert parbake(capsys, "rollback", "--deadline", "2")[0] == 0
    assert server.get("ec2nodeclasses", "gpu")["spec"]["userData"] == theirs


@pytest.mark.usefixtures("without_kubectl")
def test_what_loads_the_hot_blocks_comes_with_the_volume(
    cluster: Karpenter, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.change("ec2nodeclasses", "gpu", {"spec": {"userData": "#!/bin/sh\necho theirs\n"}})
    for _ in range(3):  # a node each time, to run that
        cluster.step()
    cluster.replaced.clear()
    target = {"name": "gpu", "karpenter": {"nodeclass": "gpu", "remedy": "hydrate"}}
    project(tmp_path, [target], DATA)
    code, error = parbake(capsys, "rollout", DATA.key, *QUICK)
    assert (code, error["error"]) == (2, "InputError")
    assert f"`parbake trace {DATA.artefact}`" in error["hint"]
    made = Trace(uuid="0" * 32, filesystem="ext4", size=1 << 30, parts=(Part(name="a", reads=(Read(0, 8, 8),)),))
    write_trace(tmp_path / "artefacts" / DATA.artefact, DATA, made)
    with cluster:
        assert parbake(capsys, "rollout", DATA.key, *QUICK)[0] == 0
        text = server.get("ec2nodeclasses", "gpu")["spec"]["userData"]
        assert part_of(text, "hydrate") == user_data(hydrate_list(made))
        assert part_of(text, "mount") == mount.user_data("", uuid=filesystem_uuid(DATA.key))
        assert "echo theirs" in text
        assert len(cluster.replaced) == 2, "each node once: user data, disks, one write"
        assert parbake(capsys, "rollout", DATA.key, *QUICK)[1]["changed"] is False
        assert parbake(capsys, "rollback", *QUICK)[0] == 0
    assert server.get("ec2nodeclasses", "gpu")["spec"]["userData"] == "#!/bin/sh\necho theirs\n"


@pytest.mark.usefixtures("without_kubectl")
def test_a_volume_alone_drifts_every_node(
    cluster: Karpenter, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path, [GPU], DATA)
    with cluster:
        code, _ = parbake(capsys, "rollout", DATA.key, *QUICK)
    assert (code, len(cluster.replaced), terms(server)) == (0, 2, [{"alias": "al2023@latest"}])


@pytest.mark.usefixtures("without_kubectl")
@pytest.mark.parametrize(
    ("proven", "running", "cautioned"),
    [
        ("containerd 1.7.24~ds1", "containerd://2.2.4", True),
        ("containerd 2.1.9", "containerd://2.2.4", False),
        ("containerd v2.1.9", "containerd://2.2.4", False),
        ("", "containerd://2.2.4", False),
        ("containerd 1.7.24", "", False),
    ],
)
def test_a_volume_that_another_runtime_proved_is_a_caution(
    cluster: Karpenter,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    proven: str,
    running: str,
    cautioned: bool,
) -> None:
    assert DATA.verdict
    project(tmp_path, [GPU], DATA.model_copy(update={"verdict": DATA.verdict.model_copy(update={"runtime": proven})}))
    for name, node_class, version in (("mine", "gpu", running), ("other", "default", "containerd://1.6.0")):
        labels = {"karpenter.k8s.aws/ec2nodeclass": node_class}
        info = {"containerRuntimeVersion": version} if version else {}
        cluster.server.create("nodes", name, metadata={"labels": labels}, status={"nodeInfo": info})
    code, document = parbake(capsys, "rollout", DATA.key, "--dry-run")
    assert code == 0
    told = [each for each in document["targets"][0]["cautions"] if "its nodes run" in each]
    said = f"its nodes run containerd 2.2.4, and the volume was verified with {proven}"
    assert [each.partition(":")[0] for each in told] == ([said] if cautioned else [])


@pytest.mark.usefixtures("in_turns")
def test_freeze_and_thaw(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(tmp_path, [GPU], FIRST)
    budgets = server.get("nodepools", "gpu")["spec"]["disruption"]["budgets"]
    assert parbake(capsys, "freeze")[0] == 2, "which target must be said"
    assert parbake(capsys, "freeze", "--to", "gpu")[1]["changed"] == {"gpu": ["NodePool gpu"]}
    assert parbake(capsys, "freeze", "--to", "gpu")[1]["changed"] == {"gpu": []}
    code, error = parbake(capsys, "rollout", FIRST.key, "--deadline", "1")
    assert (code, images(server)) == (1, ["ami-0", "ami-0"])
    assert "NodePool gpu is frozen" in error["message"]
    assert parbake(capsys, "status")[1][0]["frozen"]
    parbake(capsys, "thaw", "--to", "gpu")
    assert server.get("nodepools", "gpu")["spec"]["disruption"]["budgets"] == budgets
    assert parbake(capsys, "rollout", FIRST.key)[0] == 0
    assert images(server) == ["ami-1", "ami-1"]


@pytest.mark.usefixtures("in_turns")
def test_a_canary_is_a_target_before_the_others(
    cluster: Karpenter, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = {"name": "canary", "deadline": "1s", "karpenter": {"nodeclass": "canary"}}
    server.create("ec2nodeclasses", "canary", spec=ALIAS["spec"])
    server.create("nodepools", "canary", spec=pool("canary"))
    cluster.start_nodes("canary", "canary", 1)
    cluster.blocked["canary-003"] = "default/web"
    project(tmp_path, [canary, GPU], FIRST)
    code, error = parbake(capsys, "rollout", FIRST.key)
    assert (code, error["error"]) == (1, "Stalled")
    assert terms(server) == [{"alias": "al2023@latest"}], "the second is not touched before the first has arrived"


@pytest.mark.usefixtures("without_kubectl")
@pytest.mark.parametrize(("passed", "says"), [(None, "was not verified"), (False, "failed verification")])
def test_only_what_is_verified(
    cluster: Karpenter,
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    passed: bool | None,
    says: str,
) -> None:
    project(tmp_path, [GPU], doubtful := machine_image("doubtful", "ami-1", passed=passed))
    code, error = parbake(capsys, "rollout", doubtful.key)
    assert (code, terms(server)) == (3, [{"alias": "al2023@latest"}])
    assert says in error["message"]
    with cluster:
        assert parbake(capsys, "rollout", doubtful.key, "--force", *QUICK)[0] == 0
    assert images(server) == ["ami-1", "ami-1"]


@pytest.mark.usefixtures("without_kubectl")
def test_what_speaks_against_it(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.create("ec2nodeclasses", "gpu", spec={**ALIAS["spec"], "instanceStorePolicy": "RAID0"})
    project(tmp_path, [GPU], FIRST)
    code, error = parbake(capsys, "rollout", FIRST.key)
    assert code == 1
    assert "RAID0" in error["message"]
    server.change("ec2nodeclasses", "gpu", {"spec": {"instanceStorePolicy": None}})
    arm = {"key": "kubernetes.io/arch", "operator": "In", "values": ["arm64"]}
    server.create("nodepools", "arm", spec=pool("gpu", arm))
    code, error = parbake(capsys, "rollout", FIRST.key)
    assert (code, terms(server)) == (1, [{"alias": "al2023@latest"}])
    assert "NodePool arm asks for arm64; the image is for amd64" in error["message"]


@pytest.mark.parametrize(
    "says",
    [
        "ValidatingAdmissionPolicy 'amis' with binding 'amis' denied request: only images of the platform team",
        'admission webhook "amis.example.com" denied the request: only images of the platform team',
    ],
)
def test_a_policy_is_asked_before_anything_is_written(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    says: str,
    request: pytest.FixtureRequest,
) -> None:
    """Neither to this target nor to those before it; and it is told from a right that is missing."""
    if "webhook" in says:  # kubectl tells both in the same words
        request.getfixturevalue("without_kubectl")
    for name in ("canary", "gpu"):
        server.create("ec2nodeclasses", name, spec=ALIAS["spec"])
    server.store.policies.append(lambda old, new: says if new["metadata"]["name"] == "gpu" and old != new else "")
    project(tmp_path, [{"name": "canary", "karpenter": {"nodeclass": "canary"}}, GPU], FIRST)
    before = server.store.version
    for options in ((), ("--dry-run",)):
        code, error = parbake(capsys, "rollout", FIRST.key, "--no-follow", *options)
        assert (code, error["error"]) == (1, "RolloutError")
        assert "a policy of the cluster refuses the change: " in error["message"]
        assert says in error["message"]
        assert "you have the right to write" in error["hint"]
    assert server.store.version == before, "nothing was written"
    server.store.policies.clear()
    assert parbake(capsys, "rollout", FIRST.key, "--no-follow")[0] == 0
    server.store.policies.append(lambda _old, _new: says)
    assert says in parbake(capsys, "rollback")[1]["message"]
    assert terms(server) == [{"id": "ami-1"}]


def test_a_webhook_that_cannot_be_asked_is_a_caution(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.create("ec2nodeclasses", "gpu", spec=ALIAS["spec"])
    server.store.policies.append(lambda _old, _new: 'admission webhook "x.example.com" does not support dry run')
    project(tmp_path, [GPU], FIRST)
    code, shown = parbake(capsys, "rollout", FIRST.key, "--dry-run")
    assert code == 0, shown
    assert "cannot be asked in advance" in shown["targets"][0]["cautions"][-1]


@pytest.mark.usefixtures("without_kubectl")
def test_a_node_class_that_is_being_deleted(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finalizer = {"finalizers": ["karpenter.k8s.aws/termination"]}
    server.create("ec2nodeclasses", "gpu", metadata=finalizer, spec=ALIAS["spec"])
    project(tmp_path, [GPU], FIRST)
    assert parbake(capsys, "rollout", FIRST.key, "--no-follow")[0] == 0
    server.delete("ec2nodeclasses", "gpu")
    for command in (("rollout", machine_image("second", "ami-2").key), ("rollback",)):
        project(tmp_path, [GPU], FIRST, SECOND)
        code, error = parbake(capsys, *command, "--no-follow")
        assert (code, error["error"]) == (1, "RolloutError")
        assert "the node class is being deleted, since 20" in error["message"]
    assert terms(server) == [{"id": "ami-1"}]
    server.change("ec2nodeclasses", "gpu", {"metadata": {"finalizers": None}})
    assert server.list("ec2nodeclasses") == []


@pytest.mark.parametrize("broken", [False, True])
def test_a_file_that_was_applied_takes_the_change_back(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: bool
) -> None:
    from tests.unit.standins.test_kubernetes import kubectl

    kubectl(server, "apply", "-f", "-", document=ALIAS)
    if broken:
        note = {"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "[]"}}}
        server.change("ec2nodeclasses", "gpu", note)
    project(tmp_path, [GPU], FIRST)
    cautions = parbake(capsys, "rollout", FIRST.key, "--dry-run")[1]["targets"][0]["cautions"]
    expected = "kubectl applied a file with amiSelectorTerms: applying it again reverts the change"
    assert (expected in cautions) is not broken


def test_fields_of_another_manager(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.unit.standins.test_kubernetes import kubectl

    kubectl(server, "apply", "--server-side", "--field-manager=argocd-controller", "-f", "-", document=ALIAS)
    project(tmp_path, [GPU], FIRST)
    code, error = parbake(capsys, "rollout", FIRST.key, "--no-follow")
    assert (code, error["error"], terms(server)) == (1, "TargetMoved", [{"alias": "al2023@latest"}])
    assert "amiSelectorTerms belong to argocd-controller" in error["message"]
    assert "--force-conflicts" in error["hint"]
    code, done = parbake(capsys, "rollout", FIRST.key, "--no-follow", "--force-conflicts")
    assert (code, terms(server)) == (0, [{"id": "ami-1"}])
    assert "may revert it" in done["targets"][0]["cautions"][-1]


@pytest.mark.usefixtures("without_kubectl")
def test_another_machine_knows_as_much(
    cluster: Karpenter, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """It has the Bakefile, and neither records nor artefacts."""
    project(tmp_path, [GPU], FIRST, SECOND)
    with cluster:
        for each in (FIRST, SECOND):
            assert parbake(capsys, "rollout", each.key, *QUICK)[0] == 0
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        project(elsewhere, [GPU])
        monkeypatch.chdir(elsewhere)
        code, (report,) = parbake(capsys, "status")
        assert (code, report["holds"]["artefacts"], report["previous"]["artefacts"]) == (
            0, [SECOND.artefact], [FIRST.artefact],
        )  # fmt: skip
        assert (report["follow"]["ready"], report["follow"]["total"]) == (2, 2)
        assert parbake(capsys, "rollback", *QUICK)[0] == 0
    assert images(server) == ["ami-1", "ami-1"]


def test_the_versions_of_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, [GPU], FIRST)
    with serving(tmp_path, OLD) as server:
        use(server, monkeypatch)
        server.create("awsnodetemplates", "gpu", "v1alpha1", spec={"amiSelector": {"aws-ids": "ami-0"}})
        assert parbake(capsys, "rollout", FIRST.key, *QUICK)[0] == 0
        found = server.get("awsnodetemplates", "gpu", "v1alpha1")
        assert found["spec"]["amiSelector"] == {"aws-ids": "ami-1"}
        assert parbake(capsys, "rollback", *QUICK)[0] == 0
        found = server.get("awsnodetemplates", "gpu", "v1alpha1")
        assert found["spec"]["amiSelector"] == {"aws-ids": "ami-0"}
    folder = tmp_path / "both"
    folder.mkdir()
    with serving(folder, BOTH) as server:
        use(server, monkeypatch)
        project(folder, [GPU], FIRST)
        for version in list(server.store.kinds):
            if version[1] == "v1" and version[0]:
                del server.store.kinds[version]
        server.create("ec2nodeclasses", "gpu", "v1beta1", spec={**COMMON, "amiFamily": "AL2023"})
        assert parbake(capsys, "rollout", FIRST.key, "--no-follow")[0] == 0
        assert server.get("ec2nodeclasses", "gpu", "v1beta1")["spec"]["amiSelectorTerms"] == [{"id": "ami-1"}]
