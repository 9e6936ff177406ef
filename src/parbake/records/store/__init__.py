"""The store: records, lists of blocks, traces and artefacts that several machines share, in S3 or in a folder.

A Bakefile names it with ``store``; without one, records lie in ``output`` alone. Machines still work in their own
``output``: parbake fetches what the store has of an artefact before it looks for it there, and stores what it made
afterwards. The first record of a content key wins; whoever comes second takes it over.
"""

from parbake.records.store import trail
from parbake.records.store.choose import (
    leases_of,
    need_conditional_writes,
    needs_of,
    open_store,
    refreshed_output,
    session_store,
)
from parbake.records.store.entries import StoreEntry
from parbake.records.store.leases import Lease, claimed, held
from parbake.records.store.needs import Need, needed, note
from parbake.records.store.port import ListedObject, Store, StoredObject, identity_of, state_of
from parbake.records.store.shared import Shared

__all__ = [
    "Lease",
    "ListedObject",
    "Need",
    "Shared",
    "Store",
    "StoreEntry",
    "StoredObject",
    "claimed",
    "held",
    "identity_of",
    "leases_of",
    "need_conditional_writes",
    "needed",
    "needs_of",
    "note",
    "open_store",
    "refreshed_output",
    "session_store",
    "state_of",
    "trail",
]  # fmt: skip
