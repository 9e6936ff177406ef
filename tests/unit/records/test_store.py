"""What machines share through a store, here a folder; ``tests/aws`` does the same with S3."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parbake import records
from parbake.bakefile import load
from parbake.core.errors import BakefileError, EnvironmentProblem, InputError
from parbake.core.events import Events
from parbake.core.model import EBS_BLOCK, Published, Snapshot
from parbake.core.signing import Signer
from parbake.images.registry import Registry
from parbake.records.store import need_conditional_writes, open_store, session_store
from parbake.records.store.entries import entry_name
from parbake.records.store.folder import FolderStore
from parbake.records.store.port import MOST
from parbake.workflows import prune
from parbake.workflows.bake.sharing import make_and_share
from parbake.workflows.plan import BakeResult, Session, existing
from parbake.workflows.prune.decide import RetentionRules
from standins.keys import key_pair
from standins.plans import record
from standins.shared_bakes import PASSED, Machine, content


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Machine, Machine]:
    return Machine(tmp_path / "one", str(tmp_path / "store")), Machine(tmp_path / "two", str(tmp_path / "store"))


def objects(machine: Machine) -> dict[str, int]:
    return {each.name: each.size for each in machine.store.list("objects/")}


def test_of_writers_at_once_one_is_first(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    barrier, told = threading.Barrier(8), list[tuple[bytes, bool]]()

    def write(number: int) -> None:
        word = f"writer {number}".encode()
        barrier.wait()
        told.append((word, store.add("a/b", word)))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (first,) = [word for word, won in told if won]
    held = store.get("a/b")
    assert held is not None
    assert held.content == first
    assert [each.name for each in store.list("a/")] == ["a/b"]
    assert [path.name for path in (tmp_path / "store/a").iterdir()] == ["b"]


def test_an_object_is_replaced_only_by_who_has_seen_it(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    assert store.get("x") is None
    assert not store.replace("x", b"new", "whatever")
    assert store.add("x", b"one")
    held = store.get("x")
    assert held is not None
    assert store.replace("x", b"two", held.version)
    assert not store.replace("x", b"three", held.version)
    store.remove("x")
    store.remove("x")
    assert list(store.list("x")) == []


def test_a_folder_keeps_what_was_first(tmp_path: Path) -> None:
    need_conditional_writes(open_store(str(tmp_path)))
    assert list(open_store(str(tmp_path)).list("probe/")) == []


def test_a_store_that_overwrites_is_refused(tmp_path: Path) -> None:
    class Careless(FolderStore):
        def add(self, name: str, content: bytes) -> bool:
            self.remove(name)
            return super().add(name, content)

    (tmp_path / "probe").mkdir()
    with pytest.raises(EnvironmentProblem, match="ignores `If-None-Match`"):
        need_conditional_writes(Careless(tmp_path))


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "qcow2"])
def test_another_machine_has_every_byte(pair: tuple[Machine, Machine], raw: bool) -> None:
    one, two = pair
    disk = content(1)
    made = one.baked("app", disk, raw=raw)
    if not raw:
        made = made.model_copy(update={"sha256": hashlib.sha256(disk).hexdigest()})
        records.write(one.output, made)
    assert one.shared.put(made) == made
    two.shared.fetch(made.artefact)
    assert two.files() == one.files()
    there = (two.output / made.artefact).stat()
    assert there.st_blocks * 512 < len(disk) * 3 // 4, "its holes are holes again"
    two.said.clear()
    two.shared.fetch(made.artefact)
    assert two.said == [], "what is here already is not fetched again"


def test_what_nobody_has_stored_is_not_brought(pair: tuple[Machine, Machine]) -> None:
    one, two = pair
    made = one.baked("app", content(1))
    two.shared.fetch(made.artefact)
    assert two.files() == {}
    assert two.shared.find(made.artefact) is None


def test_a_small_change_sends_little(pair: tuple[Machine, Machine]) -> None:
    one, two = pair
    one.shared.put(one.baked("app", content(1, blocks=24)))
    before = objects(one)
    changed = one.baked("next", content(1, blocks=24, changed=4))
    one.shared.put(changed)
    sent = {name: size for name, size in objects(one).items() if name not in before}
    assert len(sent) == 4, "a record, a list of blocks, an index, and one pack"
    assert min(sent.values()) < 200, "of one block"
    two.shared.fetch(changed.artefact)
    assert (two.output / changed.artefact).read_bytes() == content(1, blocks=24, changed=4)


def test_who_comes_second_takes_over_the_first_record(pair: tuple[Machine, Machine]) -> None:
    one, two = pair
    first = one.baked("app", content(1), at=1, passed=True)
    second = two.baked("app", content(2), at=2)
    assert one.shared.put(first) == first
    assert two.shared.put(second) == first
    assert two.files() == one.files()
    assert two.warnings == [f"another machine has baked {first.artefact} first: its record counts"]


def test_who_was_second_and_died_shows_the_first_record(pair: tuple[Machine, Machine]) -> None:
    """Between its own record and the store's: it did not get to know that it is second."""
    one, two = pair
    first = one.baked("app", content(1), at=1, passed=True)
    one.shared.put(first)
    two.baked("app", content(2), at=2)
    two.shared.refresh()
    assert [found for _, found in records.find(two.output)] == [first]
    assert two.files() == one.files()


def test_force_replaces_what_was_first(pair: tuple[Machine, Machine]) -> None:
    one, two = pair
    one.shared.put(one.baked("app", content(1), at=1))
    second = two.baked("app", content(2), at=2)
    assert two.shared.put(second, replacing=True) == second
    one.shared.fetch(second.artefact)
    assert one.files() == two.files()


def test_two_bakes_in_a_cloud_leave_one_record_that_names_one_image(pair: tuple[Machine, Machine]) -> None:
    one, two = pair

    def published(machine: Machine, number: int) -> records.Record:
        snapshot = Snapshot(id=f"snap-{number}", size=1 << 30, device="/dev/xvda")
        there = {"eu-west-1": Published(image=f"ami-{number}", snapshots=(snapshot,))}
        made = record("app", at=number).model_copy(update={"published": there})
        records.write_published(made, machine.output)
        return machine.shared.put(made)

    assert published(one, 1).published == published(two, 2).published
    assert two.files() == one.files()
    (warning,) = two.warnings
    assert "ami-2 is not referred to by it, and `parbake prune --aws` removes it" in warning


def test_a_verdict_reaches_the_others(pair: tuple[Machine, Machine]) -> None:
    one, two = pair
    made = one.baked("app", content(1))
    one.shared.put(made)
    two.shared.fetch(made.artefact)
    proven = made.model_copy(update={"verdict": PASSED})
    records.write(two.output, proven)
    two.shared.fetch(made.artefact)
    assert records.read(two.output / made.file_name) == proven, "it says more than the store does"
    assert two.shared.put(proven) == proven
    before = (one.output / made.artefact).stat().st_ino
    one.shared.refresh()
    assert records.read(one.output / made.file_name) == proven
    assert (one.output / made.artefact).stat().st_ino == before, "its bytes are the same: they stay"
    again = proven.model_copy(update={"verdict": PASSED.model_copy(update={"boot_seconds": 3.0})})
    records.write(one.output, again)
    assert one.shared.put(again) == proven
    assert one.shared.put(again, again=True) == again


def test_what_several_machines_add_to_a_record_is_all_there(
    pair: tuple[Machine, Machine],
) -> None:
    """One adds a region while another is about to: it looks again, and what it writes has both."""
    one, two = pair
    there = Published(snapshots=(Snapshot(id="snap-1", size=1 << 30),))
    made = record("cloud").model_copy(update={"published": {"eu-west-1": there}})
    records.write_published(made, one.output)
    one.shared.put(made)

    def adding(region: str) -> Callable[[records.Record], records.Record]:
        return lambda found: found.model_copy(update={"published": {**found.published, region: there}})

    asked = []

    def slowly(found: records.Record) -> records.Record:
        asked.append(list(found.published))
        if len(asked) == 1:
            two.shared.amend(made.artefact, adding("us-east-1"), None)
        return adding("ap-south-1")(found)

    done = one.shared.amend(made.artefact, slowly, None)
    assert asked == [["eu-west-1"], ["eu-west-1", "us-east-1"]]
    assert list(done.published) == ["eu-west-1", "us-east-1", "ap-south-1"]
    assert records.read(one.output / made.file_name) == done
    two.shared.refresh()
    assert records.read(two.output / made.file_name) == done
    assert one.shared.amend(made.artefact, adding("us-east-1"), None) == done, "it says so already"
    with pytest.raises(InputError, match="has no record of"):
        one.shared.amend("node-other.raw", adding("us-east-1"), None)


def test_refresh_brings_only_what_lies_in_clouds_and_is_of_the_bakefile(pair: tuple[Machine, Machine]) -> None:
    one, two = pair
    one.shared.put(one.baked("app", content(1)))
    other = Machine(one.folder.parent / "three", one.store.url, name="node-b")
    snapshot = Snapshot(id="snap-1", size=1 << 30)
    for machine, name in ((one, "node"), (other, "node-b")):
        there = record("cloud", name=name).model_copy(
            update={"published": {"eu-west-1": Published(snapshots=(snapshot,))}}
        )
        records.write_published(there, machine.output)
        machine.shared.put(there)
    two.shared.refresh()
    (found,) = records.find(two.output)
    assert found[1].published
    assert found[1].plan.name == "node"


def damage(machine: Machine, name: str, content: bytes) -> None:
    (Path(machine.store.url) / name).write_bytes(content)


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "is not a store entry": lambda _: b"{}",
    "is the entry of": lambda true: {**true, "artefact": "node-other.raw"},
    "names no record": lambda true: {**true, "files": {}},
    "not a store entry": lambda true: {**true, "files": {"/../../x": true["files"][".json"], **true["files"]}},
    "has lost objects/0000": lambda true: {**true, "files": {".json": {"sha256": "0" * 64, "size": 1}}},
    "is not a parbake record": lambda true: {**true, "files": {".json": true["files"][".blocks"]}},
    "holds the record of": lambda true: {**true, "key": "0" * 64},
    "its index in": lambda true: {**true, "disk": true["files"][".json"]},
    "has more than 1 bytes": lambda true: {**true, "files": {".json": {**true["files"][".json"], "size": 1}}},
    "is not a store entry: 1 validation error": lambda _: bytes(MOST + 1),
}


@pytest.mark.parametrize("words", LIES)
def test_a_damaged_entry_does_not_count_and_the_next_bake_replaces_it(
    pair: tuple[Machine, Machine], words: str
) -> None:
    one, two = pair
    made = one.baked("app", content(1))
    one.shared.put(made)
    held = one.store.get(entry_name(made.artefact))
    assert held is not None
    lie = LIES[words](json.loads(held.content))
    damage(one, entry_name(made.artefact), lie if isinstance(lie, bytes) else json.dumps(lie).encode())
    two.shared.fetch(made.artefact)
    two.shared.refresh()
    assert two.files() == {}
    assert any(words in said and "it is ignored" in said for said in two.warnings)
    mine = two.baked("app", content(2), at=2)
    assert two.shared.put(mine) == mine
    assert any(words in said and "it is replaced" in said for said in two.warnings)
    one.said.clear()
    one.shared.fetch(mine.artefact)
    assert (one.files(), one.warnings) == (two.files(), [])


@pytest.mark.parametrize("moment", ["before", "after"])
def test_bytes_that_others_have_put_into_a_store_are_replaced(pair: tuple[Machine, Machine], moment: str) -> None:
    """Under the digests of what will be made, or of what was."""
    one, two = pair
    made = one.baked("app", content(1))
    one.shared.put(made)
    if moment == "before":
        one.store.remove(entry_name(made.artefact))
    for name in objects(one):
        damage(one, name, bytes(MOST + 1) if name > "objects/8" else b"other bytes")
    if moment == "after":
        two.shared.fetch(made.artefact)
        assert two.files() == {}
        made = two.baked("app", content(1), at=2)
    (one if moment == "before" else two).shared.put(made)
    for machine in pair:
        machine.shared.fetch(made.artefact)
    assert one.files() == two.files()
    assert records.read(one.output / made.file_name) == made


def test_bytes_that_are_not_those_of_the_record_are_not_taken(pair: tuple[Machine, Machine]) -> None:
    one, two = pair
    first, other = one.baked("app", content(1)), one.baked("other", content(2))
    for each in (first, other):
        one.shared.put(each)
    held, strange = (one.store.get(entry_name(each.artefact)) for each in (first, other))
    assert held
    assert strange
    swapped = {**json.loads(held.content), "disk": json.loads(strange.content)["disk"]}
    damage(one, entry_name(first.artefact), json.dumps(swapped).encode())
    two.shared.fetch(first.artefact)
    assert "do not match its record" in two.warnings.pop()
    damage(one, entry_name(first.artefact), held.content)
    for name in objects(one):
        damage(one, name, b"other bytes")
    two.shared.fetch(first.artefact)
    assert "has other bytes" in two.warnings.pop()
    assert two.files() == {}


def test_while_an_entry_is_damaged_prune_removes_no_objects(pair: tuple[Machine, Machine]) -> None:
    one, two = pair
    made = one.baked("app", content(1))
    one.shared.put(made)
    everything = objects(one)
    for name in everything:
        os.utime(Path(one.store.url) / name, (0, 0))
    damage(one, entry_name(made.artefact), b"{}")
    two.shared.remove(())
    assert objects(one) == everything
    assert "no objects are removed" in two.warnings[-1]


def test_prune_removes_from_the_store_what_no_entry_names(pair: tuple[Machine, Machine]) -> None:
    one, two = pair
    gone, stays = one.baked("app", content(1), at=1), one.baked("next", content(2), at=2)
    for each in (gone, stays):
        one.shared.put(each)
    everything = objects(one)
    rules = RetentionRules(keep=1)
    assert [each.action for each in prune.prune(two.output, rules, shared=two.shared, dry_run=True)] == [
        "keep",
        "remove",
    ]
    assert prune.prune(two.output, rules, shared=two.shared)[1].action == "remove"
    assert [record.artefact for record in one.shared.records()] == [stays.artefact]
    assert objects(one) == everything, "a bake that is under way may be about to name them"
    long_ago = time.time() - 3 * 24 * 3600
    for name in everything:
        os.utime(Path(one.store.url) / name, (long_ago, long_ago))
    one.shared.remove(())
    assert 0 < len(objects(one)) < len(everything)
    two.shared.fetch(stays.artefact)
    assert (two.output / stays.artefact).read_bytes() == content(2)


def test_an_artefact_that_changes_meanwhile_is_not_stored(pair: tuple[Machine, Machine]) -> None:
    one, _ = pair
    made = one.baked("app", content(1))
    with (one.output / made.artefact).open("r+b") as file:
        file.seek(5 * EBS_BLOCK)
        file.write(b"!")
        file.seek(6 * EBS_BLOCK)
        file.write(b"!")
    with pytest.raises(Exception, match="changed while it was stored") as caught:
        one.shared.put(made)
    assert "parbake verify" in caught.value.hint  # type: ignore[attr-defined]
    assert one.shared.records() == ()


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("s3:/bucket", None),
        ("s3://B", "'s3://B' is not the URL of an S3 bucket (write s3://BUCKET/PREFIX, or a folder)"),
        ("https://x/y", "'https://x/y' is not the URL of an S3 bucket"),
        ("''", "an empty path"),
        ("parbake.yaml", "is a file"),
        ("[a]", "must be text, not a list"),
    ],
)
def test_what_store_says_in_a_bakefile(tmp_path: Path, address: str, problem: str | None) -> None:
    file = tmp_path / "parbake.yaml"
    file.write_text(f"version: 1\nimages: [r.example/app:1]\nstore: {address}\n")
    if problem is None:
        assert load(file).store == str(tmp_path / address)
        return
    with pytest.raises(BakefileError) as caught:
        load(file)
    assert problem in str(caught.value)
    assert "line 3: store" in str(caught.value)


def test_no_store_is_none(tmp_path: Path) -> None:
    file = tmp_path / "parbake.yaml"
    file.write_text("version: 1\nimages: [r.example/app:1]\n")
    assert session_store(load(file)) is None


class TestTrust:
    """A store that others write to, and a Bakefile that trusts keys."""

    @pytest.fixture
    def signer(self, tmp_path: Path, pair: tuple[Machine, Machine]) -> Signer:
        made = key_pair(tmp_path)
        trusting = pair[1].file
        trusting.write_text(trusting.read_text() + f"trust: [{tmp_path}/key.pub]\nsign: {{key: {tmp_path}/key.pem}}\n")
        return made

    @pytest.mark.usefixtures("signer")
    def test_what_nobody_trusted_signed_does_not_count(self, pair: tuple[Machine, Machine]) -> None:
        stranger, two = pair
        first = stranger.baked("app", content(1))
        stranger.shared.put(first)
        two.shared.fetch(first.artefact)
        two.shared.refresh()
        assert (two.files(), two.shared.find(first.artefact), two.shared.records()) == ({}, None, ())
        assert "has the signature of no trusted key: it is ignored" in two.warnings[0]

    def test_a_signing_bake_replaces_it_and_ends(self, pair: tuple[Machine, Machine], signer: Signer) -> None:
        stranger, two = pair
        first = stranger.baked("app", content(1), at=1)
        stranger.shared.put(first)
        bakes: list[records.Record] = []

        def bake(*_: object, **__: object) -> BakeResult:
            """Go on from what is trusted, as a bake does, or make it."""
            assert len(bakes) < 4, "it starts again for ever"
            found = existing(two.output, first.plan, run.events, trust=run.trusted)
            if found:
                return found
            bakes.append(two.baked("app", content(2), at=2))
            records.write(two.output, bakes[-1], signer)
            return BakeResult(two.output / first.artefact, bakes[-1], changed=True)

        run = Session(load(two.file), Registry(events=Events()), Events(two.said.append), signer=signer)
        done = make_and_share(run, first.plan, bake, force=False)
        assert (len(bakes), done.record, done.changed) == (1, bakes[0], True)
        assert any("it is replaced" in each for each in two.warnings)
        stranger.shared.fetch(first.artefact)
        assert records.read(stranger.output / first.file_name) == bakes[0]
        assert two.shared.records() == (bakes[0],)

    @pytest.mark.usefixtures("signer")
    def test_what_is_not_signed_here_either_is_not_stored(self, pair: tuple[Machine, Machine]) -> None:
        stranger, two = pair
        stranger.shared.put(stranger.baked("app", content(1)))
        mine = two.baked("app", content(2), at=2)
        assert two.shared.put(mine) == mine
        assert "no trusted key has signed this record either, so it is not stored" in two.warnings[0]


def test_a_store_that_others_keep_changing_ends_in_words(
    pair: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = pair
    made = one.baked("app", content(1))
    one.shared.put(made)
    monkeypatch.setattr(FolderStore, "replace", lambda *_: False)
    with pytest.raises(EnvironmentProblem, match="have changed the entry of"):
        one.shared.put(made, replacing=True)
    with pytest.raises(EnvironmentProblem, match="have changed the entry of"):
        one.shared.amend(made.artefact, lambda found: found.model_copy(update={"builder": "other"}), None)


def test_a_bake_whose_record_is_always_another_ends(pair: tuple[Machine, Machine]) -> None:
    """Whatever the reason: here somebody writes another record each time that this machine is done."""
    one, two = pair
    run, turns = Session(load(two.file), Registry(events=Events()), Events()), list[int]()
    first = one.baked("app", content(1))

    def bake(*_: object, **__: object) -> BakeResult:
        turns.append(len(turns) + 1)
        assert len(turns) < 50, "it starts again for ever"
        one.shared.put(one.baked("app", content(1), at=len(turns)), replacing=True)
        made = two.baked("app", content(2), at=30 + len(turns))
        return BakeResult(two.output / made.artefact, made, changed=True)

    with pytest.raises(EnvironmentProblem, match="was another one 5 times"):
        make_and_share(run, first.plan, bake, force=False)
