"""Fill a runtime's store with images: on a mounted file system, or in the file of a volume."""

from parbake.fill.filling import fill
from parbake.fill.grounds import Ground, MountedGround
from parbake.fill.volumes import VolumeGround

__all__ = ["Ground", "MountedGround", "VolumeGround", "fill"]
