"""Ask the account before a bake costs anything: what would have to fail at its end is refused here.

What this role may not ask is a caution, and the bake goes on: AWS says no when it comes to that.
"""

from __future__ import annotations

from collections.abc import Iterator

from parbake.bakefile import Bakefile
from parbake.bakefile.kms import is_managed_by_aws
from parbake.core.errors import AwsNotFound, InputError


def account_cautions(bakefile: Bakefile, home: str) -> tuple[str, ...]:
    """Look at the regions of a bake in EC2; return what a user should know. ``home`` is where it bakes.

    Raises InputError for what must fail: shares of what AWS's own key encrypts, keys that a region lacks, a parent that
    an account which encrypts by default does not take.
    """
    if not bakefile.traits.in_ec2:
        return ()
    return tuple(
        caution
        for region in (home, *bakefile.aws.copy_to)
        for caution in _region(bakefile, region, home=region == home)
    )


def _region(bakefile: Bakefile, region: str, *, home: bool) -> Iterator[str]:
    from parbake.aws import encryption  # loads only where AWS is asked

    settings, shared = bakefile.aws, bool(bakefile.aws.share_with) or (home and _copied_by_others(bakefile, region))
    if named := settings.key_in(region):
        yield from _named_key(named, region, shared=shared)
        return
    if settings.encrypted and shared:
        raise InputError(
            f"the account's own EBS key encrypts the result in {region}, and no other account can use that",
            hint="write kms_key: alias/NAME, a key whose policy lets the accounts of `copy_roles` use it",
        )
    found = encryption.ask(region)
    if found.by_default is None:
        if not settings.encrypted:
            yield (
                f"this role may not ask whether {region} encrypts by default (ec2:GetEbsEncryptionByDefault, see "
                "`parbake iam`)"
            )
        return
    if not found.by_default:
        return
    if shared and not _can_be_shared(found.key, region):
        raise InputError(
            f"{region} encrypts snapshots by default, with AWS's own key, and no other account can use what that "
            "encrypts",
            hint="write `aws: {encrypted: true, kms_key: alias/NAME}`, a key whose policy lets those accounts use it",
        )
    if home and settings.parent_snapshot:
        _need_encrypted_parent(settings.parent_snapshot, region)


def _copied_by_others(bakefile: Bakefile, home: str) -> bool:
    """Whether another account makes a copy: it has to read the original."""
    from parbake.aws import stranger

    return any(stranger(region, home) for region in bakefile.aws.copy_roles)


def _named_key(name: str, region: str, *, shared: bool) -> Iterator[str]:
    from parbake.aws import encryption

    try:
        key = encryption.key(name, region)
    except AwsNotFound as error:
        raise InputError(
            f"there is no KMS key {name} in {region}",
            hint="correct `aws.kms_key`; keys may be named by region: {eu-west-1: KEY, us-east-1: KEY}",
        ) from error
    if key is None:
        yield f"this role may not look at the KMS key {name} in {region} (kms:DescribeKey, see `parbake iam`)"
        return
    if key.problem:
        raise InputError(f"the KMS key {name} in {region} {key.problem}", hint="name another `aws.kms_key`")
    if shared and key.managed_by_aws:
        raise InputError(
            f"{name} is AWS's own key, and no other account can use what that encrypts",
            hint="write kms_key: alias/NAME, a key whose policy lets those accounts use it",
        )


def _can_be_shared(key: str, region: str) -> bool:
    """Whether a default key is the account's own; where that may not be asked, an ARN counts as such."""
    from parbake.aws import encryption

    if not key or is_managed_by_aws(key):
        return not key
    found = encryption.key(key, region)
    return found is None or not found.managed_by_aws


def _need_encrypted_parent(snapshot: str, region: str) -> None:
    from parbake import aws

    try:
        found = aws.client("ec2", region).describe_snapshots(SnapshotIds=[snapshot])["Snapshots"]
    except AwsNotFound as error:
        raise InputError(f"there is no snapshot {snapshot} in {region}", hint="correct aws.parent_snapshot") from error
    if found and not found[0].get("Encrypted"):
        raise InputError(
            f"{region} encrypts snapshots by default, and the parent {snapshot} is not encrypted",
            hint="remove `aws.parent_snapshot` (parbake finds the last bake by itself), or name an encrypted copy: "
            f"aws ec2 copy-snapshot --encrypted --source-region {region} --source-snapshot-id {snapshot}",
        )
