"""Leases and notes in a store, here a folder: who has a key, who waits, who takes over, and who must stop."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from parbake.core.errors import ClaimLost, EnvironmentProblem
from parbake.core.events import Event, Events
from parbake.records.store import leases
from parbake.records.store.folder import FolderStore
from parbake.records.store.leases import LeaseClaim, StoreNotes, claimed, held
from parbake.records.store.port import MOST, StoredObject
from standins import machines
from standins.machines import elsewhere, on

KEY = "c" * 64
NAME = "node-kkkkkkkkkkkk"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Times that do not last, and machines that are words."""
    machines.install(monkeypatch, tmp_path / "machines")


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def dead(store: FolderStore, machine: str) -> LeaseClaim:
    """Return the claim of a machine that gives no further sign of life, by itself."""
    with on(machine):
        claim = LeaseClaim(store, KEY, NAME, Events())
        claim.take()
    return claim


def test_of_two_at_once_one_waits_for_the_other(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines.install(monkeypatch, tmp_path / "machines", ttl=4.0)
    said, order, runs = list[Event](), list[str](), list[str]()
    told = threading.Event()

    def tell(event: Event) -> None:
        said.append(event)
        told.set()

    def second() -> None:
        with claimed(store, KEY, NAME, Events(tell)) as claim:
            order.append("two")
            runs.append(claim.run)

    with claimed(store, KEY, NAME, Events()) as claim:
        runs.append(claim.run)
        other = elsewhere(second, "two")
        assert told.wait(120)
        threading.Event().wait(4.5)  # longer than a dead one would be waited for
        claim.need()
        order.append("one")
    other.join()
    assert order == ["one", "two"]
    assert runs[0] != runs[1], "it is another run"
    assert len(said) == 1
    assert re.fullmatch(rf"\S+ has been baking {NAME} since \S+Z: waiting for it", said[0].text)
    assert held(store) == {}


def test_a_dead_holder_is_taken_over_and_its_run_goes_on(store: FolderStore) -> None:
    before = dead(store, "one")
    with on("two"), claimed(store, KEY, NAME, Events()) as claim:
        assert (claim.run, claim.began) == (before.run, before.began)
        assert held(store)[KEY].attempt == 2
        with pytest.raises(ClaimLost, match=r"has taken over, since this machine has not responded"):
            before.need()
        before.release()
        claim.need()
        assert held(store)[KEY].holder == "two", "what was lost is not given up"


def test_what_died_here_is_taken_over_at_once(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "TTL", 1e9)
    before = dead(store, "one")
    with claimed(store, KEY, NAME, Events()) as claim:
        assert claim.run == before.run


def test_a_run_that_began_long_ago_is_not_gone_on_with(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has made would expire while it is worked on."""
    before = dead(store, "one")
    monkeypatch.setattr(leases, "_SAME_RUN", timedelta())
    with claimed(store, KEY, NAME, Events()) as claim:
        assert claim.run != before.run


def test_a_frozen_holder_finds_that_it_is_none(store: FolderStore) -> None:
    frozen = dead(store, "one")
    with on("two"), claimed(store, KEY, NAME, Events()):
        pass
    with pytest.raises(ClaimLost, match=r"its lease is gone|has taken over"):
        frozen.need()
    with pytest.raises(ClaimLost):
        frozen.notes("eu-west-1").add("a line\n")


def test_a_frozen_holder_whom_nobody_took_over_goes_on(store: FolderStore) -> None:
    claim = dead(store, "one")
    threading.Event().wait(0.4)
    claim.need()
    assert held(store)[KEY].beat == 1


def test_the_next_holder_begins_anew(store: FolderStore) -> None:
    with claimed(store, KEY, NAME, Events()) as claim:
        first = claim.run
    with on("two"), claimed(store, KEY, NAME, Events()) as claim:
        assert claim.run != first


class Forgetful(FolderStore):
    """A store whose answers to writes are lost: what was tried again finds its own."""

    def add(self, name: str, content: bytes) -> bool:
        super().add(name, content)
        return False

    def replace(self, name: str, content: bytes, version: str) -> bool:
        super().replace(name, content, version)
        return False


def test_answers_that_are_lost_are_no_loss(tmp_path: Path) -> None:
    store = Forgetful(tmp_path / "store")
    with claimed(store, KEY, NAME, Events()) as claim:
        threading.Event().wait(0.1)
        claim.need()
        claim.notes("x").begin("{}")
    assert held(store) == {}


class Sick(FolderStore):
    sick = False

    def get(self, name: str, most: int = MOST) -> StoredObject | None:
        if self.sick:
            raise EnvironmentProblem("the store cannot be asked")
        return super().get(name, most)


def test_a_store_that_cannot_be_asked_for_a_while_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, now = Sick(tmp_path / "store"), [100.0]
    monkeypatch.setattr(leases, "_now", lambda: now[0])
    monkeypatch.setattr(leases, "TTL", 60.0)
    monkeypatch.setattr(leases, "RENEWAL", 15.0)
    claim = dead(store, "one")
    store.sick = True
    now[0] += 30
    claim.need()
    now[0] += 30
    with pytest.raises(EnvironmentProblem, match="cannot be asked"):
        claim.need()
    store.sick = False
    claim.need()


def test_a_lease_that_is_none_is_replaced(store: FolderStore) -> None:
    store.add(f"leases/{KEY}", b"not a lease")
    assert held(store) == {}
    with claimed(store, KEY, NAME, Events()):
        assert list(held(store)) == [KEY]


def notes(store: FolderStore, need: Callable[[], None] = lambda: None) -> StoreNotes:
    return StoreNotes(store, f"{KEY}.eu-west-1", "me", need)


def test_notes_are_read_by_whoever_goes_on(store: FolderStore) -> None:
    one, two = notes(store), notes(store)
    assert one.read() == ""
    one.begin("first")
    one.add("a\nb\n")
    assert two.read() == "first\na\nb\n"
    two.add("c\n")
    with pytest.raises(ClaimLost, match="another machine has continued"):
        one.add("late\n")
    assert notes(store).read() == "first\na\nb\nc\n"
    assert two.series == 2
    two.begin("second")
    assert notes(store).read() == "second\n"
    two.forget()
    assert notes(store).read() == "{}\n"
    assert two.series == 4, "no number comes again"


def test_what_nobody_needs_any_more_is_swept(store: FolderStore) -> None:
    notes(store).begin("{}")
    with claimed(store, KEY, NAME, Events()):
        leases.sweep(store, timedelta(seconds=-1))
        assert len(list(store.list("leases/"))) == 1
        assert len(list(store.list("notes/"))) == 1, "somebody works on it"
    leases.sweep(store, timedelta(days=1))
    assert len(list(store.list("notes/"))) == 1
    leases.sweep(store, timedelta(seconds=-1))
    assert [*store.list("leases/"), *store.list("notes/")] == []


def test_a_machine_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    name = leases.this_machine()
    assert leases.this_machine() == name
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "other"))
    assert leases.this_machine() != name
    monkeypatch.setattr(leases, "_BOOT_ID", tmp_path / "none")
    assert leases.this_machine()
