"""Hand an artefact to an autoscaler: one module for each kind of target, one protocol for all."""

from parbake.rollouts.protocol import Change, Offer, Rollout, RolloutProgress, TargetState, TargetStatus

__all__ = ["Change", "Offer", "Rollout", "RolloutProgress", "TargetState", "TargetStatus"]
