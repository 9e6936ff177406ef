"""Whether an artefact's bytes are those that its record names, as part of the verdict. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from parbake.core.model import Verdict


def damaged(problem: str) -> Verdict:
    """Return the verdict on an artefact that is not worth booting."""
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Verdict(passed=False, accelerator="none", intact=False, problems=(problem,), verified_at=at)


def compared(verdict: Verdict, *, recorded: str, found: str) -> Verdict:
    """Return a verdict and what the SHA-256 of the whole file says of it; ``recorded`` empty: nothing."""
    if recorded in {"", found}:
        return verdict.model_copy(update={"intact": True})
    problem = f"its SHA-256 is {found}, not the {recorded} of its record"
    return verdict.model_copy(update={"passed": False, "intact": False, "problems": (*verdict.problems, problem)})
