"""Disks as files: partition tables, file systems, loop devices, sparse copies, formats, and what a root holds."""

from parbake.disk.blocks import BLOCK, ZEROS, BlockList, block_list, data_blocks, read_blocks, spans
from parbake.disk.files import DiskFile, convert, copy_sparse, describe, extents, sha256_beside, sha256_file, to_raw
from parbake.disk.filesystems import (
    LABEL,
    FileSystem,
    bytes_per_inode,
    check_filesystem,
    filesystem_uuid,
    grow_filesystem,
    make_filesystem,
    trim,
    usage,
)
from parbake.disk.mounts import FAST, Mounted, bind, loop_device, memory, mount, private_mounts, unbind, unmount
from parbake.disk.roots import Runtime, find_runtime, inside
from parbake.disk.tables import Partition, find_root, grow, partitions

__all__ = [
    "BLOCK",
    "FAST",
    "LABEL",
    "ZEROS",
    "BlockList",
    "DiskFile",
    "FileSystem",
    "Mounted",
    "Partition",
    "Runtime",
    "bind",
    "block_list",
    "bytes_per_inode",
    "check_filesystem",
    "convert",
    "copy_sparse",
    "data_blocks",
    "describe",
    "extents",
    "filesystem_uuid",
    "find_root",
    "find_runtime",
    "grow",
    "grow_filesystem",
    "inside",
    "loop_device",
    "make_filesystem",
    "memory",
    "mount",
    "partitions",
    "private_mounts",
    "read_blocks",
    "sha256_beside",
    "sha256_file",
    "spans",
    "to_raw",
    "trim",
    "unbind",
    "unmount",
    "usage",
]
