"""Fill a runtime's store with images: on a mounted file system, or in the file of a volume."""

from parbake.builders.fill.destinations import Ground, MountedGround
from parbake.builders.fill.filling import fill
from parbake.builders.fill.volume import VolumeGround

__all__ = ["Ground", "MountedGround", "VolumeGround", "fill"]
