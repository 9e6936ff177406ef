"""What pods did with their bake: played by kubelets' doubles, attributed, and never guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake import records
from parbake.cli.report import Subject, page
from parbake.cli.text.prometheus import gauge
from parbake.core.reference import Reference
from parbake.records import Record
from parbake.workflows.observe import Observed, of_seen
from parbake.workflows.observe.kubelet import TEXTS, read_event
from parbake.workflows.observe.seen import read
from standins.clusters import NEEDS_KUBECTL, machine_image, volume
from standins.kubernetes import observed
from standins.kubernetes.kubectl_in_process import replace_kubectl
from standins.kubernetes.kubelet import Box, Kubelet, objects
from standins.kubernetes.observed import empty_cluster, node_class
from standins.kubernetes.server import Server, listening
from standins.plans import digest, image
from standins.runs import parbake

API, WEB = "registry.example/shop/api:1", "registry.example/shop/web:1"
MACHINE = machine_image("machine", "ami-1", images=(image(API), image(WEB)))
NEWER = machine_image("newer", "ami-2", images=(image(API.replace(":1", ":2")),))
DATA = volume("data", "snap-1")
STORE = {API: digest("manifest " + API), WEB: digest("manifest " + WEB)}
OF_DATA = "registry.example/data:1"
FAST = (
    '{"apiVersion": "node.eks.aws/v1alpha1", "kind": "NodeConfig", "spec": {"featureGates": {"FastImagePull": true}}}'
)


@pytest.fixture
def server() -> Server:
    return empty_cluster()


def node(server: Server, name: str, ami: str = "ami-1", **more: Any) -> Kubelet:
    """Return a node that has in its store what is baked."""
    return observed.node(server, name, ami, **{"store": dict(STORE), **more})


def seen(server: Server, *wanted: Record, known: tuple[Record, ...] = (MACHINE, DATA)) -> Observed:
    return of_seen(read(objects(server)), known, wanted)


def causes(found: Observed) -> dict[str, tuple[str, str, str]]:
    """Return what became of each pod that has an image of the bake: outcome, rule, and how sure that is."""
    return {
        each.pod.name: (
            each.outcome,
            each.deciding.rule.id if each.deciding.rule else "",
            each.deciding.sureness,
        )
        for each in found.pods
    }


def test_twenty_nodes_with_twelve_kinds_of_misses_are_all_attributed(server: Server) -> None:
    node_class(server, "gpu")
    node_class(server, "raid", instanceStorePolicy="RAID0")
    node_class(server, "soci", userData=FAST)
    node_class(server, "bare", blockDeviceMappings=[{"deviceName": "/dev/xvdb", "ebs": {"snapshotID": "snap-1"}}])
    expected = dict[str, tuple[str, str, str]]()

    def pod(at: Kubelet, name: str, *boxes: Box | str, says: tuple[str, str, str], **more: Any) -> None:
        at.run(name, *boxes, **more)
        expected[name] = says

    def sure(rule: str) -> tuple[str, str, str]:
        return "pulled", rule, "sure"

    used = ("used", "", "sure")
    for number, version in enumerate(("1.33.4", "1.34.1", "1.35.0", "1.36.2", "1.37.1", *["1.36.2"] * 4)):
        at = node(server, f"good-{number}", version=version)
        pod(at, f"api-{number}", API, says=used)
        pod(at, f"both-{number}", Box(API, name="a"), Box(WEB, name="b"), says=used)
    at = node(server, "policy")
    pod(at, "always", Box(API, "Always"), says=sure("pull-policy-always"))
    at = node(server, "names", registry={"mirror.example/api:1": STORE[API]})
    pod(at, "tag", "registry.example/shop/api:3", says=sure("reference-differs"))
    pod(at, "mirror", "mirror.example/api:1", says=sure("reference-differs"))
    pod(at, "digest", f"registry.example/shop/api@{digest('other')}", says=sure("digest-differs"))
    pod(at, "by-digest", f"registry.example/shop/api@{STORE[API]}", says=sure("digest-name-missing"))
    pod(node(server, "arm", architecture="arm64", store={}), "arm", API, says=sure("platform-differs"))
    at = node(server, "collected")
    pod(at, "before-gc", API, says=used)
    at.collect(API)
    pod(at, "after-gc", API, says=("pulled", "image-gc", "likely"))
    at = node(server, "asks", asks={API}, down="no route to host")
    pod(at, "web-there", WEB, says=used)
    pod(at, "verified", API, says=("pulled", "credentials-verified", "likely"))
    at = node(server, "neighbours", private={API})
    pod(at, "with-secret", Box(API, "Always"), says=sure("pull-policy-always"), secret=True)
    pod(at, "neighbour", API, says=("pulled", "pull-policy-always", "likely"))
    pod(node(server, "raid-1", of="raid", store={}), "raid", API, says=("pulled", "instance-store", "likely"))
    pod(node(server, "soci-1", of="soci", store={}), "soci", API, says=("pulled", "snapshotter-differs", "likely"))
    at = node(server, "bare-1", ami="ami-9", of="bare", store={})
    pod(at, "bare", OF_DATA, says=("pulled", "volume-not-mounted", "likely"))
    at = node(server, "never", store={WEB: STORE[WEB]})
    pod(at, "web", WEB, says=used)
    pod(at, "never", Box(API, "Never"), says=("pulled", "", ""))
    at = node(server, "other")
    at.run("sidecar", "public.example/proxy:9")
    found = seen(server)
    assert causes(found) == expected
    assert len(found.running) == 20
    assert len({rule for _, rule, _ in expected.values()} - {""}) == 10, "two of the twelve kinds share a rule each"
    (other,) = found.others
    assert (other.pod.name, other.rule and other.rule.id) == ("sidecar", "not-baked")
    figures = found.figures()
    assert (figures.used, figures.pulled, figures.unknown) == (21, 14, 0)
    assert figures.rate == pytest.approx(21 / 35)


def test_an_image_that_a_stranger_of_the_same_last_name_has_is_not_the_bakes(server: Server) -> None:
    node_class(server, "gpu")
    node(server, "n").run("other-api", "elsewhere.example/api:1")
    assert seen(server).pods == ()
    assert [each.rule.id for each in seen(server).others if each.rule] == ["not-baked"]


def test_what_was_there_because_another_pod_had_pulled_it_is_not_the_bakes(server: Server) -> None:
    node_class(server, "gpu")
    at = node(server, "n", version="1.34.1", registry={API: digest("moved")})
    at.run("first", Box(API, "Always"))
    at.run("second", API)
    found = causes(seen(server))
    assert found == {"first": ("pulled", "pull-policy-always", "sure"), "second": ("unknown", "", "")}
    (pod,) = (each for each in seen(server).pods if each.pod.name == "second")
    assert "shop/first had pulled it" in pod.deciding.why


def test_a_bake_that_is_older_than_the_workload_says_which_one_has_it(server: Server) -> None:
    node_class(server, "gpu")
    node(server, "n").run("new", API.replace(":1", ":2"))
    (pod,) = seen(server, known=(MACHINE, NEWER)).pods
    assert causes(seen(server, known=(MACHINE, NEWER)))["new"] == ("pulled", "reference-differs", "sure")
    assert pod.deciding.why.endswith(f"{NEWER.artefact} has it")


def _forget(server: Server) -> None:
    for key in [key for key in server.store.objects if key[1] == "events"]:
        del server.store.objects[key]


def test_events_that_have_expired_leave_nothing_known(server: Server) -> None:
    node_class(server, "gpu")
    node(server, "old", at=datetime.now(UTC) - timedelta(hours=3)).run("api", API)
    _forget(server)
    (pod,) = seen(server).pods
    assert (pod.outcome, pod.deciding.why) == ("unknown", "events are older than 1 h")
    assert seen(server).figures().rate is None


def test_a_restart_says_nothing_of_a_first_start_that_is_forgotten(server: Server) -> None:
    node_class(server, "gpu")
    at = node(server, "old", at=datetime.now(UTC) - timedelta(hours=3), store={})
    pod = at.run("api", API)
    _forget(server)
    at.restart(pod, Box(API), seconds=2.9 * 3600)
    assert causes(seen(server)) == {"api": ("unknown", "", "")}


def test_events_that_may_not_be_read_leave_nothing_known(server: Server) -> None:
    node_class(server, "gpu")
    node(server, "n").run("api", API)
    _forget(server)
    found = of_seen(read(objects(server), hidden=("events cannot be read: no",), blind=True), [MACHINE])
    assert [pod.deciding.why for pod in found.pods] == ["events cannot be read"]


def test_a_kubelet_that_told_nothing_is_no_miss_and_no_hit(server: Server) -> None:
    node_class(server, "gpu")
    node(server, "n", tells=False).run("api", API)
    assert causes(seen(server)) == {"api": ("unknown", "", "")}


@pytest.mark.parametrize("behind", [-90.0, 90.0])
def test_starts_are_not_timed_by_two_clocks(server: Server, behind: float) -> None:
    node_class(server, "gpu")
    node(server, "right").run("api", API)
    node(server, "wrong", behind=behind).run("web", WEB)
    found = seen(server)
    seconds = {pod.pod.name: pod.seconds for pod in found.pods}
    assert seconds["api"] is not None
    assert seconds["web"] is None, "the scheduler's clock and the node's differ"
    assert {each.node.name: round(each.clock) for each in found.nodes if each.clock} == {"wrong": round(behind)}
    assert causes(found)["web"] == ("used", "", "sure"), "what was told is true, whenever that was"


def test_a_start_is_counted_from_where_nothing_else_stood_before_it(server: Server) -> None:
    node_class(server, "gpu")
    node(server, "n", pulls=40.0, version="1.34.1").run("api", Box(WEB, name="init", init=True), Box(API, "Always"))
    starts = {use.container.name: use for use in seen(server).uses}
    assert starts["init"].seconds == 4
    assert starts["c"].seconds is not None
    assert 40 <= starts["c"].seconds <= 44
    assert (starts["c"].pull_seconds, starts["c"].size) == (40.0, 77283495)


def test_pods_that_are_gone_are_told_by_their_events(server: Server) -> None:
    node_class(server, "gpu")
    at = node(server, "n")
    for name, asked in (("job-1", API), ("job-2", "registry.example/shop/api:3"), ("job-3", Box(WEB, "Always"))):
        at.run(name, asked)
        del server.store.objects["", "pods", "shop", name]
    assert causes(seen(server)) == {
        "job-1": ("used", "", "likely"),
        "job-2": ("pulled", "reference-differs", "sure"),
        "job-3": ("pulled", "", ""),
    }


def test_nodes_whose_record_is_gone_are_named_by_what_the_rollout_noted(server: Server) -> None:
    note = '{"current": {"images": ["ami-7"], "artefacts": ["node-lost"]}}'
    node_class(server, "gpu")
    server.change("ec2nodeclasses", "gpu", {"metadata": {"annotations": {"parbake/rollout": note}}})
    node(server, "n", ami="ami-7").run("api", API)
    found = seen(server)
    assert (found.gone, found.running, found.pods) == (("node-lost",), (), ())
    assert found.before.used == 1


def test_how_it_was_on_nodes_without_a_bake_stands_beside_it(server: Server) -> None:
    node_class(server, "gpu")
    node(server, "plain", ami="ami-0", store={}, pulls=60.0).run("slow", API)
    node(server, "baked").run("fast", API)
    found = seen(server)
    before, after = found.before, found.figures()
    assert (before.pulled, after.used) == (1, 1)
    assert before.median is not None
    assert after.median is not None
    assert before.median - after.median == 61


@given(st.lists(st.sampled_from([each.text for each in TEXTS]), min_size=1, max_size=3), st.text(max_size=20))
def test_a_text_is_read_whole_or_not_at_all(texts: list[str], more: str) -> None:
    """What merely contains a text, or two of them, is some other text: it says nothing."""
    values = {"image": API, "took": "1m2.5s", "waited": "1m3s", "size": "7", "why": "x", "name": "c"}
    message = " ".join(each.format(**values) for each in texts) + more
    found = _read("Pulled", message)
    if found and found.telling == "present":
        assert message.strip() in {each.text.format(**values) for each in TEXTS if each.telling == "present"}
    if found and found.telling == "pulled":
        assert (found.seconds, found.size) == (62.5, 7)


def _read(reason: str, message: str, **more: Any) -> Any:
    about = {"kind": "Pod", "uid": "u", "fieldPath": "spec.containers{c}"}
    at = "2026-12-03T10:00:00Z"
    event = {"reason": reason, "message": message, "involvedObject": about, "metadata": {"creationTimestamp": at}}
    return read_event({"source": {"component": "kubelet", "host": "n"}, "firstTimestamp": at, **event, **more})


def test_events_of_others_than_kubelets_are_passed_over() -> None:
    message = f'Container image "{API}" already present on machine'
    assert _read("Pulled", message)
    assert _read("Pulled", message, source={"component": "attacker"}) is None
    assert _read("Pulled", message, involvedObject={"kind": "Node"}) is None
    assert _read("Pulled", message, firstTimestamp="soon", metadata={}) is None


def test_an_event_of_one_namespace_tells_nothing_of_anothers_pods(server: Server) -> None:
    node_class(server, "gpu")
    at = node(server, "n")
    victim = at.run("api", API)["metadata"]["uid"]
    at.run("evil", "evil.example/x:1", namespace="evil")
    for name, kind, namespace, key in [each for each in server.store.objects if each[1:3] == ("events", "evil")]:
        forged = server.store.objects[name, kind, namespace, key]
        forged["message"] = f'Pulling image "{API}"'
        forged["reason"] = "Pulling"
        forged["firstTimestamp"] = "2020-01-01T00:00:00Z"
        forged["involvedObject"] |= {"uid": victim, "name": "api"}
    assert causes(seen(server)) == {"api": ("used", "", "sure")}
    assert [each.clock for each in seen(server).nodes] == [0]


def test_names_are_compared_as_the_runtime_stores_them(server: Server) -> None:
    node_class(server, "gpu")
    short = Reference.parse("nginx:1.27")
    record = machine_image("nginx", "ami-1", images=(image(str(short)),))
    store = {"nginx:1.27": digest(f"manifest {short}")}
    node(server, "n", store=store).run("web", "nginx:1.27")
    assert causes(seen(server, known=(record,))) == {"web": ("used", "", "sure")}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A cluster that kubectl reaches, and a folder with the record of what its nodes run."""
    with listening(observed.shop().store, tmp_path) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "artefacts").mkdir()
        records.write(tmp_path / "artefacts", observed.MADE)
        yield server


@NEEDS_KUBECTL
def test_the_command_tells_programs_all_of_it(shop: Server) -> None:
    before = shop.store.version
    found = parbake("observe", "node", "--json").good()
    assert shop.store.version == before, "it only reads"
    assert (found["used"], found["pulled"], found["unknown"]) == (12, 3, 0)
    assert found["hit_rate"] == 0.8
    assert found["before"]["start_seconds"]["median"] == 69
    missed = {each["pod"]: each["containers"][0] for each in found["pods"] if each["outcome"] == "pulled"}
    assert {name: (each["rule"], each["sureness"]) for name, each in missed.items()} == {
        "batch-27": ("pull-policy-always", "sure"),
        "web-canary": ("reference-differs", "sure"),
        "web-late": ("image-gc", "likely"),
    }
    assert all(each["ready"] and each["launched"] for each in found["nodes"])


def test_what_may_not_be_read_is_told_and_no_error(shop: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_kubectl(monkeypatch)
    shop.store.forbidden |= {("list", "events")}
    done = parbake("observe", "node")
    assert done.code == 0
    assert "events cannot be read: " in done.out
    assert "forbidden" in done.out
    assert parbake("observe", "--json").good()["unknown"] == 15
    shop.store.forbidden |= {("list", "nodeclaims")}
    assert "no node of kubectl's current context runs an artefact" in parbake("observe").out
    shop.store.forbidden |= {("list", "pods")}
    parbake("observe", "--json").refused(1, "RolloutError", "pods", hint="permission")


def test_nodes_that_say_nothing_of_their_image_are_named_by_labels(
    shop: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_kubectl(monkeypatch)
    shop.store.forbidden |= {("list", "nodeclaims")}
    shop.change("nodes", "ip-10-0-0-10", {"metadata": {"labels": {"bake": "shop"}}})
    found = parbake("observe", "node", "--nodes", "bake=shop", "--json").good()
    assert [each["node"] for each in found["nodes"]] == ["ip-10-0-0-10"]
    assert found["hit_rate"] == 1
    parbake("observe", "--nodes", "bake=shop", "--json").refused(2, "InputError", "--nodes")
    parbake("observe", "--metrics", "--json").refused(2, "InputError", "--metrics")


@pytest.mark.usefixtures("shop")
def test_figures_are_what_prometheus_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_kubectl(monkeypatch)
    told = parbake("observe", "--metrics").out
    assert f'parbake_pods{{artefact="{observed.MADE.artefact}",outcome="used"}} 12.0\n' in told
    assert 'rule="image-gc"} 1.0' in told
    sample = re.compile(r'[a-z_]+\{[a-z_]+="[^"\\\n]*"(,[a-z_]+="[^"\\\n]*")*\} [0-9.e+-]+')
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in told.splitlines())
    hostile = gauge("m", "a\nb", [({"x": 'a"b\\c\nd'}, 1), ({}, None)])
    assert hostile == '# HELP m a\\nb\n# TYPE m gauge\nm{x="a\\"b\\\\c\\nd"} 1.0\n'


def test_names_of_others_are_only_text_in_the_page(server: Server) -> None:
    node_class(server, "gpu")
    at = node(server, "n")
    hostile = at.run("a", Box(API, "Always"))
    name = "<script>alert(1)</script>"
    hostile["metadata"]["name"] = name
    server.store.objects["", "pods", "shop", "a"] = hostile
    shown = page(Subject(MACHINE), seen=seen(server))
    assert name not in shown
    assert "&lt;script&gt;alert(1)" in shown
