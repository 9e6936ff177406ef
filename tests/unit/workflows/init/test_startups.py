"""What ``init`` writes of how pods start: goldens, and whatever manifests say, a Bakefile that loads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from parbake.bakefile import load, scaffold
from parbake.bakefile.sections import StartupSection
from parbake.core.events import Events
from parbake.core.reference import Reference
from parbake.images.workloads import images_in
from parbake.workflows.init import InitOptions, begin
from parbake.workflows.init.startups import PodStart, expand, start_of

CASES = Path(__file__).with_name("cases")


def test_how_pods_start_their_images_is_written_as_far_as_it_can_be_repeated(tmp_path: Path) -> None:
    begin(tmp_path, Events(), InitOptions(manifests=str(CASES / "starts.yaml")))
    text = (tmp_path / "parbake.yaml").read_text()
    load(tmp_path / "parbake.yaml")
    section = text[text.index("\nimages:\n") + 1 : text.index("\n# And those of a cluster")]
    assert section == (CASES / "starts.txt").read_text()


def start(
    container: Mapping[str, Any], spec: Mapping[str, Any] | None = None, **configs: Mapping[str, str]
) -> PodStart:
    known = {("shop", name): data for name, data in configs.items()}
    return start_of({**(spec or {}), "containers": [container]}, container, {"namespace": "shop", "name": "app"}, known)


@pytest.mark.parametrize(
    ("probes", "up"),
    [
        ({"readinessProbe": {"httpGet": {"port": "web", "path": "/ready"}}}, {"http": "8080/ready"}),
        ({"readinessProbe": {"httpGet": {"port": "9090"}}}, {"http": "9090/"}),
        ({"livenessProbe": {"httpGet": {"port": 8080, "path": "live"}}}, {"http": "8080/live"}),
        ({"livenessProbe": {"tcpSocket": {"port": 1}}, "startupProbe": {"tcpSocket": {"port": 2}}}, {"tcp": 2}),
        ({"livenessProbe": {"tcpSocket": {"port": 1}}, "readinessProbe": {"tcpSocket": {"port": 3}}}, {"tcp": 3}),
        ({"readinessProbe": {"httpGet": {"port": "web", "scheme": "HTTPS"}}}, {"tcp": 8080}),
        ({"readinessProbe": {"grpc": {"port": 9000, "service": "x"}}}, {"tcp": 9000}),
        ({"readinessProbe": {"exec": {"command": ["sh", "-c", "true"]}}}, {"exec": ("sh", "-c", "true")}),
        ({"readinessProbe": {"httpGet": {"port": "none"}}, "livenessProbe": {"tcpSocket": {"port": 8}}}, {"tcp": 8}),
        ({"readinessProbe": {"httpGet": {"port": 80, "host": "example.com"}}}, None),
        ({"readinessProbe": {"tcpSocket": {"port": 0}}}, None),
        ({}, None),
    ],
)
def test_a_probe_says_when_it_is_up_what_serves_before_what_lives(probes: dict[str, Any], up: object) -> None:
    found = start({"ports": [{"name": "web", "containerPort": 8080}], **probes})
    assert found.keys.get("up") == up
    assert bool(found.notes) == (up is None and bool(probes)) or up is not None


@pytest.mark.parametrize(
    ("text", "expanded"),
    [  # of Kubernetes' own tests, third_party/forked/golang/expansion/expand_test.go
        ("$(VAR_A)", "A"),
        ("___$(VAR_B)___", "___B___"),
        ("$(VAR_A)-1", "A-1"),
        ("$$(VAR_B)_$(VAR_A)", "$(VAR_B)_A"),
        ("$$$(VAR_A)", "$A"),
        ("$$$$(VAR_A)", "$$(VAR_A)"),
        ("$(VAR_DNE)", "$(VAR_DNE)"),
        ("$VAR_A", "$VAR_A"),
        ("foo$(VAR_EMPTY)bar", "foobar"),
        ("$(VAR_A", "$(VAR_A"),
        ("$", "$"),
        ("$(VAR_REF)", "$(VAR_A)"),
    ],
)
def test_variables_are_put_into_texts_as_a_kubelet_does(text: str, expanded: str) -> None:
    known = {"VAR_A": "A", "VAR_B": "B", "VAR_C": "C", "VAR_REF": "$(VAR_A)", "VAR_EMPTY": ""}
    assert expand(text, known) == expanded


def test_variables_that_double_each_other_end() -> None:
    doubling = [{"name": f"V{number}", "value": f"$(V{number - 1})" * 9} for number in range(1, 400)]
    found = start({"env": [{"name": "V0", "value": "x" * 900}, *doubling]})
    assert "env" not in found.keys
    assert len("".join(found.notes)) < 2000


def test_no_secret_is_written_and_all_that_is_missing_is_named() -> None:
    env = [
        {"name": "DB_PASSWORD", "value": "correct-horse"},
        {"name": "DSN", "value": "postgres://ann:correct-horse@db/x"},
        {"name": "TOKEN_FILE", "value": "/run/token"},
        {"name": "MAX_TOKEN", "value": "4096"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "shop", "key": "k"}}},
        {"name": "MAYBE", "valueFrom": {"secretKeyRef": {"name": "shop", "key": "m", "optional": True}}},
        {"name": "LEVEL", "valueFrom": {"configMapKeyRef": {"name": "here", "key": "level"}}},
        {"name": "OTHER", "valueFrom": {"configMapKeyRef": {"name": "away", "key": "level"}}},
    ]
    mounts = {"volumes": [{"name": "tls", "secret": {"secretName": "tls"}}]}
    more = {"volumeMounts": [{"name": "tls", "mountPath": "/tls"}], "envFrom": [{"secretRef": {"name": "all"}}]}
    found = start({"env": env, "args": ["--api-key=correct-horse"], **more}, mounts, here={"level": "info"})
    assert found.keys == {"env": {"TOKEN_FILE": "/run/token", "MAX_TOKEN": "4096", "LEVEL": "info"}}
    assert found.fill == {
        "DB_PASSWORD": "its value in the manifest looks like a secret",
        "DSN": "its value in the manifest looks like a secret",
        "KEY": "Secret shop, key k",
        "OTHER": "ConfigMap away, key level",
    }
    assert [note.partition(":")[0] for note in found.notes] == [
        "its environment has all of Secret all",
        "its args has what looks like a secret",
        "/tls is of Secret tls",
    ]
    assert "correct-horse" not in json.dumps([found.keys, found.fill, found.notes])


def test_what_helm_and_argo_run_once_is_left_out() -> None:
    def job(name: str, image: str, **annotations: str) -> str:
        pods = {"spec": {"containers": [{"name": "c", "image": image}]}}
        metadata = {
            "name": name,
            "annotations": {key.replace("__", "/").replace("_", "."): value for key, value in annotations.items()},
        }
        return json.dumps({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": pods}})

    found = images_in(
        [
            ("a", job("check", "a.example/test:1", helm_sh__hook="test")),
            ("b", job("migrate", "a.example/app:1", helm_sh__hook="pre-upgrade,pre-install")),
            ("c", job("sync", "a.example/sync:1", argocd_argoproj_io__hook="PreSync")),
            ("d", job("app", "a.example/app:1", helm_sh__chart="x")),
        ]
    )
    assert [str(each.reference) for each in found.images] == ["a.example/app:1"]
    assert [str(use) for use in found.images[0].uses] == ["Job app, c"]
    assert len(found.warnings) == 3
    assert "a: Job check is a hook (test)" in found.warnings[0]


ODD: Any = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=12),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
WORDS = some.text(max_size=12) | some.sampled_from(
    [
        "$(A)",
        "on",
        "0755",
        "1e3",
        "a: b",
        "- x",
        "# y",
        "'",
        '"',
        "\\",
        "a\nb\n",
        "\n",
        "\x85",
        " x",
        "~",
        "{a",
        "\ud800",
        "\0",
        "é ",
        "---",
    ]
)
NAMES = some.sampled_from(["A", "B", "A B", "0", "K" * 600, "secret", "ключ", "a.b"])
PATHS = some.sampled_from(["/tmp", "/etc/app", "/../x", "/proc/x", "relative", "/a b", "/" + "p" * 600, "/tmp/"])


def shaped(**fields: Any) -> Any:
    """A mapping with some of these keys, whose values are of the right kind, or of any."""
    return some.fixed_dictionaries({}, optional={key: value | ODD for key, value in fields.items()}) | ODD


PROBE = shaped(
    httpGet=shaped(port=some.integers(-1, 70000) | NAMES, path=WORDS, scheme=WORDS, host=WORDS),
    tcpSocket=shaped(port=some.integers(0, 70000)),
    grpc=shaped(port=some.integers(0, 70000)),
    exec=shaped(command=some.lists(WORDS, max_size=2)),
    failureThreshold=some.integers(-5, 10**12),
    periodSeconds=some.integers(0, 10**6),
)
REF = shaped(name=NAMES, key=NAMES, optional=some.booleans())
CONTAINER = shaped(
    command=some.lists(WORDS, max_size=3),
    args=some.lists(WORDS, max_size=3),
    env=some.lists(
        shaped(name=NAMES, value=WORDS, valueFrom=shaped(secretKeyRef=REF, configMapKeyRef=REF)), max_size=4
    ),
    envFrom=some.lists(shaped(configMapRef=REF, secretRef=REF, prefix=WORDS), max_size=2),
    workingDir=PATHS | WORDS,
    ports=some.lists(shaped(name=NAMES, containerPort=some.integers(0, 70000)), max_size=2),
    securityContext=shaped(
        runAsUser=some.integers(-1, 1 << 42), runAsGroup=some.integers(), readOnlyRootFilesystem=some.booleans()
    ),
    volumeMounts=some.lists(shaped(name=NAMES, mountPath=PATHS, subPath=WORDS), max_size=4),
    readinessProbe=PROBE,
    startupProbe=PROBE,
)
VOLUME = shaped(
    name=NAMES,
    emptyDir=ODD,
    configMap=shaped(
        name=NAMES,
        defaultMode=some.integers(-1, 1000),
        items=some.lists(shaped(key=NAMES, path=PATHS | WORDS, mode=ODD)),
    ),
    projected=shaped(sources=some.lists(shaped(configMap=REF, secret=REF), max_size=2)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    CONTAINER,
    shaped(volumes=some.lists(VOLUME, max_size=4), securityContext=ODD),
    some.dictionaries(NAMES, WORDS | ODD),
)
def test_whatever_manifests_say_what_is_written_loads_and_says_the_same(container: Any, spec: Any, data: Any) -> None:
    said, pods = (each if isinstance(each, dict) else {} for each in (container, spec))
    found = start_of(_tuples(pods), _tuples(said), {"name": "a"}, {("", name): _tuples(data) for name in ("A", "B")})
    image = scaffold.InitImage(
        Reference.parse("a.example/b:1"), startup=found.keys, fill=found.fill, notes=tuple(found.notes)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "parbake.yaml")
        path.write_text(scaffold.starter([image], today=date(2026, 11, 24)))
        [entry] = load(path).images
    expected = StartupSection.model_validate(found.keys, strict=True).startup() if found.keys else None
    assert entry.startup == expected


def _tuples(value: Any) -> Any:
    """Make what the parser of manifests makes: lists are tuples there, or lists where the text is JSON."""
    if isinstance(value, dict):
        return {key: _tuples(each) for key, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
