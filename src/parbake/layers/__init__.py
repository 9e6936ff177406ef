"""The engine: compressed layers become files that overlayfs can use, verified while they stream.

It knows neither registries nor runtimes: bytes in, a folder out.
"""

from parbake.layers.engine import Unpacked, unpack
from parbake.layers.settle import settle

__all__ = ["Unpacked", "settle", "unpack"]
