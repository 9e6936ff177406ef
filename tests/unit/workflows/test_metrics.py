"""What is to be watched of a repository of records: what is in use, and what registries still serve of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parbake import records
from parbake.core.errors import NoSuchImage, Unreachable
from parbake.core.model import Descriptor, Published, Snapshot
from parbake.core.reference import Reference
from parbake.images.registry import Registry
from parbake.records import Record
from parbake.rollouts.protocol import History, RolloutProgress, TargetState, TargetStatus
from parbake.workflows import rollout
from parbake.workflows.metrics import in_use
from parbake.workflows.rollout import TargetReport
from standins.kubernetes import observed
from standins.kubernetes.kubectl_in_process import replace_kubectl
from standins.kubernetes.server import listening
from standins.plans import MANIFEST, record
from standins.runs import parbake

ON_THE_WAY, ARRIVED = RolloutProgress(1, 2, done=False), RolloutProgress(2, 2, done=True)
OLD, NEW, FAILED = record("a", passed=True), record("b", passed=True, at=1), record("c", passed=False, at=2)
OTHER = record("d", name="other", passed=True, at=3)


def published(of: Record, image: str) -> Record:
    there = Published(image=image, snapshots=(Snapshot(id=f"snap-{image[4:]}", size=of.size),))
    return of.model_copy(update={"published": {"eu-central-1": there}})


def found(*of: Record) -> list[tuple[Path, Record]]:
    return [(Path(each.file_name), each) for each in of]


def holding(holds: TargetState, *, previous: TargetState | None = None, follow: RolloutProgress | None) -> TargetReport:
    return TargetReport("gpu", "karpenter", TargetStatus("EC2NodeClass gpu", holds, History(previous), follow))


@pytest.mark.parametrize(
    ("state", "follow", "artefacts"),
    [
        (TargetState(keys=(NEW.key,)), ARRIVED, [NEW.artefact]),
        (TargetState(artefacts=(OLD.artefact,)), ARRIVED, [OLD.artefact]),
        (TargetState(images=("ami-1",)), ARRIVED, [OLD.artefact]),
        (TargetState(snapshot="snap-2"), None, [NEW.artefact]),
        (TargetState(snapshot="snap-2"), ON_THE_WAY, [OLD.artefact, NEW.artefact]),  # nodes of before still run
    ],
)
def test_what_targets_hold_is_in_use_and_what_they_held_while_nodes_are_on_the_way(
    state: TargetState, follow: RolloutProgress | None, artefacts: list[str]
) -> None:
    repository = found(published(OLD, "ami-1"), published(NEW, "ami-2"), FAILED)
    used = in_use(repository, [holding(state, previous=TargetState(images=("ami-1",)), follow=follow)])
    assert [(each.record.artefact, each.known_by) for each in used] == [(name, "target") for name in artefacts]


def test_of_a_name_that_no_target_holds_it_is_what_rollouts_take() -> None:
    repository = found(OLD, NEW, FAILED, OTHER)
    foreign = holding(TargetState(images=("ami-9",)), follow=ARRIVED)
    silent = TargetReport("gpu", "karpenter", error="nobody answers")
    for reports in ([], [foreign], [silent]):
        used = in_use(repository, reports)
        assert [(each.record, each.known_by) for each in used] == [(NEW, "record"), (OTHER, "record")]
    assert in_use(found(FAILED), []) == ()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a Bakefile with a target, and the records of three bakes, of which one failed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artefacts").mkdir()
    for each in (OLD, NEW, FAILED):
        records.write(tmp_path / "artefacts", each)
        (tmp_path / "artefacts" / each.artefact).touch()
    (tmp_path / "parbake.yaml").write_text(
        "version: 1\nname: node\nimages: [registry.example/b:1]\nartefact: {kind: volume}\nbase: none\n"
        "rollout: [{file: {path: nodes.json}}]\n"
    )


def serving(monkeypatch: pytest.MonkeyPatch, **digests: str | Exception) -> list[str]:
    """Let the registry serve digests by tag, and what was baked unless ``gone`` is given; return what it is asked."""
    asked: list[str] = []

    def head(_: Registry, reference: Reference) -> Descriptor:
        asked.append(str(reference))
        answer = (
            digests.get("baked", reference.digest) if reference.digest else digests.get("tag", "sha256:" + "0" * 64)
        )
        if isinstance(answer, Exception):
            raise answer
        return Descriptor(media_type=MANIFEST, digest=answer, size=1)

    monkeypatch.setattr(Registry, "head", head)
    return asked


def told(*words: str) -> dict[str, Any]:
    """Return the metrics' values: by name, or by name and what the sample is of."""
    document = parbake("list", "--metrics", "--json", *words).good()
    return {each["name"]: each["samples"] for each in document["metrics"]}


@pytest.mark.usefixtures("repository")
def test_an_image_is_told_as_served_moved_or_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    image = NEW.plan.images[0]
    cases: dict[str, tuple[dict[str, Any], bool, bool]] = {
        "as it was": ({"tag": image.target.digest}, True, True),
        "its tag has moved": ({}, True, False),
        "gone, and its tag as well": (
            dict.fromkeys(("baked", "tag"), NoSuchImage("there is no such image")),
            False,
            False,
        ),
    }
    for case, (answers, served, current) in cases.items():
        asked = serving(monkeypatch, **answers)
        metrics = told()
        [sample] = metrics["parbake_image_served"]
        assert (sample["value"], sample["labels"]) == (
            served,
            {"name": "node", "artefact": NEW.artefact, "image": "registry.example/b:1", "digest": image.target.digest},
        ), case
        assert [each["value"] for each in metrics["parbake_image_current"]] == [current], case
        assert sorted(asked) == ["registry.example/b:1", f"registry.example/b@{image.target.digest}"]
        assert "parbake_unanswered" not in metrics


@pytest.mark.usefixtures("repository")
def test_who_does_not_answer_is_told_once_and_hides_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serving(monkeypatch, baked=Unreachable("registry.example: nobody answers"))
    monkeypatch.setattr(rollout, "status", lambda _: (TargetReport("gpu", "karpenter", error="no access"),))
    done = parbake("list", "--metrics")
    assert (done.code, len(asked)) == (0, 1)
    assert done.err.count("registry.example: nobody answers") == 1
    assert "gpu did not say what it holds: no access" in done.err
    assert 'parbake_unanswered{kind="registry",who="registry.example"} 1.0' in done.out
    assert 'parbake_unanswered{kind="target",who="gpu"} 1.0' in done.out
    assert "parbake_image" not in done.out
    assert "parbake_oldest_bake_in_use_timestamp_seconds{" in done.out


@pytest.mark.usefixtures("repository")
def test_offline_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serving(monkeypatch)
    monkeypatch.setattr(rollout, "status", lambda _: asked.append("targets"))
    metrics = told("--offline")
    assert asked == []
    [oldest] = metrics["parbake_oldest_bake_in_use_timestamp_seconds"]
    assert (oldest["labels"]["artefact"], oldest["labels"]["known_by"]) == (NEW.artefact, "record")
    assert metrics["parbake_newest_bake_verified"][0]["value"] is False
    assert metrics["parbake_failed_verifications"] == [{"labels": {"name": "node"}, "value": 1}]


def test_a_cluster_tells_what_its_nodes_run_and_how_many_pods_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "artefacts").mkdir()
    made = observed.MADE
    newer = NEW.model_copy(update={"plan": NEW.plan.model_copy(update={"name": made.plan.name})})
    for each in (made, newer):
        records.write(tmp_path / "artefacts", each)
        (tmp_path / "artefacts" / each.artefact).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    serving(monkeypatch)
    replace_kubectl(monkeypatch)
    with listening(observed.shop().store, tmp_path) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        found = told("--from-cluster")
        [oldest] = found["parbake_oldest_bake_in_use_timestamp_seconds"]
        assert (oldest["labels"]["artefact"], oldest["labels"]["known_by"]) == (made.artefact, "cluster")
        shown = parbake("list", "--metrics", "--from-cluster").out
        assert f'parbake_pod_hit_ratio{{artefact="{made.artefact}"}} 0.8' in shown
        server.store.forbidden |= {("list", "nodes")}
        done = parbake("list", "--metrics", "--context", "prod")
    assert done.code == 0
    assert 'parbake_unanswered{kind="cluster",who="prod"} 1.0' in done.out
    assert "what the cluster's pods did is not known" in done.err
    done = parbake("list", "--metrics", "--offline", "--from-cluster", "--json")
    done.refused(2, "InputError", "asks nobody", hint="leave out")
