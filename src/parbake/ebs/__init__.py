"""Snapshots without an instance: disks are written to and read from EBS by its direct API.

Sources: EBS user guide, "EBS direct APIs" and its FAQ; EBS direct API reference.
"""

from parbake.ebs.download import Fetched, blocks_of, fetch
from parbake.ebs.images import boot_mode, register
from parbake.ebs.upload import Journal, Order, Parent, upload

__all__ = ["Fetched", "Journal", "Order", "Parent", "blocks_of", "boot_mode", "fetch", "register", "upload"]
