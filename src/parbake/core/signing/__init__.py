"""Signatures: keys in PEM files, and DSSE envelopes around statements.

Whoever signs or checks nothing pays nothing: the ``cryptography`` package loads with the first key.
"""

from parbake.core.signing.attached import Attached
from parbake.core.signing.dsse import IN_TOTO, NotSigned, envelope, opened, pae
from parbake.core.signing.keys import FileSigner, PublicKey, Signer, public_key, read_public_key

__all__ = [
    "IN_TOTO", "Attached", "FileSigner", "NotSigned", "PublicKey", "Signer", "envelope", "opened", "pae", "public_key",
    "read_public_key",
]  # fmt: skip
