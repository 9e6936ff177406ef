"""ext4 without a mount: trees of files go into the file of a file system, and come out the same each time."""

from parbake.machine.ext4.layer import PlacedLayer, WrittenLayer
from parbake.machine.ext4.relocate import Relocated, lay_out
from parbake.machine.ext4.superblock import ForeignVolume
from parbake.machine.ext4.volume import PREFETCH, LayerArea, Volume

__all__ = ["PREFETCH", "ForeignVolume", "LayerArea", "PlacedLayer", "Relocated", "Volume", "WrittenLayer", "lay_out"]
