"""Hand an artefact to an autoscaler: one module for each kind of target, one protocol for all."""

from parbake.rollouts.protocol import Change, Follow, Held, Offer, Rollout, Standing

__all__ = ["Change", "Follow", "Held", "Offer", "Rollout", "Standing"]
