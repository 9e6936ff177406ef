"""Whether an artefact's bytes are those that its record names, as part of the verdict. Pure."""

from __future__ import annotations

from parbake.core.model import Verdict
from parbake.core.timestamps import timestamp


def damaged(problem: str) -> Verdict:
    """Return the verdict on an artefact that is not worth booting."""
    return Verdict(passed=False, accelerator="none", intact=False, problems=(problem,), verified_at=timestamp())


def compared(verdict: Verdict, *, recorded: str, found: str) -> Verdict:
    """Return a verdict and what the SHA-256 of the whole file says of it; ``recorded`` empty: nothing."""
    if recorded in {"", found}:
        return verdict.model_copy(update={"intact": True})
    problem = f"its SHA-256 is {found}, not the {recorded} of its record"
    return verdict.model_copy(update={"passed": False, "intact": False, "problems": (*verdict.problems, problem)})
