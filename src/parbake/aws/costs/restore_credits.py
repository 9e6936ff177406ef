"""Volume creation credits of fast snapshot restore: how many there can be, and how fast they come. Pure.

Each snapshot has a bucket in each zone. It starts with no credits when the restore is enabled, and depends on the size
of the snapshot and not on that of the volumes; a volume that is made without a credit loads lazily. Source: Amazon EBS
user guide, "Volume creation credits".
"""

from __future__ import annotations

from parbake.core.model import GIB

_MOST = 10.0
_ONE_AN_HOUR = 1024 * GIB  # the size from which on a bucket holds one credit, and gets one an hour


def refill(snapshot: int) -> float:
    """Return how many credits an hour brings, for a snapshot of volumes of so many bytes."""
    return min(_MOST, _ONE_AN_HOUR / max(snapshot, 1))


def bucket(snapshot: int) -> int:
    """Return how many credits there are at most."""
    return max(1, int(refill(snapshot)))
