"""Whether a store's address means the same store on all machines."""

from __future__ import annotations

from parbake.core.errors import WrongStore


def need_identity(address: str, identity: str) -> None:
    """Raise WrongStore unless the store at an address here has that word of its own; empty: it is not known."""
    if not identity:
        return
    from parbake.records.store import identity_of, open_store  # workers start without it

    found = identity_of(open_store(address))
    if found != identity:
        is_one = "is another store than" if found else "is not"
        raise WrongStore(
            f"{address} on this machine {is_one} the one where the run was begun",
            hint="mount the same folder on all machines, or name a bucket: `store: s3://BUCKET/PREFIX`",
        )
