"""Lint: each cause is found where it stands, and is gone when it is mended as the rule says."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parbake import records
from parbake.bakefile import load
from parbake.cli import run
from parbake.core.errors import InputError
from parbake.core.families import FAMILIES, UNKNOWN, family_of
from parbake.core.model import GIB, Platform, Published, Snapshot
from parbake.core.reference import Reference
from parbake.core.units import quantity
from parbake.core.yamltext import parse
from parbake.rollouts.nodesettings import read
from parbake.workflows.lint import RULES, Bake, bakes_of, examine, gather, of_bakefile, of_record, sarif, together
from parbake.workflows.lint.bakes import BakedImage
from standins.plans import digest, image, plan, record

ROOT = Path(__file__).parents[3]
APP = "registry.example.com/shop/api:1.4"
INDEX, MANIFEST, OTHER = (digest(word) for word in ("index", "manifest", "other"))
BAKED = BakedImage(Reference.parse(APP), INDEX, MANIFEST)
AMD64 = Platform(architecture="amd64")
MACHINE = Bake(
    "shop.ami", AMD64, "machine-image", (BAKED,), FAMILIES["AL2023"], size=30 * GIB, amis=frozenset({"ami-0b"})
)
VOLUME = Bake(
    "shop.snap", AMD64, "volume", (BAKED,), size=40 * GIB, filled=33 * GIB, snapshots=(("snap-0b", 40 * GIB),)
)


def pod(image: str, *, policy: str = "", spec: str = "", latest: str = "") -> str:
    pull = f", imagePullPolicy: {policy}" if policy else ""
    return (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\nspec:\n"
        f"{spec}{latest}  containers:\n    - {{name: c, image: '{image}'{pull}}}\n"
    )


def node_class(spec: str, *, kind: str = "EC2NodeClass", api: str = "karpenter.k8s.aws/v1") -> str:
    lines = "".join(f"  {line}\n" for line in spec.splitlines())
    return f"apiVersion: {api}\nkind: {kind}\nmetadata: {{name: search}}\nspec:\n{lines}"


def told(text: str, *bakes: Bake) -> list[str]:
    return [each.rule.id for each in examine([("x.yaml", text)], bakes or (MACHINE,))]


OURS = "amiFamily: AL2023\namiSelectorTerms: [{id: ami-0b}]\n"
ROOT_DISK = OURS + "blockDeviceMappings: [{deviceName: /dev/xvda, ebs: {volumeSize: 30Gi}}]\n"
RAW_DISK = (
    "amiFamily: AL2023\nblockDeviceMappings: [{deviceName: /dev/xvdb, ebs: {volumeSize: 80Gi, snapshotID: snap-0b}}]\n"
)
MOUNTS = "userData: '#!/bin/sh parbake-mount.sh'\n"
BY_HAND = MOUNTS.replace("parbake-mount.sh", "mount LABEL=parbake /x")
GUARD = "kubelet: {evictionHard: {imagefs.available: 10%}}\n"
DATA_DISK = RAW_DISK + MOUNTS + GUARD
NODE_CONFIG = """\
userData: |
  MIME-Version: 1.0
  Content-Type: multipart/mixed; boundary="B"

  --B
  Content-Type: application/node.eks.aws

  apiVersion: node.eks.aws/v1alpha1
  kind: NodeConfig
  spec: %s
  --B
  Content-Type: text/x-shellscript

  #!/bin/sh parbake-mount.sh
  --B--
"""
BOTTLEROCKET = 'amiFamily: Bottlerocket\nuserData: |\n  [settings.container-runtime]\n  snapshotter = "%s"\n'
KUBELET = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
ALLOWED = (
    "imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\npreloadedImagesVerificationAllowlist: [%s]\n"
)
PAUSED = replace(VOLUME, sandbox="localhost/kubernetes/pause:latest", filled=0)
BOTTLEROCKETS = replace(PAUSED, family=FAMILIES["Bottlerocket"])
OF_ALIAS = "amiSelectorTerms: [{alias: %s@latest}]"
ARM = "  nodeSelector: {kubernetes.io/arch: arm64}\n"
WEIGHTS = f"  volumes:\n    - {{name: weights, image: {{reference: '{APP}'}}}}\n"
AFFINITY = (
    "  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: "
    "[{matchExpressions: [{key: kubernetes.io/arch, operator: In, values: [%s]}]}]}}}\n"
)

# Rule, what is wrong, the line of it, the same mended, and what it is compared with.
CASES: list[tuple[str, str, int, str, tuple[Bake, ...]]] = [
    ("bake-failed", pod(APP), 0, "", (replace(MACHINE, record="shop.ami.json", verified=False),)),
    ("bake-not-verified", pod(APP), 0, "", (replace(MACHINE, record="shop.ami.json"),)),
    ("pull-policy-always", pod(APP, policy="Always"), 6, pod(APP, policy="IfNotPresent"), ()),
    ("pull-policy-always", pod("a/b"), 6, pod("a/b", policy="Never").replace("a/b", "a/b:1"),
     (replace(MACHINE, images=(BakedImage(Reference.parse("a/b")), BakedImage(Reference.parse("a/b:1")))),)),
    ("latest-tag", pod("a/b:latest", policy="IfNotPresent"), 6, pod(f"a/b:latest@{OTHER}", policy="IfNotPresent"),
     (replace(MACHINE, images=(BakedImage(Reference.parse("a/b:latest"), OTHER, by_digest=True),)),)),
    ("reference-differs", pod(APP.replace("1.4", "1.5")), 6, pod(APP), ()),
    ("reference-differs", pod("mirror.example.com/api:1.4"), 6, pod(APP), ()),
    ("digest-differs", pod(f"{APP}@{OTHER}"), 6, pod(f"{APP}@{INDEX}"),
     (replace(MACHINE, images=(replace(BAKED, by_digest=True),)),)),
    ("digest-name-missing", pod(f"{APP}@{INDEX}"), 6, pod(APP), ()),
    ("digest-name-missing", pod(f"{APP}@{MANIFEST}"), 6, pod(f"{APP}@{INDEX}"),
     (replace(MACHINE, images=(replace(BAKED, by_digest=True),)),)),
    ("volume-not-proven", pod(APP, spec=WEIGHTS), 6, pod(APP), ()),
    ("platform-differs", pod(APP, spec=ARM), 7, pod(APP, spec=ARM.replace("arm64", "amd64")), ()),
    ("platform-differs", pod(APP, spec=AFFINITY % "arm64"), 7, pod(APP, spec=AFFINITY % "arm64, amd64"), ()),
    ("not-baked", pod("registry.example.com/shop/web:1"), 6, pod(APP), ()),
    ("cannot-use-a-bake", node_class("ephemeralStorage: {size: 80Gi}", kind="NodeClass", api="eks.amazonaws.com/v1"), 1,
     node_class(ROOT_DISK), ()),
    ("snapshotter-differs", node_class(ROOT_DISK + NODE_CONFIG % "{featureGates: {FastImagePull: true}}"), 8,
     node_class(ROOT_DISK + NODE_CONFIG % "{featureGates: {FastImagePull: false}}"), ()),
    ("snapshotter-differs", node_class(BOTTLEROCKET % "soci"), 6, node_class(BOTTLEROCKET % "overlayfs"), (VOLUME,)),
    ("snapshotter-differs",
     node_class(ROOT_DISK + NODE_CONFIG % "{containerd: {config: \"snapshotter = 'stargz'\"}}"), 8,
     node_class(ROOT_DISK + NODE_CONFIG % "{containerd: {config: \"snapshotter = 'overlayfs'\"}}"), ()),
    ("instance-store", node_class(ROOT_DISK + "instanceStorePolicy: RAID0\n"), 8, node_class(ROOT_DISK), ()),
    ("instance-store", node_class(ROOT_DISK + NODE_CONFIG % "{instance: {localStorage: {strategy: RAID0}}}"), 8,
     node_class(ROOT_DISK + NODE_CONFIG % "{instance: {localStorage: {strategy: Mount}}}"), ()),
    ("instance-store", node_class(ROOT_DISK + "instanceStorePolicy: RAID0\n" + NODE_CONFIG % "{}"), 8,
     node_class(ROOT_DISK + "instanceStorePolicy: RAID0\n"
                + NODE_CONFIG % "{instance: {localStorage: {disabledMounts: [Containerd]}}}"), ()),
    ("instance-store", node_class(ROOT_DISK + "instanceStorePolicy: RAID0\n").replace("AL2023", "Bottlerocket"), 8,
     node_class(ROOT_DISK).replace("AL2023", "Bottlerocket"), (replace(MACHINE, family=UNKNOWN),)),
    ("volume-too-small", node_class(ROOT_DISK.replace("30Gi", "29Gi")), 7, node_class(ROOT_DISK), ()),
    ("volume-too-small", node_class(OURS), 4, node_class(ROOT_DISK), ()),
    ("volume-too-small", node_class(DATA_DISK.replace("80Gi", "20Gi")), 6, node_class(DATA_DISK), (PAUSED,)),
    ("device-differs", node_class(DATA_DISK.replace("AL2023", "Bottlerocket").replace("xvdb", "xvdc")), 6,
     node_class(DATA_DISK.replace("AL2023", "Bottlerocket")), (PAUSED,)),
    ("volume-not-mounted", node_class(RAW_DISK + GUARD), 6, node_class(DATA_DISK), (PAUSED,)),
    ("volume-not-grown", node_class(RAW_DISK + BY_HAND + GUARD), 6, node_class(DATA_DISK), (PAUSED,)),
    ("imagefs-unguarded", node_class(RAW_DISK + MOUNTS), 6, node_class(DATA_DISK), (PAUSED,)),
    ("image-gc", node_class((RAW_DISK + BY_HAND + GUARD).replace("80Gi", "40Gi")), 6, node_class(DATA_DISK),
     (replace(PAUSED, filled=33 * GIB),)),
    ("image-gc", node_class(DATA_DISK.replace("80Gi", "40Gi")), 6, node_class(DATA_DISK),
     (replace(PAUSED, filled=33 * GIB),)),
    ("image-gc", f"{KUBELET}imageGCHighThresholdPercent: 70\n",
     3, f"{KUBELET}imageGCHighThresholdPercent: 90\n",
     (VOLUME,)),
    ("credentials-verified",
     f"{KUBELET}imagePullCredentialsVerificationPolicy: AlwaysVerify\n", 3,
     f"{KUBELET}imagePullCredentialsVerificationPolicy: NeverVerify\n", ()),
    ("credentials-verified",
     f"{KUBELET}imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\n"
     "preloadedImagesVerificationAllowlist: [registry.example.com/other/*]\n", 3,
     f"{KUBELET}imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\n"
     "preloadedImagesVerificationAllowlist: [registry.example.com/shop/*]\n", ()),
    ("credentials-verified",
     f"{KUBELET}imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\n"
     "preloadedImagesVerificationAllowlist: [registry.example.com/sho/*]\n", 3,
     f"{KUBELET}imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\n"
     "preloadedImagesVerificationAllowlist: [registry.example.com/shop/api]\n", ()),
    ("allow-list-refused", KUBELET + ALLOWED % "api, docker.io/shop/api", 4, KUBELET + ALLOWED % "docker.io/shop/api",
     (replace(MACHINE, images=(BakedImage(Reference.parse("shop/api:1")),)),)),
    ("short-name", KUBELET + ALLOWED % "docker.io/shop/api" + "---\n" + pod("shop/api:1"), 11,
     KUBELET + ALLOWED % "docker.io/shop/api" + "---\n" + pod("docker.io/shop/api:1"),
     (replace(MACHINE, images=(BakedImage(Reference.parse("shop/api:1")),)),)),
    ("baked-images-are-open",
     f"{KUBELET}imagePullCredentialsVerificationPolicy: NeverVerifyPreloadedImages\n", 3,
     f"{KUBELET}", ()),
    ("pause-image", node_class(RAW_DISK + NODE_CONFIG % "{}" + GUARD), 7,
     node_class(RAW_DISK + NODE_CONFIG % "{containerd: {config: \"sandbox = 'a.example/pause:3'\"}}" + GUARD),
     (replace(VOLUME, filled=0, sandbox="a.example/pause:3"),)),
    ("ami-family", node_class(ROOT_DISK.replace("AL2023", "Bottlerocket")), 5, node_class(ROOT_DISK), ()),
    ("ami-family", node_class(ROOT_DISK.replace("AL2023", "Windows2022")), 5,
     node_class(ROOT_DISK.replace("AL2023", "Custom")), ()),
    ("ami-family", node_class(DATA_DISK), 5, node_class(DATA_DISK.replace("AL2023", "Bottlerocket")), (BOTTLEROCKETS,)),
    ("ami-family", node_class(DATA_DISK), 5, node_class(DATA_DISK.replace("AL2023", "Custom")), (BOTTLEROCKETS,)),
    ("ami-family", node_class(DATA_DISK.replace("amiFamily: AL2023", OF_ALIAS % "windows2022")), 5,
     node_class(DATA_DISK.replace("amiFamily: AL2023", OF_ALIAS % "bottlerocket")), (BOTTLEROCKETS,)),
    ("ami-differs", node_class(ROOT_DISK.replace("id: ami-0b", "alias: al2023@latest").partition("\n")[2]), 5,
      node_class(ROOT_DISK), ()),
    ("ami-differs", node_class(ROOT_DISK.replace("ami-0b", "ami-0a")), 6, node_class(ROOT_DISK), ()),
    ("ami-differs", node_class('amiSelector: {aws-ids: "ami-0a,ami-0c"}\nblockDeviceMappings: [{deviceName: /dev/xvda, '
     "ebs: {volumeSize: 30Gi}}]\n", kind="AWSNodeTemplate", api="karpenter.k8s.aws/v1alpha1"), 5,
     node_class('amiSelector: {aws-ids: "ami-0a, ami-0b"}\nblockDeviceMappings: [{deviceName: /dev/xvda, '
     "ebs: {volumeSize: 30Gi}}]\n", kind="AWSNodeTemplate", api="karpenter.k8s.aws/v1alpha1"), ()),
    ("unreadable", "kind: {{ .Values.kind }}\n", 1, pod(APP), ()),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "wrong", "line", "mended", "bakes"), CASES, ids=[f"{n}-{case[0]}" for n, case in enumerate(CASES)]
)
def test_a_cause_is_found_and_can_be_mended(
    rule: str, wrong: str, line: int, mended: str, bakes: tuple[Bake, ...]
) -> None:
    found = examine([("x.yaml", wrong)], bakes or (MACHINE,))
    assert [(each.rule.id, each.line) for each in found] == [(rule, line)], [each.message for each in found]
    assert told(mended, *(replace(bake, verified=True) for bake in bakes)) == []


def test_an_allow_list_in_a_node_config_covers_no_short_names_either() -> None:
    listed = (
        "{kubelet: {config: {imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages, "
        "preloadedImagesVerificationAllowlist: [docker.io/shop/api]}}}"
    )
    bake = replace(MACHINE, images=(BakedImage(Reference.parse("shop/api:1")),))
    config = f"apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec: {listed}\n"
    for text in (config, node_class(ROOT_DISK + NODE_CONFIG % listed)):
        assert told(text + "---\n" + pod("shop/api:1"), bake) == ["short-name"]
        assert told(text + "---\n" + pod("docker.io/shop/api:1"), bake) == []


def test_the_same_image_under_another_name() -> None:
    mirrored = pod(f"mirror.example.com/shop/api@{INDEX}")
    assert told(mirrored) == ["shared-digest", "not-baked"]
    assert told(pod(f"mirror.example.com/shop/api@{OTHER}")) == ["not-baked"]
    both = replace(MACHINE, images=(BAKED, replace(BAKED, reference=Reference.parse("mirror.example.com/api:1.4"))))
    assert told(pod("mirror.example.com/api:1.4", policy="Always"), both) == ["pull-policy-always", "shared-digest"]
    assert told(pod("mirror.example.com/api:1.4"), both) == []


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("nginx", "as docker.io/library/nginx"),
        ("a.example/app:1", "as a.example/app"),
        ("a.example/a*", "neither"),
        ("/*", "neither"),
        ("a.example/ Q", "not an image's name"),
        ("a.example/*", ""),
        ("docker.io/library/nginx", ""),
    ],
)
def test_what_kubelets_refuse_in_their_allow_list(entry: str, words: str) -> None:
    text = KUBELET + ALLOWED % f"'{entry}', registry.example.com/shop/api"
    found = [each.message for each in examine([("x.yaml", text)], (MACHINE,))]
    assert [words in message for message in found] == ([True] if words else [])


@pytest.mark.parametrize("program", ["kubelet", "nodeadm"])
@pytest.mark.usefixtures("project")
def test_the_kubelets_configuration_that_is_printed_is_what_lint_asks_for(
    capsys: pytest.CaptureFixture[str], program: str
) -> None:
    assert run(["export", "kubelet-config", "--for", program]) == 0
    text = capsys.readouterr().out
    assert told(text) == []
    assert "registry.example.com/shop/api" in text
    assert run(["export", "kubelet-config", "--for", program, "--json"]) == 0
    (shown,) = parsed(text)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(shown))
    assert run(["export", "kubelet-config", "--for", "k3s"]) == 2
    assert run(["export", "kubelet-config", "nothing"]) == 2


def test_every_rule_has_a_case_and_stands_in_the_documentation() -> None:
    page = (ROOT / "docs/how-to/lint.md").read_text()
    assert {case[0] for case in CASES} | {"shared-digest"} == {rule.id for rule in RULES}
    for rule in RULES:
        assert f"| `{rule.id}` | {rule.level} |" in page


def test_fields_are_those_of_karpenter() -> None:
    """Names that are looked for in node classes and pools exist in the definitions of their kinds."""
    folder = ROOT / "standins/kubernetes/karpenter-crds"
    for file, fields in {
        "karpenter.k8s.aws_ec2nodeclasses.v1.yaml": (
            "amiFamily", "amiSelectorTerms", "alias", "id", "blockDeviceMappings", "deviceName", "rootVolume", "ebs",
            "snapshotID", "volumeSize", "instanceStorePolicy", "userData", "kubelet",
        ),
        "karpenter.k8s.aws_ec2nodeclasses.v1+v1beta1.yaml": (
            "imageGCHighThresholdPercent", "imageGCLowThresholdPercent",
        ),
        "karpenter.k8s.aws_awsnodetemplates.v1alpha1.yaml": ("amiSelector", "amiFamily", "blockDeviceMappings"),
        "karpenter.sh_provisioners.v1alpha5.yaml": ("kubeletConfiguration", "imageGCHighThresholdPercent"),
        "karpenter.sh_nodepools.v1+v1beta1.yaml": ("kubelet", "imageGCLowThresholdPercent"),
    }.items():  # fmt: skip
        text = (folder / file).read_text()
        assert [field for field in fields if f" {field}:" not in text] == []


def test_good_in_one_bake_is_good() -> None:
    arm = replace(MACHINE, name="arm", platform=Platform(architecture="arm64"))
    old = replace(MACHINE, name="old", images=(replace(BAKED, digest=OTHER, manifest=OTHER, by_digest=True),))
    new = replace(MACHINE, name="new", images=(replace(BAKED, by_digest=True),))
    assert told(pod(f"{APP}@{OTHER}"), old, new) == []
    assert told(pod(APP, spec=ARM), MACHINE, arm) == []
    assert told(pod(APP, spec=ARM), MACHINE) == ["platform-differs"]


def test_errors_come_first_and_name_line_and_object() -> None:
    text = pod("other/x:1") + "---\n" + pod(APP, policy="Always")
    first, second = examine([("x.yaml", text)], (MACHINE,))
    assert (first.level, first.place, first.what) == ("error", "x.yaml:13", "Pod shop/web, c")
    assert (second.level, second.line) == ("note", 6)


def in_parts(*configs: str) -> str:
    head = 'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="//"\n\n'
    return head + "".join(f"--//\nContent-Type: application/node.eks.aws\n\n{each}\n" for each in configs) + "--//--\n"


def test_node_settings() -> None:
    assert read("#!/bin/sh\necho settings\n").kubelet == {}
    assert read("[settings.kubernetes]\nimage-gc-high-threshold-percent = 90\n").kubelet == {
        "imageGCHighThresholdPercent": 90
    }
    assert read("[settings\n").snapshotter == ""
    mounts = "kind: NodeConfig\nspec: {instance: {localStorage: {disabledMounts: %s}}}\n"
    assert read(in_parts(mounts % "[Containerd]", mounts % "[]")).disabled_mounts == ("Containerd",), (
        "as nodeadm merges"
    )
    assert read(in_parts(mounts % "[Containerd]", mounts % "[SOCI]")).disabled_mounts == ("SOCI",)
    assert read(mounts % "[Containerd]" + "---\n" + mounts % "[SOCI]").disabled_mounts == ("Containerd",), "of a text"
    assert read(mounts % "Containerd").disabled_mounts == ()
    both = in_parts(
        "kind: NodeConfig\nspec: {featureGates: {FastImagePull: true}}\n",
        "kind: NodeConfig\nspec: {kubelet: {config: {a: 1}}}\n",
    )
    assert (read(both).fast_image_pull, read(both).kubelet) == (True, {"a": 1})
    assert [quantity(value) for value in ("20Gi", "1G", 5, None, "x", "1.5Gi")] == [20 * GIB, 10**9, 5, 0, 0, 0]


@pytest.mark.parametrize(
    ("spec", "family"),
    [
        ({}, ""),
        ({"amiFamily": "AL2"}, "AL2"),
        ({"amiFamily": None, "amiSelectorTerms": None}, ""),
        ({"amiFamily": "Custom", "amiSelectorTerms": [{"alias": "al2023@latest"}]}, "AL2023"),
        ({"amiFamily": "AL2", "amiSelectorTerms": [{"id": "ami-1"}, "text", None, {"alias": None}]}, "AL2"),
        ({"amiSelectorTerms": [{"alias": "bottlerocket"}]}, "Bottlerocket"),
        ({"amiSelectorTerms": [{"alias": "solaris@latest"}]}, ""),
        ({"amiSelectorTerms": [{"alias": 7}], "amiFamily": ["AL2"]}, ""),
        ({"amiSelectorTerms": "alias: al2@latest", "amiFamily": ["AL2"]}, "['AL2']"),
    ],
)
def test_the_family_of_a_node_class(spec: dict[str, Any], family: str) -> None:
    """What is no family of Karpenter's is passed on as it is: another rule of Karpenter's CRD refuses it."""
    assert str(family_of(spec)) == family


@pytest.mark.parametrize(
    ("base", "family"),
    [
        ('{eks: al2, kubernetes: "1.30"}', "AL2"),
        ('{eks: al2023, kubernetes: "1.33"}', "AL2023"),
        ('{eks: bottlerocket, kubernetes: "1.33"}', "Bottlerocket"),
        ('{eks: ubuntu, kubernetes: "1.33"}', "Ubuntu"),
        ("{ami_filter: {name: 'amazon-eks-node-al2023-x86_64-standard-1.33-*', owner: amazon}}", "AL2023"),
        ("{ami_filter: {name: 'amazon-eks-gpu-node-1.23-*', owner: amazon}}", "AL2"),
        ("{ami_filter: {name: 'bottlerocket-aws-k8s-1.33-x86_64-*', owner: amazon}}", "Bottlerocket"),
        ("{ami_filter: {name: 'ubuntu-eks/k8s_1.33/images/*', owner: '099720109477'}}", "Ubuntu"),
        ("{ami_filter: {name: 'our-nodes-*', owner: self}}", ""),
        ("ami-0123456789abcdef0", ""),
        ("debian", ""),
    ],
)
def test_the_family_of_a_base(tmp_path: Path, base: str, family: str) -> None:
    path = tmp_path / "parbake.yaml"
    path.write_text(f"version: 1\nname: node\nbuilder: ec2\nbase: {base}\nimages: [{APP}]\n")
    if base == "debian":
        path.write_text(path.read_text().replace("builder: ec2\n", ""))
    assert str(of_bakefile(load(path)).family) == family


@pytest.mark.parametrize("family", ["bottlerocket", "AL2023", "Windows2022", 7, None, ["Bottlerocket"]])
def test_a_record_with_a_family_that_is_none_is_refused(family: Any) -> None:
    with pytest.raises(ValueError, match="family"):
        Published.model_validate({"snapshots": [], "family": family})


def test_bakes_of_records_and_bakefiles(tmp_path: Path) -> None:
    path = tmp_path / "parbake.yaml"
    path.write_text(
        'version: 1\nname: node\nplatform: linux/amd64\nbuilder: ec2\nbase: {eks: bottlerocket, kubernetes: "1.33"}\n'
        f"images: [{{reference: '{APP}', also_by_digest: false}}, 'a.example/b:1']\n"
    )
    wanted = of_bakefile(load(path))
    assert (wanted.family, wanted.kind) == (FAMILIES["Bottlerocket"], "machine-image")
    assert [each.by_digest for each in wanted.images] == [False, True]
    made = record("a").model_copy(
        update={
            "plan": plan(images=(image(APP), image("a.example/b:1", also_by_digest=True))),
            "published": {"eu-west-1": Published(snapshots=(Snapshot(id="snap-1", size=GIB),))},
        }
    )
    baked = of_record(made)
    assert (baked.snapshots, baked.amis, baked.kind) == ((("snap-1", GIB),), frozenset(), "volume")
    (both,) = together(wanted, [made])
    assert (both.family, both.name, both.images[0].digest) == (wanted.family, made.artefact, image(APP).target.digest)
    # The Bakefile names more than was baked: then it is what will be baked that counts.
    (grown,) = together(replace(wanted, images=(*wanted.images, BAKED)), [record("b")])
    assert grown.name == "the Bakefile"
    assert together(None, [made]) == (baked,)
    with pytest.raises(InputError, match="nothing to compare with"):
        bakes_of(None, tmp_path)
    records.write(tmp_path, made)
    assert [each.name for each in bakes_of(None, tmp_path)] == [made.artefact]
    assert [each.name for each in bakes_of(path, tmp_path, ["node"])] == [made.artefact]


def test_sarif(tmp_path: Path) -> None:
    (tmp_path / "a b.yaml").write_text(pod(APP, policy="Always"))
    found = examine(
        [(str(tmp_path / "a b.yaml"), pod(APP, policy="Always")), ("the cluster", pod("o/x:1"))], (MACHINE,)
    )
    log = sarif(found, version="1.2.3", folder=tmp_path)
    (ran,) = log["runs"]
    driver = ran["tool"]["driver"]
    assert (log["version"], driver["name"], driver["semanticVersion"]) == ("2.1.0", "parbake", "1.2.3")
    for result in ran["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in {"error", "warning", "note"}
        assert result["message"]["text"]
    here, there = ([place for each in result["locations"] for place in [each]] for result in ran["results"])
    assert here[0]["physicalLocation"] == {"artifactLocation": {"uri": "a%20b.yaml"}, "region": {"startLine": 6}}
    assert "physicalLocation" not in there[0]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "parbake.yaml").write_text(f"version: 1\nimages: [{APP}]\nplatform: linux/amd64\nbase: none\n")
    (tmp_path / "bad.yaml").write_text(pod(APP, policy="Always"))
    (tmp_path / "good.yaml").write_text(pod(APP))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("project")
def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*words: str, code: int) -> str:
        assert run(["lint", *words]) == code
        return capsys.readouterr().out

    assert call("good.yaml", code=0) == "nothing stands in the way of the bake\n"
    text = call("bad.yaml", "good.yaml", "parbake.yaml", code=3)
    assert text.startswith(
        "bad.yaml:6: error: Pod shop/web, c: registry.example.com/shop/api:1.4: imagePullPolicy is Always"
    )
    assert text.endswith("1 error, 0 warnings, 0 notes\n")
    assert json.loads(call(".", "--json", code=3))["errors"] == 1
    assert json.loads(call(".", "--format", "sarif", code=3))["runs"][0]["results"][0]["ruleId"] == "pull-policy-always"
    monkeypatch.setattr("sys.stdin", io.StringIO(pod("other/x:1")))
    assert "standard input:6: note" in call("-", code=0)
    call("good.yaml", "--fail-on", "note", code=0)
    monkeypatch.setattr("sys.stdin", io.StringIO(pod("other/x:1")))
    call("-", "--fail-on", "note", code=3)
    for wrong in (["--format", "xml", "."], ["--fail-on", "x", "."], [], ["gone.yaml"], [".", "--bake", "nothing"]):
        call(*wrong, code=2)


def test_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items: dict[str, list[Any]] = {
        "pods,": parsed(pod(APP, policy="Always")),
        "ec2nodeclasses": parsed(node_class(ROOT_DISK + "instanceStorePolicy: RAID0")),
        "nodepools": [],
    }
    script = 'case "$2" in\n'
    for kind, listed in items.items():
        (tmp_path / f"{kind}.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": listed}))
        script += f'{kind}*) cat "{tmp_path}/{kind}.json";;\n'
    script += f'*) echo "error: {NO_KIND} \\"$2\\"" >&2; exit 1;;\nesac\n'
    kubectl(tmp_path, script, monkeypatch)
    found = examine(gather("prod"), (MACHINE,))
    assert [(each.rule.id, each.source, each.line) for each in found] == [
        ("instance-store", "the cluster prod", 0),
        ("pull-policy-always", "the cluster prod", 0),
    ]
    kubectl(tmp_path, "echo 'error: forbidden' >&2; exit 1", monkeypatch)
    with pytest.raises(Exception, match="forbidden"):
        gather()


NO_KIND = "the server doesn't have a resource type"


def parsed(text: str) -> list[Any]:
    return [document.data for document in parse(text).documents]


def kubectl(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a stand-in for kubectl on PATH, which knows the kinds that it is given and no cluster."""
    program = folder / "kubectl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_hook_calls_what_there_is() -> None:
    (hook,) = parsed((ROOT / ".pre-commit-hooks.yaml").read_text())[0]
    assert (hook["entry"], hook["language"]) == ("parbake lint", "python")
