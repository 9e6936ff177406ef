"""Amazon Web Services: clients that load when they are asked for, errors in plain words, tags, and waiting.

Nothing here imports boto3 before ``client`` is called, so a local bake neither needs nor loads it.
"""

from parbake.aws.clients import (
    Client,
    Rest,
    account,
    acting_as,
    client,
    default_region,
    guarded,
    role_in,
    stranger,
)
from parbake.aws.errors import translate as translating
from parbake.aws.images import SourceImage, find_source, mark, named, nearest
from parbake.aws.tags import (
    ARTEFACT,
    EXPIRY,
    KEY,
    MANAGED,
    NAME,
    ROLE,
    RUN,
    TEMPORARY,
    VERIFIED,
    Stamp,
    as_dict,
    as_list,
    mine,
    specifications,
    token,
)
from parbake.aws.waiters import UNKNOWN_SECONDS, Observation, wait, when_known
from parbake.core.roles import Role

__all__ = [
    "ARTEFACT", "EXPIRY", "KEY", "MANAGED", "NAME", "ROLE", "RUN", "TEMPORARY", "UNKNOWN_SECONDS", "VERIFIED", "Client",
    "Observation", "Rest", "Role", "SourceImage", "Stamp", "account", "acting_as", "as_dict", "as_list", "client",
    "default_region", "find_source", "guarded", "mark", "mine", "named", "nearest", "role_in", "specifications",
    "stranger", "token", "translating", "wait", "when_known",
]  # fmt: skip
