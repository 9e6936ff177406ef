"""The store: records, lists of blocks, traces and artefacts that several machines share, in S3 or in a folder.

A Bakefile names it with ``store``; without one, records lie in ``output`` alone. Machines still work in their own
``output``: parbake fetches what the store has of an artefact before it looks for it there, and stores what it made
afterwards. The first record of a content key wins; whoever comes second takes it over.
"""

import os
from pathlib import Path

from parbake.bakefile import Bakefile
from parbake.core.errors import EnvironmentProblem
from parbake.core.events import Events
from parbake.records.store import trail
from parbake.records.store.entries import StoreEntry
from parbake.records.store.folder import FolderStore
from parbake.records.store.leases import Lease, claimed, held
from parbake.records.store.needs import Need, needed, note
from parbake.records.store.port import ListedObject, Store, StoredObject, identity_of, state_of
from parbake.records.store.shared import Shared

__all__ = [
    "Lease", "ListedObject", "Need", "Shared", "Store", "StoreEntry", "StoredObject", "claimed", "held", "identity_of",
    "leases_of", "need_conditional_writes", "needed", "needs_of", "note", "open_store", "refreshed_output",
    "session_store", "state_of", "trail",
]  # fmt: skip


def open_store(address: str, region: str = "") -> Store:
    """Return the store at ``s3://BUCKET[/PREFIX]``, or in a folder. Nothing is asked yet."""
    if address.startswith("s3://"):
        from parbake.records.store.s3 import S3Store  # loads only where a bucket is named

        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        return S3Store(bucket, prefix.strip("/"), region)
    return FolderStore(Path(address))


def refreshed_output(bakefile: Bakefile, events: Events | None = None) -> Path:
    """Return a Bakefile's folder of artefacts, once it has the records that the store has of what lies in clouds."""
    if shared := session_store(bakefile, events):
        shared.refresh()
    return bakefile.output


def leases_of(bakefile: Bakefile) -> dict[str, Lease]:
    """Return what machines bake now that share a Bakefile's store, by content key; nothing where it names none."""
    if bakefile.store is None:
        return {}
    return held(open_store(bakefile.store, bakefile.aws.region or ""))


def needs_of(bakefile: Bakefile) -> dict[str, str]:
    """Return what rollouts of fleets need that share a Bakefile's store (``needs.needed``); nothing without a store."""
    if bakefile.store is None:
        return {}
    return needed(open_store(bakefile.store, bakefile.aws.region or ""))


def need_conditional_writes(store: Store) -> None:
    """Raise EnvironmentProblem unless a store keeps what was written first. Raises what asking raises."""
    name = f"probe/{os.urandom(8).hex()}"
    try:
        if not store.add(name, b"1") or store.add(name, b"2"):
            raise EnvironmentProblem(
                f"the store {store.url} ignores `If-None-Match`: two bakes could overwrite each other's record",
                hint="use Amazon S3, or a server that honours conditional writes",
            )
    finally:
        store.remove(name)


def session_store(bakefile: Bakefile, events: Events | None = None) -> Shared | None:
    """Return what a Bakefile's artefacts are shared through; None where it names no store."""
    if bakefile.store is None:
        return None
    return Shared(open_store(bakefile.store, bakefile.aws.region or ""), bakefile, events or Events())
