"""The engine: compressed layers become files that overlayfs can use, verified while they stream.

It knows neither registries nor runtimes: bytes in, a folder or a tree of nodes out.
"""

from parbake.images.layers.engine import Allowance, Unpacked, unpack
from parbake.images.layers.finish_folder import complete_folder
from parbake.images.layers.finish_tree import complete_tree
from parbake.images.layers.sinks import FolderSink, Sink, TreeSink

__all__ = ["Allowance", "FolderSink", "Sink", "TreeSink", "Unpacked", "complete_folder", "complete_tree", "unpack"]
