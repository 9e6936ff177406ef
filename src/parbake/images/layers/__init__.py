"""The engine: compressed layers become files that overlayfs can use, verified while they stream.

It knows neither registries nor runtimes: bytes in, a folder or a tree of nodes out.
"""

from parbake.images.layers.engine import Allowance, Unpacked, unpack
from parbake.images.layers.finish_folder import settle
from parbake.images.layers.finish_tree import settle_nodes
from parbake.images.layers.sinks import FolderSink, NodeSink, Sink

__all__ = ["Allowance", "FolderSink", "NodeSink", "Sink", "Unpacked", "settle", "settle_nodes", "unpack"]
