"""Read what Packer says came out: the file of its manifest post-processor. Pure.

Sources: Packer's manifest post-processor (builds, ``last_run_uuid``); the Amazon plugin's artifact, whose id is
``region:ami`` for each region, separated by commas.
"""

from __future__ import annotations

import json
import re
from typing import Any

from parbake.core.errors import ParbakeError

_PART = re.compile(r"([a-z]{2,}(?:-[a-z0-9]+)+):(ami-[0-9a-f]+)")
_HINT = "look into the output of packer above; `packer build` in the exported folder shows more"


def artefacts(text: str, *, key: str = "") -> dict[str, str]:
    """Return the AMI of each region that the last run made; raises ParbakeError when the text does not say.

    With ``key``, a build that carries another key (an earlier one in the same file) is not it.
    """
    try:
        document: Any = json.loads(text)
        builds = [
            build
            for build in document["builds"]
            if build.get("packer_run_uuid") == document["last_run_uuid"]
            and (not key or (build.get("custom_data") or {}).get("key") == key)
        ]
        found = {region: ami for build in builds for region, ami in _parts(str(build["artifact_id"]))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ParbakeError(f"Packer's manifest cannot be read: {error!r}", hint=_HINT) from error
    if not found:
        raise ParbakeError("Packer's manifest names no AMI of its last run", hint=_HINT)
    return found


def _parts(artifact: str) -> list[tuple[str, str]]:
    matches = [_PART.fullmatch(part) for part in artifact.split(",")]
    if not all(matches):
        raise ValueError(artifact)
    return [(match.group(1), match.group(2)) for match in matches if match]
