"""What EC2 says to block device mappings when an instance is launched from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NO_KEY_ALONE = "The parameter KmsKeyId requires the parameter Encrypted to be set."


def dependency(disks: Iterable[Mapping[str, Any]]) -> str:
    """Return the message of InvalidParameterDependency; empty where nothing is wrong.

    ``disks`` are the parts ``Ebs`` (EC2) or ``ebs`` (Karpenter, which passes them on).
    """
    alone = any(
        (each.get("KmsKeyId") or each.get("kmsKeyID")) and not (each.get("Encrypted") or each.get("encrypted"))
        for each in disks
    )
    return NO_KEY_ALONE if alone else ""
