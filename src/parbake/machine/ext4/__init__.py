"""ext4 without a mount: trees of files go into the file of a file system, and come out the same each time."""

from parbake.machine.ext4.layer import PlacedLayer, WrittenLayer
from parbake.machine.ext4.reader import files_in
from parbake.machine.ext4.relocate import Relocated, lay_out
from parbake.machine.ext4.superblock import BLOCK, ForeignVolume
from parbake.machine.ext4.volume import PREFETCH, LayerArea, Volume

__all__ = [
    "BLOCK", "PREFETCH", "ForeignVolume", "LayerArea", "PlacedLayer", "Relocated", "Volume", "WrittenLayer", "files_in",
    "lay_out",
]  # fmt: skip
