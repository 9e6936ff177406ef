"""A set of images that follows a cluster: whatever the cluster does, few turns change it."""

from __future__ import annotations

from collections import Counter
from itertools import cycle, islice, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from parbake.core.model import MIB
from parbake.core.reference import Reference
from parbake.core.steady import MEMORY, demand, remember, settle
from parbake.core.suggestion import Pick
from standins.traces import stacked

WORDS = ("one", "two", "three", "four", "five")
SIZES = {"base": 100 * MIB, **{word: (number + 1) * 100 * MIB for number, word in enumerate(WORDS)}}
IMAGES = {image.reference: image for image in (stacked(word, "base", word, sizes=SIZES) for word in WORDS)}
ONE, TWO, THREE, *_ = IMAGES
AMPLE, TIGHT = 10_000 * MIB, 1_000 * MIB

type Cluster = dict[Reference, int]
clusters = st.dictionaries(st.sampled_from(sorted(IMAGES, key=str)), st.integers(1, 20), max_size=5)


def sets(turns: list[Cluster], budget: int) -> list[dict[Reference, int]]:
    """Return the set of each turn, of what so many nodes run of each image."""
    counts: dict[Reference, tuple[int, ...]] = {}
    kept, calm, found = list[Pick](), 0, list[dict[Reference, int]]()
    for now in turns:
        counts = remember(counts, now)
        together = Counter({frozenset({name}): nodes for name, nodes in now.items()})
        settled = settle([each for each in kept if each.image.reference in counts], calm,
                         demand(together, counts, IMAGES), budget)  # fmt: skip
        kept, calm = list(settled.choice.picks), settled.calm
        assert settled.choice.size <= budget
        found.append({pick.image.reference: pick.layers for pick in kept})
    return found


def changes(found: list[dict[Reference, int]]) -> int:
    return sum(one != two for one, two in pairwise(found))


@settings(max_examples=25)
@given(st.lists(clusters, min_size=1, max_size=MEMORY), st.sampled_from([AMPLE, TIGHT, 300 * MIB]))
def test_what_comes_and_goes_within_the_turns_that_count_ends_in_one_set(period: list[Cluster], budget: int) -> None:
    found = sets(list(islice(cycle(period), 20)), budget)
    assert changes(found[MEMORY * 2 :]) == 0
    assert changes(found) <= 2 * MEMORY


@settings(max_examples=25)
@given(st.lists(clusters, min_size=20, max_size=20))
def test_images_that_fit_only_come_once_and_go_after_turns_without_them(turns: list[Cluster]) -> None:
    found = sets(turns, AMPLE)
    for name in IMAGES:
        came = [name in each for each in found]
        assert sum(two and not one for one, two in zip([False, *came], came, strict=False)) <= 1 + 20 // MEMORY
        for at in range(MEMORY, 20):
            assert came[at] == any(name in each for each in turns[at - MEMORY + 1 : at + 1])


@settings(max_examples=25)
@given(st.lists(clusters, min_size=20, max_size=20), st.sampled_from([TIGHT, 300 * MIB]))
def test_layers_of_images_in_use_are_pushed_out_rarely(turns: list[Cluster], budget: int) -> None:
    held = [{layer.chain_id for name, layers in each.items() for layer in IMAGES[name].layers[:layers]}
            for each in sets(turns, budget)]  # fmt: skip
    pushed = []
    for at in range(1, 20):
        used = {name for each in turns[max(0, at - MEMORY + 1) : at + 1] for name in each}
        if (held[at - 1] - held[at]) & {layer.chain_id for name in used for layer in IMAGES[name].layers}:
            pushed.append(at)
    assert all(two - one > MEMORY for one, two in pairwise(pushed))


def test_a_newcomer_pushes_an_image_out_only_where_it_saves_clearly_more() -> None:
    slightly = [{ONE: 10}] * 6 + [{ONE: 10, TWO: 5}] * 6
    clearly = [{ONE: 10}] * 6 + [{ONE: 10, TWO: 50}] * 6
    assert ONE in sets(slightly, 900 * MIB)[-1]
    assert TWO in sets(clearly, 900 * MIB)[-1]
    assert ONE not in sets(clearly, 900 * MIB)[-1] or sets(clearly, 900 * MIB)[-1][ONE] == 1


def test_an_image_that_has_grown_out_of_the_budget_makes_a_new_choice() -> None:
    kept = [Pick(IMAGES[THREE], 2)]
    started = demand(Counter({frozenset({THREE}): 1, frozenset({ONE}): 1}), {}, IMAGES)
    assert {pick.image.reference for pick in settle(kept, 0, started, 600 * MIB).choice.picks} == {ONE}
