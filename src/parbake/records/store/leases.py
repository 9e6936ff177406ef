"""Leases: which machine bakes a content key now, as objects of the store, so that no key is published twice.

A lease is one object that its holder writes anew again and again. Whoever else wants the key watches it: when it has
stayed the same for ``TTL`` seconds, by the clock of the one who watches, its holder is dead or frozen, and the watcher
takes it over by a conditional write. No two machines' clocks are compared. A holder that was frozen finds at its next
call that another one has the lease, and stops.
"""

from __future__ import annotations

import contextvars
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from parbake.core import atomic
from parbake.core.errors import ClaimLost, ParbakeError
from parbake.core.events import Events
from parbake.core.files import open_file, read_bounded
from parbake.core.model import Frozen
from parbake.core.run import sleep
from parbake.core.timestamps import read_timestamp, timestamp
from parbake.core.workspace import cache_folder, lock, part_of
from parbake.records.store.port import Store, listed, state_of

FOLDER = "leases/"
_NAME = re.compile(rf"{FOLDER}[0-9a-f]{{64}}(\.[a-z0-9-]+)?")
NOTES = "notes/"
_NOTE = re.compile(rf"{NOTES}[0-9a-f]{{64}}\.[A-Za-z0-9._-]+\.(?P<series>[0-9]{{4}})-[0-9]{{6}}")
TTL = 60.0
"""Seconds without a sign of life after which a holder counts as dead."""
RENEWAL = 15.0
"""Seconds between its signs of life."""
LOOK = 3.0
"""Seconds between looks of whoever waits."""
_SPARED = timedelta(minutes=10)  # clocks of machines and stores differ; what a dead one has left may wait so long
_SAME_RUN = timedelta(hours=1)  # what a run has made expires some hours after it began
_MOST = 1 << 53  # as far as every reader of JSON counts
_LONGEST_WAIT = 24 * 3600.0
_MACHINE, _LONGEST_NAME = re.compile(r"[0-9a-f]{16}"), 64
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Lease(Frozen):
    """Who bakes a key. ``beat`` counts signs of life; ``free``: nobody does any more.

    ``attempt`` counts the machines that have had it, ``run`` and ``began`` are those of the first that was not done.
    """

    version: Literal[1] = 1
    holder: str
    host: str
    what: str
    run: str
    began: str
    attempt: int = Field(default=1, ge=1, le=_MOST)
    beat: int = Field(default=0, ge=0, le=_MOST)
    free: bool = False

    def text(self) -> bytes:
        """Return the content of its object."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def this_machine() -> str:
    """Return a name of this machine that no other has: machines that were cloned differ by their boot."""
    path, own = part_of(cache_folder(), "claims") / "machine", ""
    with suppress(OSError, UnicodeDecodeError), open_file(path, links=False) as file:
        own = read_bounded(file, _LONGEST_NAME).decode().strip()
    if not _MACHINE.fullmatch(own):  # others can see it: what somebody has put there may be no secret of ours
        own = os.urandom(8).hex()
        atomic.replace(path, f"{own}\n")
    with suppress(OSError):
        return f"{own}.{_BOOT_ID.read_text().strip()[:8]}"
    return own


def held(store: Store) -> dict[str, Lease]:
    """Return the leases that machines hold now, by content key; those of the dead for some minutes longer.

    That of a copy is named by the key and its region, ``KEY.REGION``.
    """
    found = {}
    for each in listed(store, FOLDER, _NAME):
        if datetime.now(UTC) - each.modified < _SPARED and (there := state_of(store, each.name)):
            lease = _parsed(there.content)
            if lease and not lease.free:
                found[each.name.removeprefix(FOLDER).partition(".")[0]] = lease
    return found


def _parsed(content: bytes) -> Lease | None:
    with suppress(ValidationError):
        return Lease.model_validate_json(content)
    return None


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # it goes on while a machine is suspended


class LeaseClaim:
    """A key that this machine has, by a lease. Made by ``claimed``."""

    def __init__(self, store: Store, key: str, what: str, events: Events) -> None:
        self._store, self._key, self._what, self._events = store, key, what, events
        self._name, self._holder = f"{FOLDER}{key}", this_machine()
        self._lease = self._new(None)
        self._confirmed = 0.0
        self._lost = ""
        self._writing = threading.RLock()

    @property
    def run(self) -> str:
        """The run's random word."""
        return self._lease.run

    @property
    def began(self) -> datetime | None:
        """When the run began."""
        return read_timestamp(self._lease.began)

    def notes(self, what: str) -> StoreNotes:
        """Return what machines have noted of a part of the work."""
        return StoreNotes(self._store, f"{self._key}.{what}", self._holder, self.need)

    def take(self) -> None:
        """Get the lease; wait while another machine holds it and gives signs of life. Raises what asking raises."""
        seen, since, noticed = b"", 0.0, False
        while True:
            there = state_of(self._store, self._name)
            lease = _parsed(there.content) if there else None
            if there and lease and not lease.free and lease.holder != self._holder:
                if not noticed:
                    self._events.note(f"{lease.host} has been baking {lease.what} since {lease.began}: waiting for it")
                    noticed = True
                if there.content != seen:
                    seen, since = there.content, _now()
                if _now() - since < TTL:
                    sleep(LOOK)
                    continue
                self._events.note(f"{lease.host} has not responded for {TTL:.0f} s: taking over")
            if self._written(self._new(lease), there.version if there else None):
                return

    def _new(self, before: Lease | None) -> Lease:
        mine = Lease(
            holder=self._holder,
            host=socket.gethostname(),
            what=self._what,
            run=os.urandom(6).hex(),
            began=timestamp(),
            attempt=before.attempt + 1 if before else 1,
        )
        began = read_timestamp(before.began) if before and not before.free else None
        if before is None or began is None or datetime.now(UTC) - began > _SAME_RUN:
            return mine
        return mine.model_copy(update={"run": before.run, "began": before.began})

    def _written(self, lease: Lease, version: str | None) -> bool:
        """Write the lease, where the store still has that version of it (None: none)."""
        asked, text = _now(), lease.text()
        done = self._store.add(self._name, text) if version is None else self._store.replace(self._name, text, version)
        if not done:  # or it was, and the answer was lost on its way
            there = state_of(self._store, self._name)
            done = there is not None and there.content == text
        if done:
            self._lease, self._confirmed = lease, asked
        return done

    def need(self) -> None:
        """Raise ClaimLost where another machine has taken over; what the store says is not older than ``RENEWAL``.

        A store that does not answer for a while is no reason to stop: nobody can take over before ``TTL``.
        """
        if not self._lost and self._age > RENEWAL:
            try:
                self._renew()
            except ParbakeError:
                if self._age > TTL - RENEWAL:
                    raise
        if self._lost:
            raise ClaimLost(self._lost)

    @property
    def _age(self) -> float:
        return _now() - self._confirmed

    def _renew(self) -> None:
        with self._writing:
            if not self._lost and self._age > RENEWAL:
                self._rewrite(self._lease.model_copy(update={"beat": self._lease.beat + 1}))

    def _rewrite(self, lease: Lease) -> None:
        there = state_of(self._store, self._name)
        if there and there.content == self._lease.text() and self._written(lease, there.version):
            return
        other = _parsed(there.content) if there else None
        by = f"{other.host} has taken over" if other else "its lease is gone"
        self._lost = f"{self._what}: {by}, since this machine has not responded for too long"

    def release(self) -> None:
        """Let others have the key; a lease that was lost stays as it is."""
        with self._writing:
            if not self._lost:
                self._rewrite(self._lease.model_copy(update={"free": True}))

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Give signs of life until the body ends."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(RENEWAL / 3):
                with suppress(ParbakeError):  # the store cannot be asked now: `need` says so, if it stays so
                    self.need()

        acting = contextvars.copy_context()  # the role that the store is asked in
        thread = threading.Thread(target=lambda: acting.run(beat), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextmanager
def claimed(store: Store, key: str, what: str, events: Events) -> Iterator[LeaseClaim]:
    """Hold the lease of a key; ``what`` is the artefact's name.

    Another parbake here, or another machine, is waited for. A run that was killed on this machine is taken over at
    once, one on another machine when its lease has expired. Raises what asking the store raises.
    """
    claim = LeaseClaim(store, key, what, events)
    with lock(
        part_of(cache_folder(), "claims") / f"{key}.lock",
        what=f"the bake of {what}",
        timeout=_LONGEST_WAIT,
        waiting=lambda: events.note(f"another parbake is working on {what}: waiting"),
    ):
        claim.take()
        try:
            with claim.alive():
                yield claim
        finally:
            with suppress(ParbakeError):  # then it expires
                claim.release()


def sweep(store: Store, older: timedelta) -> None:
    """Remove leases that nobody holds, and notes of work that nobody has continued for that long."""
    busy = held(store)
    for folder, pattern in ((FOLDER, _NAME), (NOTES, _NOTE)):
        for each in list(listed(store, folder, pattern)):
            key = each.name.removeprefix(folder).partition(".")[0]
            if key not in busy and datetime.now(UTC) - each.modified > older:
                store.remove(each.name)


class StoreNotes:
    """The notes on one piece of work, from which another machine continues it: objects that are never written twice.

    ``notes/KEY.WHAT.SERIES-NUMBER`` holds some lines; the numbers of a series have no gap, so that of two writers one
    is told that it is not alone any more. ``need`` raises ClaimLost where another machine has taken the work over.
    """

    def __init__(self, store: Store, what: str, holder: str, need: Callable[[], None]) -> None:
        self._store, self._prefix, self._need = store, f"{NOTES}{what}.", need
        self.holder = holder
        self._series, self._count = 0, 0

    @property
    def series(self) -> int:
        """The number of the series that ``begin`` begins; ``read`` comes first."""
        return self._series + 1

    def read(self) -> str:
        """Return the lines of the newest series."""
        there = sorted(each.name for each in self._store.list(self._prefix))
        found = [match for name in there if (match := _NOTE.fullmatch(name))]
        newest = found[-1]["series"] if found else "0"
        names = [match[0] for match in found if match["series"] == newest]
        self._series, self._count = int(newest), len(names)
        held = (state_of(self._store, name) for name in names)
        return "".join(each.content.decode(errors="replace") for each in held if each)

    def begin(self, line: str) -> None:
        """Begin the next series."""
        self._series, self._count = self.series, 0
        self.add(f"{line}\n")

    def add(self, lines: str) -> None:
        """Add lines."""
        self._need()
        name, content = f"{self._prefix}{self._series:04d}-{self._count:06d}", lines.encode()
        if not self._store.add(name, content):
            held = self._store.get(name)
            if held is None or held.content != content:  # else the answer to a first try was lost
                raise ClaimLost(f"another machine has continued {name}")
        self._count += 1

    def forget(self) -> None:
        """Begin an empty series: no number is used twice, and those who bake need not be allowed to remove anything.

        Pruning removes what is a day old.
        """
        self.begin("{}")
