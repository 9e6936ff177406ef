"""Amazon Web Services: clients that load when they are asked for, errors in plain words, tags, and waiting.

Nothing here imports boto3 before ``client`` is called, so a local bake neither needs nor loads it.
"""

from parbake.aws.clients import Client, account, client, default_region, swallowing
from parbake.aws.faults import translate as translating
from parbake.aws.images import SourceImage, find_source, nearest
from parbake.aws.tags import EXPIRY, KEY, MANAGED, RUN, Stamp, as_dict, mine, specifications, token
from parbake.aws.waiting import Look, wait

__all__ = [
    "EXPIRY",
    "KEY",
    "MANAGED",
    "RUN",
    "Client",
    "Look",
    "SourceImage",
    "Stamp",
    "account",
    "as_dict",
    "client",
    "default_region",
    "find_source",
    "mine",
    "nearest",
    "specifications",
    "swallowing",
    "token",
    "translating",
    "wait",
]
