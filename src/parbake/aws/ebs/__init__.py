"""Snapshots without an instance: disks are written to and read from EBS by its direct API.

Sources: EBS user guide, "EBS direct APIs" and its FAQ; EBS direct API reference.
"""

from parbake.aws.ebs import fast_restore
from parbake.aws.ebs.download import FetchedSnapshot, blocks_of, fetch
from parbake.aws.ebs.journal import Journal, ParentSnapshot, UploadRequest
from parbake.aws.ebs.register import boot_mode, register
from parbake.aws.ebs.share import copy, mark_permanent, share
from parbake.aws.ebs.traits import ROOT_DEVICE, Traits, refuse_billed, traits_of
from parbake.aws.ebs.upload import (
    BLOCKS_TAG,
    UploadResult,
    abandon,
    complete_elsewhere,
    completed,
    key_arn,
    look,
    upload,
)

__all__ = [
    "BLOCKS_TAG", "ROOT_DEVICE", "FetchedSnapshot", "Journal", "ParentSnapshot", "Traits", "UploadRequest",
    "UploadResult", "abandon", "blocks_of", "boot_mode", "complete_elsewhere", "completed", "copy", "fast_restore",
    "fetch", "key_arn", "look", "mark_permanent", "refuse_billed", "register", "share", "traits_of", "upload",
]  # fmt: skip
