"""Rehearsal: start each image once from the finished artefact with cold caches, and record what it reads."""

from parbake.rehearse.volume import rehearse_volume

__all__ = ["rehearse_volume"]
