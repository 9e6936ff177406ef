"""Who may approve a wave: names that are said, ARNs that are proven."""

from __future__ import annotations

import pytest

from parbake.fleet.engine import approvals
from parbake.fleet.engine.rollout_tasks import SignOff, WaveState

ROLE, USER = "arn:aws:iam::222222222222:role/release", "arn:aws:iam::222222222222:user/*"
EVE, ANN = "arn:aws:sts::222222222222:assumed-role/release/eve", "arn:aws:iam::222222222222:user/ann"
OTHER = "arn:aws:sts::333333333333:assumed-role/release/eve"


def wave(*by: str, state: str = "approval", approvals: int = 1) -> WaveState:
    return WaveState("canary", [], approvals=approvals, by=list(by), state=state)


@pytest.mark.parametrize(
    ("by", "who", "proven", "may"),
    [
        ((), "ann", False, True),
        ((), EVE, True, True),
        (("ann",), "ann", False, True),
        (("ann",), "bob", False, False),
        ((ROLE,), EVE, True, True),
        ((ROLE,), EVE, False, False),
        ((ROLE,), ROLE, False, False),
        ((ROLE,), OTHER, True, False),
        ((ROLE,), ANN, True, False),
        ((USER,), ANN, True, True),
        ((EVE,), EVE, True, True),
        ((EVE,), EVE.replace("eve", "joe"), True, False),
        (("eve", ROLE), "eve", False, True),
        ((EVE.rpartition("/")[2],), EVE, True, False),
    ],
)
def test_who_may(by: tuple[str, ...], who: str, proven: bool, may: bool) -> None:
    assert (approvals.not_among(wave(*by), SignOff("canary", who), proven=proven) is None) == may


def test_a_proof_is_asked_for_where_a_name_does_not_do() -> None:
    assert approvals.needs_proof(wave(ROLE), "ann")
    assert approvals.needs_proof(wave(ROLE, "eve"), "ann")
    assert not approvals.needs_proof(wave(ROLE, "ann"), "ann")
    assert not approvals.needs_proof(wave("eve"), "ann")
    said = approvals.not_among(wave(ROLE), SignOff("canary", "ann"), proven=False)
    assert said
    assert "proves it with their AWS credentials" in said[1]
    assert approvals.not_among(wave(ROLE), SignOff("canary", "ann", proof="https://…"), proven=False) is None
