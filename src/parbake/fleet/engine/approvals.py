"""Who may approve a wave, and when. Pure: workflows ask it."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from parbake.fleet.engine.rollout_tasks import RolloutState, SignOff, WaveState
from parbake.fleet.words import phase
from parbake.fleet.words import wave as doing

_SESSION = re.compile(r"arn:(?P<partition>[a-z-]+):sts::(?P<account>[0-9]{12}):assumed-role/(?P<role>[^/]+)/[^/]+")

type Problem = tuple[str, str]
"""What speaks against it, and the next step."""


def needs_proof(wave: WaveState, by: str) -> bool:
    """Whether somebody must prove who they are to approve a wave: ARNs may, and no name that is theirs."""
    return by not in wave.by and any(each.startswith("arn:") for each in wave.by)


def against(
    now: RolloutState, wave: WaveState, sign_off: SignOff, *, back: bool, newer: str, proven: bool
) -> Problem | None:
    """Return what speaks against an approval of a wave; ``proven`` as in ``not_among``.

    ``back``: somebody wants the rollout back; ``newer`` is the generation that takes its place, if one does.
    """
    overtaken = ("the rollout goes back, or has", "`parbake fleet status` shows how far it is")
    if not back and now.state == "waves":
        overtaken = (f"{newer} is newer, and takes its place", "approve that one")
    over = overtaken if back or now.state != "waves" or newer else None
    return _again(wave, sign_off) or over or _too_early(now, wave) or not_among(wave, sign_off, proven=proven)


def _again(wave: WaveState, sign_off: SignOff) -> Problem | None:
    """Return why a wave cannot be approved again, or at all."""
    if not sign_off.proof and any(each.by == sign_off.by for each in wave.approved):
        return f"{sign_off.by} has approved the wave {wave.name} already", "nobody may approve twice"
    if wave.approved and len(wave.approved) >= wave.approvals:
        who = " and ".join(each.by for each in wave.approved)
        return f"the wave {wave.name} is approved already, by {who}", ""
    if not wave.approvals:
        return f"the wave {wave.name} needs no approval", ""
    return None


def _too_early(now: RolloutState, wave: WaveState) -> Problem | None:
    """Return why a wave of a rollout cannot be approved now."""
    if wave.state == "approval":
        return None
    does = doing(phase(now), wave, now.noted)
    said = f"the wave {wave.name} does not wait for an approval: it {does}"
    return said, "`parbake fleet status` shows how far it is"


def not_among(wave: WaveState, sign_off: SignOff, *, proven: bool) -> Problem | None:
    """Return why somebody may not approve a wave; ``proven``: ``by`` is the ARN that STS has said.

    A proof that STS was not asked about yet speaks against nobody.
    """
    if not wave.by or (sign_off.proof and not proven) or any(_is(each, sign_off.by, proven=proven) for each in wave.by):
        return None
    hint = f"these may: {', '.join(wave.by)}"
    if needs_proof(wave, sign_off.by) and not proven:
        hint += "; `parbake fleet approve` proves it with their AWS credentials"
    return f"{sign_off.by} may not approve the wave {wave.name}", hint


def _is(who: str, by: str, *, proven: bool) -> bool:
    if not who.startswith("arn:"):
        return who == by and not proven
    if not proven:
        return False
    session = _SESSION.fullmatch(by)  # whoever has assumed a role: by the session, or by the role
    role = "arn:{partition}:iam::{account}:role/{role}".format(**session.groupdict()) if session else by
    return fnmatchcase(by, who) or fnmatchcase(role, who)
