"""Fill a runtime's store with images: on a mounted file system, or in the file of a volume."""

from parbake.builders.fill.destinations import LayerDestination, MountedStore, held
from parbake.builders.fill.filling import fill
from parbake.builders.fill.volume import VolumeImage

__all__ = ["LayerDestination", "MountedStore", "VolumeImage", "fill", "held"]
