"""Stores of fleets: whether an address means the same store on all machines, and what a rollout needs of it."""

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


def need_rollout(address: str, fleet: str, target: str, keys: tuple[str, ...], held: tuple[str, ...]) -> None:
    """Let the store at an address know what a rollout hands out, and what a target held before (``store.Need``).

    Without a ``target`` it is what the whole rollout hands out. Raises what writing to the store raises.
    """
    from parbake.records.store import Need, note, open_store

    note(open_store(address), Need(fleet=fleet, target=target, keys=keys, held=held))
