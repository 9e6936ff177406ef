"""What rollouts need of a store is noted there, and pruning spares it: here, and in the store."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from parbake.records.store import Need, needed, note
from parbake.records.store.folder import FolderStore
from parbake.workflows import prune as retention
from parbake.workflows.prune.decide import RetentionRules
from standins.shared_bakes import Machine, content


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def test_the_next_rollout_writes_anew_what_the_last_one_needed(store: FolderStore) -> None:
    note(store, Need(fleet="shop", keys=("a" * 64,)))
    note(store, Need(fleet="shop", target="canary of web", keys=("a" * 64,), held=("ami-1", "snap-1")))
    note(store, Need(fleet="other", keys=("a" * 64, "b" * 64)))
    found = needed(store)
    assert found.pop("a" * 32).startswith("the last rollout of the fleet "), "of both"
    assert found == {
        "b" * 32: "the last rollout of the fleet other hands it out",
        "ami-1": "canary of web in the fleet shop would go back to it",
        "snap-1": "canary of web in the fleet shop would go back to it",
    }
    note(store, Need(fleet="shop", target="canary of web", held=("ami-2",)))
    note(store, Need(fleet="other"))
    found = needed(store)
    assert set(found) == {"a" * 32, "ami-2"}
    assert found["a" * 32] == "the last rollout of the fleet shop hands it out"


def test_what_was_noted_long_ago_or_by_somebody_else_counts_no_more(store: FolderStore, tmp_path: Path) -> None:
    old = Need(fleet="gone", held=("ami-1",))
    note(store, old)
    store.add("rollouts/shop.of-tomorrow", b'{"version": 2}')
    path = tmp_path / "store" / old.name
    before = path.stat().st_mtime - timedelta(days=91).total_seconds()
    os.utime(path, (before, before))
    assert needed(store) == {}
    machine = Machine(tmp_path / "one", store.url)
    machine.shared.remove([])
    assert [each.name for each in store.list("rollouts/")] == ["rollouts/shop.of-tomorrow"]


def test_artefacts_that_a_rollout_needs_stay_in_the_store(store: FolderStore, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", store.url)
    made = [machine.baked(word, content(number), at=number) for number, word in enumerate("abcd")]
    for each in made:
        machine.shared.put(each)
    note(store, Need(fleet="shop", keys=(made[0].key[:32],)))
    note(store, Need(fleet="shop", target="canary of node", keys=(made[0].key[:32],), held=(made[1].artefact,)))
    decided = retention.prune(machine.output, RetentionRules(keep=1), shared=machine.shared)
    reasons = {each.item.id: (each.action, each.reason) for each in decided}
    assert reasons == {
        made[0].artefact: ("keep", "the last rollout of the fleet shop hands it out"),
        made[1].artefact: ("keep", "canary of node in the fleet shop would go back to it"),
        made[2].artefact: ("remove", "older than the newest 1 of node"),
        made[3].artefact: ("keep", "among the newest 1 of node"),
    }
    assert {each.artefact for each in machine.shared.records()} == {
        made[0].artefact,
        made[1].artefact,
        made[3].artefact,
    }
