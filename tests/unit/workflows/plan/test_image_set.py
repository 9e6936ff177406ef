"""Images that follow a cluster: a choice from what pods run, a lock of it, and what happens where something is away."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from parbake.bakefile import load
from parbake.bakefile.image_set import ImageLock, lock_path, read_lock
from parbake.core.errors import (
    BakefileError,
    Denied,
    EnvironmentProblem,
    InputError,
    NoSuchImage,
    ParbakeError,
    RolloutError,
    Unreachable,
)
from parbake.core.events import Event, Events
from parbake.core.model import GIB, MIB, Descriptor, Image, Platform
from parbake.core.reference import Reference
from parbake.core.steady import MEMORY
from parbake.rollouts.cluster import Cluster
from parbake.workflows.plan import Session
from parbake.workflows.plan.image_set import Turn, following
from standins.traces import stacked

SIZES = {"base": 100 * MIB, "shop": 200 * MIB, "search": 300 * MIB, "batch": 400 * MIB}
IMAGES = {word: stacked(word, "base", word, sizes=SIZES) for word in ("shop", "search", "batch")}


class Registry:
    """Registries that have some images, and count what they are asked."""

    def __init__(self, **refused: ParbakeError) -> None:
        self.refused, self.pulls = refused, 0

    def head(self, name: Reference) -> Descriptor:
        return self._of(name).target

    def resolve(self, name: Reference, platform: Platform) -> Image:
        self.pulls += 1
        return self._of(name).model_copy(update={"platform": platform})

    def _of(self, name: Reference) -> Image:
        if name.repository in self.refused:
            raise self.refused[name.repository]
        if name.repository not in IMAGES:
            raise NoSuchImage(f"{name}: the registry has no repository {name.repository}")
        return IMAGES[name.repository].model_copy(update={"reference": name})

    def each(self, ask: Callable[[Reference], Any], names: Iterable[Reference]) -> list[Any]:
        return [ask(name) for name in names]


def pod(*images: str, node: str = "n1", namespace: str = "shop", phase: str = "Running", **spec: Any) -> dict[str, Any]:
    containers = [{"name": "app", "image": image} for image in images]
    metadata = {"name": "pod", "namespace": namespace}
    return {
        "metadata": metadata,
        "spec": {"nodeName": node, "containers": containers, **spec},
        "status": {"phase": phase},
    }


class Story:
    """A Bakefile that follows a cluster, turn by turn."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **cluster: Any) -> None:
        self.pods: list[Any] = []
        self.away: ParbakeError | None = None
        self.asked: list[str] = []
        self.said: list[str] = []
        self.file = folder / "parbake.yaml"
        self.write(cluster)
        self.registry = Registry()
        monkeypatch.setattr(Cluster, "each_pod", lambda _, namespace: self._pods(namespace))

    def write(self, cluster: dict[str, Any], **more: Any) -> None:
        said = {"version": 1, "base": "none", "images_from": {"cluster": {"budget": "40Gi", **cluster}}, **more}
        self.file.write_text(json.dumps(said))

    def _pods(self, namespace: str) -> Iterator[dict[str, Any]]:
        self.asked.append(namespace)
        if self.away:
            raise self.away
        yield from (each for each in self.pods if not namespace or each["metadata"]["namespace"] == namespace)

    def turn(self, *pods: dict[str, Any], how: Turn = "take") -> list[str]:
        """Take a turn with these pods; return the images of the bake."""
        self.pods, self.said = list(pods), []

        def hear(event: Event) -> None:
            if event.kind in {"note", "warning"}:
                self.said.append(event.text)

        run = Session(load(self.file), self.registry, Events(hear))  # type: ignore[arg-type]
        found = following(run, how)[0].images
        return [f"{each.reference.repository}{f'/{each.layers}' if each.layers else ''}" for each in found]

    @property
    def lock(self) -> ImageLock:
        found = read_lock(lock_path(self.file.parent / "artefacts", load(self.file).name))
        assert found
        return found


SHOP, SEARCH, BATCH = (f"registry.example/{word}:1" for word in IMAGES)


def test_the_images_of_pods_are_baked_and_a_lock_says_which_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(tmp_path, monkeypatch, min_pods=2, exclude=["*/batch:*"])
    pods = [
        pod(SHOP),
        pod(SHOP, node="n2"),
        pod(SEARCH),
        pod(BATCH),
        pod(BATCH),
        pod("no name!"),
        pod(SHOP, phase="Failed"),
    ]
    assert story.turn(*pods) == ["shop"]
    (locked,) = story.lock.images
    assert (locked.reference, locked.digest) == (Reference.parse(SHOP), IMAGES["shop"].target.digest)
    assert (locked.layers, locked.of_layers, locked.why) == (0, 2, "on 2 nodes")
    assert story.lock.left_out == {
        BATCH: "excluded",
        SEARCH: "1 pods run it, of 2 that are needed",
        "no name!": "it is no name of an image",
    }
    assert all(f"{name} is left out: {why}" in story.said for name, why in story.lock.left_out.items())
    assert [entry.reference.repository for entry in load(story.file).images] == ["shop"], "whoever reads the Bakefile"


def test_a_turn_without_a_change_pulls_nothing_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(tmp_path, monkeypatch)
    story.turn(pod(SHOP), pod("registry.example/gone:1"))
    first, pulls = story.lock, story.registry.pulls
    assert story.turn(pod(SHOP), pod(SHOP, node="n2"), pod("registry.example/gone:1")) == ["shop"]
    assert (story.said, story.registry.pulls) == ([], pulls)
    assert (story.lock.images, story.lock.changed) == (first.images, first.changed)


def test_what_no_pod_runs_any_more_goes_after_some_turns_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(tmp_path, monkeypatch)
    story.turn(pod(SHOP), pod(SEARCH))
    assert [story.turn(pod(SHOP)) for _ in range(MEMORY - 1)] == [["search", "shop"]] * (MEMORY - 1)
    assert story.turn(pod(SHOP)) == ["shop"]
    assert story.said == [f"{SEARCH} is not baked any more: no pod has run it in the last turns"]


def test_lowest_layers_are_baked_where_the_whole_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(tmp_path, monkeypatch, budget="300MiB")
    assert story.turn(pod(SHOP), pod(SEARCH, node="n2")) == ["search/1"]
    assert story.lock.images[0].of_layers == 2


def test_images_of_the_file_stay_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(tmp_path, monkeypatch)
    own = [{"reference": SHOP, "startup": {"up": "exit"}}, BATCH]
    story.write({"startups": {"registry.example/search": {"up": "exit"}}}, images=own)
    assert story.turn(pod(SHOP), pod(SEARCH)) == ["shop", "batch", "search"]
    assert [entry.startup is None for entry in load(story.file).images] == [False, True, False]


def test_a_plan_writes_nothing_and_only_the_named_namespaces_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(tmp_path, monkeypatch, namespaces=["shop", "data"])
    assert story.turn(pod(SHOP), pod(SEARCH, namespace="other"), how="show") == ["shop"]
    assert story.asked == ["shop", "data"]
    assert not (tmp_path / "artefacts").exists()


def test_the_last_choice_counts_while_the_cluster_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(tmp_path, monkeypatch)
    story.away = RolloutError("the cluster does not answer")
    with pytest.raises(EnvironmentProblem, match="there is no earlier choice: the cluster does not answer") as caught:
        story.turn()
    assert caught.value.exit_code == 1
    assert "kubectl get pods" in caught.value.hint
    story.away = None
    story.turn(pod(SHOP))
    lock, story.away = story.lock, RolloutError("the cluster does not answer")
    assert story.turn() == ["shop"]
    assert story.said[0].startswith("the cluster does not answer: the choice of")
    assert story.lock == lock, "it is no turn"


def test_an_image_that_a_registry_refuses_ends_the_turn_or_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(tmp_path, monkeypatch)
    story.registry = Registry(search=Denied("registry.example/search: access denied", hint="log in"))
    with pytest.raises(Denied, match="search: access denied") as caught:
        story.turn(pod(SHOP), pod(SEARCH))
    assert "missing: skip" in caught.value.hint
    assert not (tmp_path / "artefacts").exists(), "nothing"
    story.write({"missing": "skip"})
    assert story.turn(pod(SHOP), pod(SEARCH)) == ["shop"]
    assert f"{SEARCH} is left out: registry.example/search: access denied" in story.said


def test_a_registry_that_is_away_takes_no_image_out_of_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(tmp_path, monkeypatch)
    story.registry = Registry(search=Unreachable("no route"))
    assert story.turn(pod(SHOP), pod(SEARCH)) == ["shop"], "whatever hosts strangers' pods name"
    story.registry = Registry(shop=Unreachable("no route"))
    with pytest.raises(Unreachable):
        story.turn(pod(SHOP), pod(SEARCH))
    assert [str(each.reference) for each in story.lock.images] == [SHOP]


@pytest.mark.parametrize("odd", [{}, {"spec": []}, {"spec": {"nodeName": "n", "containers": [3, {"image": {"a": 1}}]}}])
def test_odd_pods_and_names_that_act_on_a_terminal_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: Any
) -> None:
    story = Story(tmp_path, monkeypatch)
    story.pods = []
    assert story.turn({"metadata": {"namespace": "shop"}, **odd}, pod("\x1b[2J\n::warning::", SHOP)) == ["shop"]
    assert all(text.isprintable() for text in story.said)


def test_a_thousand_images_are_bounded_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(tmp_path, monkeypatch)
    many = [f"registry.example/made-up{number}:1" for number in range(1000)]
    assert story.turn(pod(SHOP), pod(SHOP, node="n2"), *map(pod, many)) == ["shop"]
    assert len(story.said) < 30
    assert "500 others run on more nodes" in story.lock.left_out.values()
    assert len(story.lock.seen) == 500


@pytest.mark.parametrize("text", ["{", "{}", '{"version": 2}', " " * ((4 << 20) + 1)])
def test_a_lock_that_says_nothing_is_refused_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    story = Story(tmp_path, monkeypatch)
    story.turn(pod(SHOP))
    lock_path(tmp_path / "artefacts", load(story.file).name).write_text(text)
    with pytest.raises(InputError, match=r"\.images\.json") as caught:
        load(story.file)
    assert "remove it" in caught.value.hint


def test_no_image_at_all_is_an_error_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(tmp_path, monkeypatch, exclude=["*"])
    with pytest.raises(EnvironmentProblem, match="shop:1: excluded"):
        story.turn(pod(SHOP))


@pytest.mark.parametrize(
    ("cluster", "more", "says"),
    [
        ({"budget": "40"}, {}, "has no unit"),
        ({"budget": "auto"}, {}, "a budget is a size"),
        ({"namespaces": ["Shop"]}, {}, "is not a name of Kubernetes"),
        ({"min_pod": 1}, {}, "did you mean 'min_pods'"),
        ({}, {"platforms": ["linux/amd64", "linux/arm64"]}, "a Bakefile for each platform"),
        ({}, {"builder": "ec2", "base": {"eks": "al2023", "kubernetes": "1.36"}}, "write builder: ebs"),
    ],
)
def test_what_is_wrong_in_the_section_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], more: dict[str, Any], says: str
) -> None:
    story = Story(tmp_path, monkeypatch)
    story.write(cluster, **more)
    with pytest.raises(BakefileError) as caught:
        load(story.file)
    assert says in str(caught.value)


def test_a_budget_is_a_size_as_kubernetes_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(tmp_path, monkeypatch, budget="12Gi")
    asked = load(story.file).images_from
    assert asked
    assert asked.cluster.budget == 12 * GIB
