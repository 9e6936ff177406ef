"""Is a record to be believed? Its signature, what it says of itself, and what the world says.

A record is a file, and whoever can write it can make it say anything. So before it decides what nodes run, it is
compared: with the keys that the Bakefile trusts, with itself (the in-toto subject against its own fields), with the
list of blocks beside the artefact, and with the tags of what it says to lie in AWS.
"""

from parbake.records.genuine.claims import contradiction, listed
from parbake.records.genuine.published import doubt as doubt_of_published
from parbake.records.genuine.published import need_published
from parbake.records.genuine.signed import mend, need, open_signer, read_signed

__all__ = [
    "contradiction", "doubt_of_published", "listed", "mend", "need", "need_published", "open_signer", "read_signed",
]  # fmt: skip
