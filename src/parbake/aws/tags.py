"""Tags and client tokens: whose a resource is follows from AWS alone, also after a crash. There is no state file.

Everything that parbake makes carries ``parbake:managed``, the content key, the run, and the time after which a
leftover may go. A client token follows from key, run and purpose, so that a call which is sent twice acts once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from parbake.core.timestamps import read_timestamp, timestamp

MANAGED, KEY, RUN, EXPIRY, ROLE = "parbake:managed", "parbake:key", "parbake:run", "parbake:expires", "parbake:role"
NAME, VERIFIED = "parbake:name", "parbake:verified"
"""``managed`` is ``temporary`` for what goes when a run ends (also an artefact that is not complete yet) and
``artefact`` for what a run is for; ``role`` says what a resource is for within its run, ``name`` is the Bakefile's,
``verified`` the time of a verification that passed."""
TEMPORARY, ARTEFACT = "temporary", "artefact"
BOOST = "parbake:boost"
"""On what nodes with a raised volume are made of: its device and figures, such as ``/dev/xvdb 16000/1000``. Volumes
that have it may be taken back by the nodes' role (``iam``), and by a clean-up, which looks for these figures."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a run writes on all that it makes. ``key`` is the plan's content key, ``run`` tells runs of it apart.

    ``hours`` is how long a temporary resource may be in use, from ``began`` on (None: from when it is made); ``extra``
    are the user's own tags. Whoever takes a run over begins at the same time: its requests are the same ones.
    """

    key: str
    run: str
    name: str
    hours: float = 12.0
    extra: Mapping[str, str] = field(default_factory=dict)
    began: datetime | None = None

    def tags(self, role: str, *, kind: str = TEMPORARY, name: str = "") -> dict[str, str]:
        """Return the tags of one resource, ``role`` being what it is for; ``kind`` is temporary or artefact."""
        tags = {**self.extra, "Name": name or f"parbake {self.name}", MANAGED: kind, KEY: self.key, RUN: self.run}
        tags |= {ROLE: role, NAME: self.name}
        if kind == TEMPORARY:
            tags[EXPIRY] = timestamp((self.began or datetime.now(UTC)) + timedelta(hours=self.hours))
        return tags


def as_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags as AWS's APIs take them."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def as_dict(resource: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a described resource."""
    return {tag["Key"]: tag["Value"] for tag in resource.get("Tags") or []}


def specifications(tags: Mapping[str, str], *kinds: str) -> list[dict[str, Any]]:
    """Return ``TagSpecifications`` that tag every resource of the given types as it is made, never later."""
    return [{"ResourceType": kind, "Tags": as_list(tags)} for kind in kinds]


def token(*parts: str) -> str:
    """Return a deterministic client token: 64 hexadecimal digits, which every API accepts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def mine(**tags: str) -> list[dict[str, Any]]:
    """Return filters for what parbake made; keywords narrow it: ``key``, ``run``, ``managed``, ``role``, ``name``."""
    names = {"key": KEY, "run": RUN, "managed": MANAGED, "role": ROLE, "name": NAME}
    filters: list[dict[str, Any]] = [{"Name": "tag-key", "Values": [MANAGED]}]
    filters += [{"Name": f"tag:{names[each]}", "Values": [value]} for each, value in tags.items()]
    return filters


def expired(tags: Mapping[str, str], *, now: datetime | None = None) -> bool:
    """Whether a temporary resource is past its time; one without a readable time is not."""
    end = read_timestamp(tags.get(EXPIRY, ""))
    return end is not None and end < (now or datetime.now(UTC))
