"""Records: one JSON file beside each artefact says what it is, where it came from and whether it was proven."""

from parbake.records.folder import (
    DETACHED_SUFFIX,
    ENVELOPE_SUFFIX,
    blocks_of,
    blocks_path,
    everything,
    find,
    in_use,
    is_signed,
    keep,
    locate,
    locate_record,
    need_signer,
    newest,
    parse,
    publish_artefact,
    read,
    remove,
    statement,
    sweep,
    tell,
    waiting,
    write,
    write_published,
)
from parbake.records.record import BLOCKS_SUFFIX, SUFFIX, TRACE_SUFFIX, Blocks, Record

__all__ = [
    "BLOCKS_SUFFIX", "DETACHED_SUFFIX", "ENVELOPE_SUFFIX", "SUFFIX", "TRACE_SUFFIX", "Blocks", "Record", "blocks_of",
    "blocks_path", "everything", "find", "in_use", "is_signed", "keep", "locate", "locate_record", "need_signer",
    "newest", "parse", "publish_artefact", "read", "remove", "statement", "sweep", "tell", "waiting", "write",
    "write_published",
]  # fmt: skip
