"""Whether an artefact's bytes are those that its record names, as part of the verdict. Pure."""

from __future__ import annotations

from parbake.core.model import Verdict
from parbake.core.timestamps import timestamp


def damaged(problem: str) -> Verdict:
    """Return the verdict on an artefact that is not worth booting."""
    return Verdict(passed=False, accelerator="none", intact=False, problems=(problem,), verified_at=timestamp())
