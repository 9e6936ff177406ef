"""Snapshots without an instance: disks are written to and read from EBS by its direct API.

Sources: EBS user guide, "EBS direct APIs" and its FAQ; EBS direct API reference.
"""

from parbake.ebs import fast
from parbake.ebs.download import Fetched, blocks_of, fetch
from parbake.ebs.images import ROOT_DEVICE, boot_mode, register
from parbake.ebs.spread import copy, keep, share
from parbake.ebs.upload import BLOCKS_TAG, Journal, Order, Parent, Sent, key_arn, look, upload

__all__ = [
    "BLOCKS_TAG",
    "ROOT_DEVICE",
    "Fetched",
    "Journal",
    "Order",
    "Parent",
    "Sent",
    "blocks_of",
    "boot_mode",
    "copy",
    "fast",
    "fetch",
    "keep",
    "key_arn",
    "look",
    "register",
    "share",
    "upload",
]
