"""Disks as files: partition tables, file systems, loop devices, sparse copies, formats, and what a root holds."""

from parbake.core.mounts import private_mounts, unmount
from parbake.machine.disk.blocks import ZEROS, block_list, data_blocks, read_blocks
from parbake.machine.disk.files import (
    DiskFile,
    convert,
    copy_sparse,
    describe,
    extents,
    reflink,
    sha256_beside,
    sha256_file,
    to_raw,
)
from parbake.machine.disk.filesystems import (
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
from parbake.machine.disk.inherit import CopyTakesLonger, Memory, NotAsListed, compare, copy_listed
from parbake.machine.disk.mounts import (
    FAST,
    READ_AHEAD,
    Mounted,
    loop_device,
    mount,
    mount_device,
    read_ahead,
)
from parbake.machine.disk.roots import Runtime, find_runtime, inside
from parbake.machine.disk.selinux import file_contexts, label
from parbake.machine.disk.tables import Partition, find_root, grow, partitions

__all__ = [
    "FAST", "LABEL", "READ_AHEAD", "ZEROS", "CopyTakesLonger", "DiskFile", "FileSystem", "Memory", "Mounted",
    "NotAsListed", "Partition", "Runtime", "block_list", "bytes_per_inode", "check_filesystem", "compare", "convert",
    "copy_listed", "copy_sparse", "data_blocks", "describe", "extents", "file_contexts", "filesystem_uuid", "find_root",
    "find_runtime", "grow", "grow_filesystem", "inside", "label", "loop_device", "make_filesystem", "mount",
    "mount_device", "partitions", "private_mounts", "read_ahead", "read_blocks", "reflink", "sha256_beside",
    "sha256_file", "to_raw", "trim", "unmount", "usage",
]  # fmt: skip
