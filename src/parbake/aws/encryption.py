"""How an account encrypts what is made in a region, and with which key. Read calls only.

Whoever bakes need not be allowed to ask: what may not be asked is None, and said to the user as such.
Sources: EC2 API reference, GetEbsEncryptionByDefault and GetEbsDefaultKmsKeyId (``alias/aws/ebs``, or the ARN of a key
of the account's); EBS user guide, "Encryption outcomes for EBS direct APIs"; KMS API reference, KeyMetadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parbake.aws.clients import client
from parbake.core.errors import AwsNoAccess, AwsNotFound

EBS_KEY = "alias/aws/ebs"
"""The name of the key that AWS manages for EBS: what it encrypts, no other account can be given."""


@dataclass(frozen=True, slots=True)
class Encryption:
    """Whether a region encrypts new snapshots by default (None: that may not be asked), and with which key.

    ``key`` is an ARN or ``EBS_KEY``, empty where it may not be asked; it is also what encrypts where a Bakefile says
    ``encrypted`` and names no key.
    """

    by_default: bool | None
    key: str = ""


def ask(region: str) -> Encryption:
    """Ask how a region encrypts by default. Raises AwsError, but not for want of permission."""
    ec2 = client("ec2", region)
    try:
        by_default = bool(ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"])
    except AwsNoAccess:
        return Encryption(None)
    try:
        return Encryption(by_default, str(ec2.get_ebs_default_kms_key_id()["KmsKeyId"]))
    except AwsNoAccess:
        return Encryption(by_default)


@dataclass(frozen=True, slots=True)
class KmsKey:
    """A KMS key as DescribeKey tells of it. ``problem`` is why it cannot encrypt snapshots, empty where it can."""

    arn: str
    managed_by_aws: bool
    problem: str = ""


def key(name: str, region: str) -> KmsKey | None:
    """Look at a KMS key (alias, id or ARN); None: that may not be asked. Raises AwsNotFound, AwsError."""
    try:
        found: dict[str, Any] = client("kms", region).describe_key(KeyId=name)["KeyMetadata"]
    except AwsNotFound:
        raise
    except AwsNoAccess as error:
        if error.code == "NotFoundException":  # KMS says so of a key that does not exist
            raise AwsNotFound(f"there is no key {name} in {region}", code=error.code) from error
        return None
    state, spec = str(found.get("KeyState", "Enabled")), str(found.get("KeySpec", "SYMMETRIC_DEFAULT"))
    problem = f"is {state}" if state != "Enabled" else ""
    if spec != "SYMMETRIC_DEFAULT":  # EBS user guide, "Requirements for Amazon EBS encryption"
        problem = f"is a {spec} key, and EBS encrypts only with symmetric keys"
    return KmsKey(str(found["Arn"]), found.get("KeyManager") == "AWS", problem)
