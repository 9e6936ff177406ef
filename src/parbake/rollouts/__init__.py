"""Hand an artefact to an autoscaler: one module for each kind of target, one protocol for all."""

from parbake.rollouts.protocol import CanaryNote, Change, Offer, Rollout, RolloutProgress, TargetState, TargetStatus

__all__ = ["CanaryNote", "Change", "Offer", "Rollout", "RolloutProgress", "TargetState", "TargetStatus"]
