"""One Bakefile's artefacts in a store: brought to this machine, kept for the others, removed.

What a machine has is right where it says more of the same bytes (a verdict, a trace); otherwise the store is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from parbake.bakefile import Bakefile
from parbake.core import access
from parbake.core.errors import BadContent, DeadlineExceeded, EnvironmentProblem, InputError
from parbake.core.events import Events
from parbake.core.files import read_file
from parbake.core.signing import NotSigned, Signer, opened, public_key
from parbake.core.workspace import work_folder
from parbake.machine import disk
from parbake.records import folder
from parbake.records.held import NotAsRecorded, damage
from parbake.records.record import SUFFIX, Record
from parbake.records.store import leases, needs, trail
from parbake.records.store.entries import (
    ENTRIES,
    ENTRY_NAME,
    MOST_BYTES,
    OBJECT_NAME,
    OBJECTS,
    StoredFile,
    StoreEntry,
    entry_name,
    get_object,
    parse_entry,
    put_object,
)
from parbake.records.store.packs import PackIndex, fetch, send
from parbake.records.store.port import Store, StoredObject, listed, state_of

_ALIKE = 3  # the newest artefacts of the name, whose packs may have most of a new one's blocks
_THREADS = 8
_TRIES = 20  # writers who meet change an entry once each; more often, somebody keeps us from it
_GRACE = timedelta(days=1)  # an object that no entry names yet may be part of a bake that is under way


@dataclass(frozen=True, slots=True)
class _Found:
    """An entry with its record, as the store has them; ``text`` is the record's file."""

    held: StoredObject
    entry: StoreEntry
    record: Record
    text: bytes


class Shared:
    """A Bakefile's artefacts in a store. Calls that change ``output`` want ``records.in_use`` held.

    An entry that is damaged, or signed by no key in the Bakefile's ``trust`` (if it names any), does not count: with a
    warning, it is as if it were not there, and the next bake of its key replaces it.
    """

    def __init__(self, store: Store, bakefile: Bakefile, events: Events) -> None:
        self.store, self._events = store, events
        self._output, self._name, self._readable_by = bakefile.output, bakefile.name, bakefile.readable_by
        self._keys = [public_key(path) for path in bakefile.trust]

    def find(self, artefact: str) -> Record | None:
        """Return what the store has of an artefact; None where it has nothing that counts."""
        found = self._counting(artefact)
        return found.record if found else None

    def fetch(self, artefact: str, *, disk: bool = True) -> None:
        """Make ``output`` hold what the store has of an artefact, if anything; without ``disk`` not its own bytes.

        Raises DiskFull.
        """
        if found := self._counting(artefact):
            with self._ignoring():
                self._place(found, disk=disk)

    def put(self, record: Record, *, replacing: bool = False, again: bool = False) -> Record:
        """Put an artefact of ``output`` into the store; return the record that counts: the first one.

        With ``replacing`` whatever was there before gives way; with ``again`` a record of the same bytes does. So does
        what does not count: where there are keys to trust, only to what one of them has signed. Raises
        EnvironmentProblem where others keep changing it.
        """
        name = entry_name(record.artefact)
        for _ in range(_TRIES):
            held = state_of(self.store, name)
            found, wrong = None, ""
            try:
                found = self._read(held, record.artefact) if held else None
                if found and not replacing and (first := self._first(record, found, again=again)):
                    return first
            except BadContent as error:
                wrong = str(error)
            if wrong and self._keys and not self._is_signed_here(record):
                self._events.warn(f"{wrong}; no trusted key has signed this record either, so it is not stored")
                return record
            if wrong:
                self._events.warn(f"{wrong}: it is replaced")
            entry = self._sent(record, found, anew=bool(wrong))
            if held is None:
                kept = self.store.add(name, entry.text())
            else:
                kept = self.store.replace(name, entry.text(), held.version)
            if kept:
                return record
        raise self._busy(record.artefact)

    def amend(self, artefact: str, change: Callable[[Record], Record], signer: Signer | None) -> Record:
        """Let a record say more, in the store and here, as ``change`` says; what others add meanwhile stays.

        ``change`` gets it when it is here, with its signature, and may be asked again. Return what it is then. Raises
        InputError where the store has none, or where it is signed and nothing signs.
        """
        for _ in range(_TRIES):
            found = self._counting(artefact)
            if found is None:
                raise InputError(f"the store {self.store.url} has no record of {artefact}", hint="bake it first")
            self._place(found, disk=False)
            record = change(found.record)
            if record == found.record:
                return record
            folder.write(self._output, record, signer)
            entry = self._sent(record, found, anew=False)
            if self.store.replace(entry.name, entry.text(), found.held.version):
                return record
        raise self._busy(artefact)

    def refresh(self) -> None:
        """Fetch the records of all that lies in a cloud, and what others have added to records of artefacts here.

        One that is here with other bytes is replaced, as the first record counts: this machine was second, and died or
        was stopped before it took the first one over.
        """
        for found in self._all():
            here, mine = (self._output / found.record.artefact).exists(), self._mine(found.record.artefact)
            if not (found.record.published or here):
                continue
            second = here and mine is not None and not _same_bytes(mine, found.record)
            try:
                with (
                    self._ignoring(),
                    suppress(DeadlineExceeded),
                    folder.in_use(self._output, found.record.artefact, timeout=0),
                ):
                    self._place(found, disk=second)
            except (PermissionError, EnvironmentProblem) as error:  # a reader's; what is here can be shown all the same
                self._events.warn(f"{found.record.artefact}: not fetched from {self.store.url} ({error})")

    def records(self) -> tuple[Record, ...]:
        """Return the records of the Bakefile's artefacts in the store."""
        return tuple(found.record for found in self._all())

    def _all(self) -> tuple[_Found, ...]:
        there = [each.name for each in listed(self.store, f"{ENTRIES}{self._name}-", ENTRY_NAME)]
        names = [each.removeprefix(ENTRIES).removesuffix(SUFFIX) for each in there]
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(self._counting, names))
        return tuple(each for each in found if each and each.record.plan.name == self._name)

    def remove(self, artefacts: Iterable[str]) -> None:
        """Remove artefacts, whatever has been named by no entry for a day, and the old end of the trail.

        Where an entry is damaged, nobody knows what it named: then nothing of that goes, with a warning.
        """
        for artefact in artefacts:
            self.store.remove(entry_name(artefact))
        objects = list(listed(self.store, OBJECTS, OBJECT_NAME))  # first: what an entry names from now on is younger
        try:
            used = {name for each in listed(self.store, ENTRIES, ENTRY_NAME) for name in self._objects_of(each.name)}
        except BadContent as error:
            self._events.warn(f"{error}: until that is removed or replaced, no objects are removed from the store")
            used, objects = set(), []
        for each in objects:
            if each.name not in used and datetime.now(UTC) - each.modified > _GRACE:
                self.store.remove(each.name)
        leases.sweep(self.store, _GRACE)
        needs.sweep(self.store)
        trail.sweep(self.store, datetime.now(UTC))

    def _objects_of(self, name: str) -> Iterator[str]:
        """Yield the names of the objects that an entry of any Bakefile needs."""
        held = self.store.get(name)
        if held is None:
            return
        entry = parse_entry(held.content, name, self.store)
        files = [*entry.files.values(), *([entry.disk] if entry.disk else [])]
        if entry.disk:
            files += [pack.object for pack in self._index(entry).packs]
        yield from (f"{OBJECTS}{file.sha256}" for file in files)

    def _read(self, held: StoredObject, artefact: str) -> _Found:
        """Return what an entry says of an artefact; raises BadContent where it does not count."""
        name = entry_name(artefact)
        entry = parse_entry(held.content, name, self.store)
        if SUFFIX not in entry.files:
            raise BadContent(f"{name} in {self.store.url} names no record")
        text = get_object(self.store, entry.files[SUFFIX], artefact)
        try:
            record = folder.parse(text, self._output / f"{artefact}{SUFFIX}")
        except InputError as error:
            raise BadContent(f"{self.store.url}: {error.message}") from error
        if (record.artefact, record.key) != (entry.artefact, entry.key):
            raise BadContent(f"{name} in {self.store.url} holds the record of {record.artefact}")
        if self._keys and not self._is_signed(entry, text):
            raise BadContent(f"the record of {artefact} in {self.store.url} has the signature of no trusted key")
        return _Found(held, entry, record, text)

    def _counting(self, artefact: str) -> _Found | None:
        """Return what the store has of an artefact, if it counts."""
        with self._ignoring():
            held = state_of(self.store, entry_name(artefact))
            return self._read(held, artefact) if held else None
        return None

    @contextmanager
    def _ignoring(self) -> Iterator[None]:
        """Go on after the body where what the store has does not count, as if it had nothing."""
        try:
            yield
        except BadContent as error:
            self._events.warn(f"{error}: it is ignored")

    def _is_signed(self, entry: StoreEntry, text: bytes) -> bool:
        signed = entry.files.get(folder.ENVELOPE_SUFFIX)
        return signed is not None and self._signs(get_object(self.store, signed, entry.artefact), text)

    def _is_signed_here(self, record: Record) -> bool:
        envelope = self._output / f"{record.artefact}{folder.ENVELOPE_SUFFIX}"
        return envelope.exists() and self._signs(_read(envelope), folder.statement(record))

    def _signs(self, envelope: bytes, text: bytes) -> bool:
        with suppress(NotSigned):
            return opened(envelope, self._keys)[0] == text
        return False

    def _busy(self, artefact: str) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"{self.store.url}: other machines have changed the entry of {artefact} {_TRIES} times meanwhile",
            hint="run the same command again",
        )

    def _place(self, found: _Found, *, disk: bool) -> None:
        entry, record = found.entry, found.record
        artefact, mine = self._output / record.artefact, self._mine(record.artefact)
        same = mine is not None and _same_bytes(mine, record)
        needs_disk = entry.disk is not None and not (same and artefact.exists())
        if (needs_disk and not disk) or (mine and same and not needs_disk and _says_more(mine, record)):
            return
        if mine and folder.statement(mine) == found.text and not needs_disk:
            return
        with self._events.stage("store", f"Bring {record.artefact} from the store"):
            with ThreadPoolExecutor(_THREADS) as pool:
                contents = pool.map(partial(get_object, self.store, what=record.artefact), entry.files.values())
                files = dict(zip(entry.files, contents, strict=True))
            self._output.mkdir(parents=True, exist_ok=True)
            with work_folder(self._output, "store") as work:
                made = None
                if needs_disk:
                    made = work / record.artefact
                    self._fetch(found, made)
                folder.take_over(self._output, record, files, work, made=made)
            access.give(self._output, folder.everything(artefact), self._readable_by)

    def _fetch(self, found: _Found, made: Path) -> None:
        """Write an artefact's bytes into a file; raises BadContent unless they are what the record says."""
        index, record = self._index(found.entry), found.record
        fits = not record.blocks or index.blocks().digest() == record.blocks.digest
        if fits:
            fetch(self.store, index, made, self._events)
        if not record.blocks:
            fits = disk.sha256_file(made, self._events) == record.sha256
        if not fits:
            raise BadContent(
                f"the bytes of {record.artefact} in {self.store.url} do not match its record",
                hint="`parbake bake --force` bakes it again",
            )

    def _mine(self, artefact: str) -> Record | None:
        with suppress(InputError):
            return folder.read(self._output / f"{artefact}{SUFFIX}")
        return None

    def _sent(self, record: Record, found: _Found | None, *, anew: bool) -> StoreEntry:
        """Send the files of an artefact, and its bytes where the store has others or none; return its entry.

        With ``anew`` no bytes that the store has are relied on.
        """
        artefact = self._output / record.artefact
        with self._events.stage("store", f"Keep {record.artefact} in the store"):
            files = {
                path.name.removeprefix(record.artefact): put_object(self.store, _read(path))
                for path in folder.everything(artefact)[1:]
                if path.exists()
            }
            index: StoredFile | None = None
            if found and not anew and _same_bytes(record, found.record):
                index = found.entry.disk
            elif artefact.exists():
                listed = folder.blocks_of(artefact, record)
                if listed is None and (differs := damage(artefact, record, self._events)):
                    raise NotAsRecorded(artefact, differs)
                made = send(self.store, artefact, listed, () if anew else self._alike(record), self._events)
                index = put_object(self.store, made.model_dump_json().encode())
        return StoreEntry(artefact=record.artefact, key=record.key, files=files, disk=index)

    def _alike(self, record: Record) -> Iterator[PackIndex]:
        """Yield the indices of the newest artefacts of the same name."""
        there = listed(self.store, f"{ENTRIES}{self._name}-", ENTRY_NAME)
        newest = sorted(there, key=lambda each: each.modified, reverse=True)
        others = [each.name for each in newest if each.name != entry_name(record.artefact)]
        for name in others[:_ALIKE]:
            with suppress(BadContent):  # then its packs are of no use
                if held := self.store.get(name):
                    entry = parse_entry(held.content, name, self.store)
                    if entry.disk:
                        yield self._index(entry)

    def _index(self, entry: StoreEntry) -> PackIndex:
        assert entry.disk
        try:
            return PackIndex.model_validate_json(get_object(self.store, entry.disk, entry.artefact))
        except ValidationError as error:
            raise BadContent(
                f"{entry.artefact}: its index in {self.store.url} is damaged", hint="bake again"
            ) from error

    def _first(self, record: Record, found: _Found, *, again: bool) -> Record | None:
        """Return the record that counts instead of one here: that of who was first, whose artefact is taken over.

        Raises BadContent where its bytes are damaged.
        """
        same = _same_bytes(record, found.record)
        if found.text == folder.statement(record) or (same and not again and not _says_more(record, found.record)):
            return found.record
        if same:
            return None
        self._place(found, disk=True)
        ours = ", ".join(there.image or there.snapshots[0].id for there in record.published.values())
        left = f"; {ours} is not referred to by it, and `parbake prune --aws` removes it" if ours else ""
        self._events.warn(f"another machine has baked {record.artefact} first: its record counts{left}")
        return found.record


def _same_bytes(one: Record, other: Record) -> bool:
    """Whether two records are of one bake's result, whatever else they say of it."""
    return _identity(one) == _identity(other)


def _identity(record: Record) -> tuple[object, ...]:
    content = record.blocks.digest if record.blocks else record.sha256
    homes = [(region, there.image, there.snapshots) for region, there in record.published.items()]
    return record.started_at, content, homes[:1]


def _read(path: Path) -> bytes:
    try:
        return read_file(path, MOST_BYTES)
    except OSError as error:
        hint = "remove it; `parbake bake --force` bakes anew"
        raise InputError(f"cannot read {path}: {error.strerror}", hint=hint) from None


def _says_more(mine: Record, theirs: Record) -> bool:
    """Whether a record has a verdict or a trace that the other lacks; or a later verdict, of other startups."""
    if mine.verdict and theirs.verdict and mine.plan.startups != theirs.plan.startups:
        return mine.verdict.verified_at >= theirs.verdict.verified_at
    return bool((mine.verdict and not theirs.verdict) or (mine.trace and not theirs.trace))
