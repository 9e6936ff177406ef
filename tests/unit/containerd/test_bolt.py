"""bbolt's files, written at once: what is read from them is what was written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parbake.containerd.bolt import Bucket, database
from standins.bolt import PAGE, read

KEYS = st.binary(min_size=1, max_size=40)
VALUES = st.one_of(st.binary(max_size=60), st.integers(0, 3 * PAGE).map(bytes))


def buckets(inner: st.SearchStrategy[Bucket]) -> st.SearchStrategy[Bucket]:
    return st.builds(Bucket, st.dictionaries(KEYS, VALUES | inner, max_size=12), st.integers(0, 2**40))


@given(st.recursive(buckets(st.nothing()), buckets, max_leaves=8))
def test_what_is_written_is_read(root: Bucket) -> None:
    assert read(database(root)) == root
    assert database(root) == database(Bucket(dict(reversed(list(root.items.items()))), root.sequence))


def test_many_keys_take_a_tree_of_pages() -> None:
    inner = Bucket({b"key %06d" % number: b"value" * 4 for number in range(20_000)}, 7)
    root = Bucket({b"many": inner, b"one": Bucket({b"k": b"v"}), b"none": Bucket()})
    data = database(root)
    assert read(data) == root
    assert len(data) < 1.1 * 20_000 * (16 + 10 + 20)
