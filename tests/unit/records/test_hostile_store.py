"""A store that strangers write to: its links lead nowhere, its words end in parbake's own errors, whatever they are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parbake.core.errors import BadContent, EnvironmentProblem, InputError, ParbakeError
from parbake.core.events import Events
from parbake.fleet import audit, stores
from parbake.records.store import Need, held, identity_of, leases, needed, note, trail
from parbake.records.store.folder import FolderStore
from parbake.records.store.leases import Lease, LeaseClaim, StoreNotes
from parbake.records.store.port import MOST, ListedObject, Store, StoredObject, TooLarge
from parbake.records.store.shared import Shared
from standins.odd import odd_bytes, with_something_odd
from standins.shared_bakes import Machine, content
from standins.trees import untouched

HEX = "0123456789abcdef" * 4
NAMES = (
    "artefacts/node-0123456789ab.raw.json",
    f"objects/{HEX}",
    f"leases/{HEX}",
    f"notes/{HEX}.eu-west-1.0001-000000",
    "rollouts/shop.0123456789abcdef",
    "events/2020-01-02/030405.000000-shop-0123456789ab.json",
    f"quarantine/{HEX}",
    "probe/0123456789abcdef",
    "identity",
)
PLACES = sorted({"/".join(name.split("/")[:depth]) for name in NAMES for depth in (1, 2, 3)} | {".lock"})
OLD = 1_500_000_000


def lay_out(folder: Path) -> None:
    for name in (*NAMES, ".lock"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{folder.name}'s".encode())
        os.utime(path, (OLD, OLD))


def every_operation(store: Store, shared: Shared) -> Iterator[Callable[[], object]]:
    """All that reads, writes, lists and removes: the port's five verbs for each kind of object, and their callers."""
    for name in NAMES:
        yield lambda name=name: store.get(name)  # type: ignore[misc]
        yield lambda name=name: store.add(name, b"new")  # type: ignore[misc]
        yield lambda name=name: store.add(f"{name}0", b"new")  # type: ignore[misc]
        for seen in (b"outside's", b"store's"):
            version = hashlib.sha256(seen).hexdigest()
            yield lambda name=name, version=version: store.replace(name, b"new", version)  # type: ignore[misc]
        yield lambda name=name: list(store.list(name.rpartition("/")[0]))  # type: ignore[misc]
        yield lambda name=name: list(store.list(name))  # type: ignore[misc]
    yield lambda: list(store.list(""))
    yield lambda: identity_of(store, make=True)
    yield lambda: note(store, Need(fleet="shop"))
    yield lambda: trail.write(store, datetime.now(UTC), "shop", b"{}")
    yield lambda: trail.sweep(store, datetime.now(UTC))
    yield lambda: leases.sweep(store, timedelta())
    yield lambda: shared.remove(["node-0123456789ab.raw"])
    for name in NAMES:
        yield lambda name=name: store.remove(name)  # type: ignore[misc]


@pytest.mark.parametrize("place", PLACES)
def test_no_link_in_a_folder_store_leads_anywhere(place: str, tmp_path: Path) -> None:
    """A folder or file of a store that is a link: nothing behind it is read, listed, changed, touched or removed."""
    outside, there = tmp_path / "outside", tmp_path / "store"
    lay_out(outside)
    lay_out(there)
    planted = there / place
    planted.rename(tmp_path / "moved")
    planted.symlink_to(outside / place)
    machine = Machine(tmp_path / "one", str(there))
    before = untouched(outside)
    for operation in every_operation(machine.store, machine.shared):
        said: object = None
        with suppress(ParbakeError):
            said = operation()
        assert untouched(outside) == before
        assert not isinstance(said, StoredObject) or said.content != b"outside's"
        behind = outside / place
        if isinstance(said, list) and behind.is_dir():
            assert not any(isinstance(each, ListedObject) and each.name.startswith(f"{place}/") for each in said)


def test_a_link_in_a_folder_store_is_named(tmp_path: Path) -> None:
    outside, store = tmp_path / "outside", FolderStore(tmp_path / "store")
    lay_out(outside)
    store.add("identity", b"x")
    for name in ("objects", "leases"):
        (tmp_path / "store" / name).symlink_to(outside / name)
    with pytest.raises(EnvironmentProblem, match=r"'objects' in .* is a link, or not a folder"):
        list(store.list("objects/"))
    store.remove("identity")
    (tmp_path / "store/identity").symlink_to(outside / "identity")
    with pytest.raises(EnvironmentProblem, match="identity: it is a link"):
        store.get("identity")
    (tmp_path / "store/identity").unlink()
    os.mkfifo(tmp_path / "store/identity")
    with pytest.raises(EnvironmentProblem, match="identity: it is no file"):
        store.get("identity")
    assert [each.name for each in store.list("identity")] == []


def test_what_others_keep_in_the_folders_of_a_store_stays(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", str(tmp_path / "store"))
    store = tmp_path / "store"
    lay_out(store)
    strange = [
        store / each
        for each in ("objects/backup.tar", "leases/README", "notes/of-mine.txt", "rollouts/plan.md", "events/x/y.json",
                     "events/2020-13-99/030405.000000-shop-0123456789ab.json", "objects/deep/er/still")
    ]  # fmt: skip
    for path in strange:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        os.utime(path, (OLD, OLD))
    (store / NAMES[0]).unlink()  # no entry of parbake's
    machine.shared.remove([])
    assert [path for path in strange if not path.exists()] == []
    gone = [name for name in NAMES if not (store / name).exists()]
    assert gone == [*NAMES[:6]], "and what is parbake's own, and old, is gone"


@pytest.mark.parametrize("name", NAMES)
def test_an_object_of_a_terabyte_is_not_read(name: str, tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadContent, match=f"has more than {MOST} bytes"):
        store.get(name)


@pytest.mark.parametrize("at", [-(1 << 33), 1 << 33, 1 << 40])
def test_a_store_may_say_any_time(at: int, tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.add("leases/x", b"")
    with suppress(OSError):
        os.utime(tmp_path / "leases/x", (at, at))
    assert [each.name for each in store.list("leases/")] == ["leases/x"]


class Lying(Store):
    """A store in memory; it notes how much anybody would have read at most."""

    url = "lying"

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects, self.most = objects, 0

    def get(self, name: str, most: int = MOST) -> StoredObject | None:
        self.most = max(self.most, most)
        found = self.objects.get(name)
        if found is not None and len(found) > most:
            raise TooLarge(name, self.url, most, hashlib.sha256(found).hexdigest())
        return None if found is None else StoredObject(found, hashlib.sha256(found).hexdigest())

    def add(self, name: str, content: bytes) -> bool:
        return self.objects.setdefault(name, content) is content

    def replace(self, name: str, content: bytes, version: str) -> bool:
        if hashlib.sha256(self.objects.get(name, b"")).hexdigest() != version:
            return False
        self.objects[name] = content
        return True

    def list(self, prefix: str) -> Iterator[ListedObject]:
        for name, data in list(self.objects.items()):
            if name.startswith(prefix):
                yield ListedObject(name, len(data), datetime.now(UTC))

    def remove(self, name: str) -> None:
        self.objects.pop(name, None)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a store says of one artefact: its entry and index, its record, and its one pack."""
    folder = tmp_path_factory.mktemp("truth")
    machine = Machine(folder / "one", str(folder / "store"))
    made = machine.shared.put(machine.baked("app", content(1, blocks=4), passed=True))
    entry = json.loads((folder / "store/artefacts" / f"{made.artefact}.json").read_text())
    objects = {path.name: path.read_bytes() for path in (folder / "store/objects").iterdir()}
    index = json.loads(objects[entry["disk"]["sha256"]])
    return {
        "entry": entry,
        "index": index,
        "record": json.loads(objects[entry["files"][".json"]["sha256"]]),
        "objects": objects,
        "artefact": made.artefact,
        "key": made.key,
    }


def told(truth: dict[str, Any], lie: dict[str, Any]) -> Lying:
    """Return a store that says what a truth says but for one lie, with the digests of what it says."""
    objects = {f"objects/{name}": data for name, data in truth["objects"].items()}
    entry, index = json.loads(json.dumps(truth["entry"])), lie.get("index", truth["index"])

    def place(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        objects[f"objects/{digest}"] = data
        return {"sha256": digest, "size": len(data)}

    def text(document: object) -> bytes:
        return document if isinstance(document, bytes) else json.dumps(document).encode()

    if "pack" in lie:
        index = json.loads(json.dumps(index))
        index["packs"][0]["object"] = place(lie["pack"])
    entry["disk"] = place(text(index))
    entry["files"][".json"] = place(text(lie.get("record", truth["record"])))
    said = {f"artefacts/{truth['artefact']}.json": text(lie.get("entry", entry)), **objects}
    return Lying(said)


def every_reader(store: Store, machine: Machine, artefact: str, key: str) -> Iterator[Callable[[], object]]:
    shared = machine.shared
    shared.store = store
    yield lambda: shared.find(artefact)
    yield shared.records
    yield shared.refresh
    yield lambda: shared.fetch(artefact)
    yield lambda: held(store)
    yield lambda: needed(store)
    yield lambda: StoreNotes(store, f"{key}.eu-west-1", "me", lambda: None).read()
    yield lambda: LeaseClaim(store, key, "node", Events()).take()
    yield lambda: audit.last_rollout(store, "shop")
    yield lambda: stores.quarantined(store, key)
    yield lambda: identity_of(store)
    yield lambda: shared.remove([])


def read_all(store: Lying, machine: Machine, artefact: str, key: str) -> None:
    for reader in every_reader(store, machine, artefact, key):
        with suppress(ParbakeError):
            reader()
    assert store.most <= 256 << 20
    for path in machine.output.iterdir():
        path.unlink() if path.is_file() else None


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("lied-to")
        patch.setenv("PARBAKE_CACHE", str(folder / "cache"))
        patch.setattr(leases, "TTL", 0.0)
        yield Machine(folder / "one", str(folder / "store"))


@given(data=st.data())
@settings(max_examples=150)
def test_a_lying_store_ends_in_parbakes_own_errors(
    data: st.DataObject, truth: dict[str, Any], machine: Machine
) -> None:
    what = data.draw(st.sampled_from(["entry", "index", "record", "pack"]))
    lie = data.draw(odd_bytes) if what == "pack" else data.draw(odd_bytes | with_something_odd(truth[what]))
    read_all(told(truth, {what: lie}), machine, truth["artefact"], truth["key"])


LEASE = Lease(holder="h", host="h", what="node", run="0123456789ab", began="2026-01-01T00:00:00Z")
NOTES = {
    "leases/{key}": json.loads(LEASE.text()),
    "notes/{key}.eu-west-1.0001-000000": {"series": 1},
    "rollouts/shop.0123456789abcdef": json.loads(Need(fleet="shop", keys=("a",), held=("b",)).text()),
    "events/2020-01-02/030405.000000-shop-0123456789ab.json": {"version": 1, "at": "x", "what": "begun", "text": "y"},
    "quarantine/{key}": {"cell": "a", "error": "b", "message": "c"},
    "identity": "0123456789abcdef",
}


@pytest.mark.parametrize("content", [b"\xff", b"[]", b"{}", bytes(MOST + 1)], ids=["odd", "list", "empty", "large"])
def test_a_broken_lease_or_note_is_as_if_it_were_not_there(
    content: bytes, truth: dict[str, Any], machine: Machine
) -> None:
    store, key = told(truth, {}), truth["key"]
    places = {name.format(key=key) for name in NOTES} - {"identity"}
    store.objects |= dict.fromkeys(places, content)
    for reader in every_reader(store, machine, truth["artefact"], key):
        reader()
    note(store, Need(fleet="shop"))
    assert stores.quarantined(store, key) is None


@given(data=st.data())
@settings(max_examples=100)
def test_lying_leases_and_notes_end_in_parbakes_own_errors(
    data: st.DataObject, truth: dict[str, Any], machine: Machine
) -> None:
    store = told(truth, {})
    for name, document in NOTES.items():
        said = data.draw(odd_bytes | with_something_odd(document))
        store.objects[name.format(key=truth["key"])] = said if isinstance(said, bytes) else json.dumps(said).encode()
    store.objects[f"notes/{truth['key']}.eu-west-1.{data.draw(st.text(max_size=8))}"] = b"\xff"
    store.objects[f"leases/{data.draw(st.text(max_size=8))}"] = LEASE.text()
    read_all(store, machine, truth["artefact"], truth["key"])


@pytest.mark.parametrize("suffix", [".trace", ".blocks"])
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a large file"])
def test_what_others_put_beside_an_artefact_is_not_stored(tmp_path: Path, kind: str, suffix: str) -> None:
    one = Machine(tmp_path / "one", str(tmp_path / "store"))
    made = one.baked("app", content(1))
    path = one.output / f"{made.artefact}{suffix}"
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(InputError, match=f"cannot read .*{suffix}"):
        one.shared.put(made)
