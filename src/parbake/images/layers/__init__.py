"""The engine: compressed layers become files that overlayfs can use, verified while they stream.

It knows neither registries nor runtimes: bytes in, a folder or a tree of nodes out.
"""

from parbake.layers.engine import Allowance, Unpacked, unpack
from parbake.layers.settle import settle
from parbake.layers.settling import settle_nodes
from parbake.layers.sinks import FolderSink, NodeSink, Sink

__all__ = ["Allowance", "FolderSink", "NodeSink", "Sink", "Unpacked", "settle", "settle_nodes", "unpack"]
