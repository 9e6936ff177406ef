"""AWS's errors in plain words: what failed, on what, and the next step.

Sources: EC2 API reference, "Error codes"; AWS General Reference, "Common errors"; botocore.exceptions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from parbake.core.errors import AwsError, AwsLimit, AwsNoAccess, AwsNotFound, ParbakeError

QUOTA_HINT = "remove what is not needed (`parbake clean --aws`, `parbake prune`), or ask for more in Service Quotas"
KMS_HINT = (
    "the key must be enabled, and the caller needs kms:DescribeKey, kms:CreateGrant, kms:ReEncrypt*, kms:Decrypt and "
    "kms:GenerateDataKeyWithoutPlaintext on it (`parbake iam`)"
)
_LOG_IN = "log in again (`aws sso login`, a fresh token), or set AWS_PROFILE; then run the same command again"

CAPACITY = frozenset({
    "InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientReservedInstanceCapacity",
    "InsufficientCapacity", "UnfulfillableCapacity", "Server.InsufficientInstanceCapacity", "SpotMaxPriceTooLow",
    "Unsupported", "InsufficientFreeAddressesInSubnet",
})  # fmt: skip
"""Codes of RunInstances that another type, zone, subnet or purchase may cure (``Unsupported``: no such type there)."""


@dataclass(frozen=True, slots=True)
class _Family:
    """Codes with one meaning: the error that they become, and the next step."""

    codes: frozenset[str]
    error: type[AwsError]
    hint: str = ""


_FAMILIES = (
    _Family(
        frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}),
        AwsNoAccess,
        _LOG_IN,
    ),
    _Family(
        frozenset({"OptInRequired", "InvalidRegion", "UnsupportedRegion"}),
        AwsNoAccess,
        "enable the region in the account's settings, or write another `aws.region`",
    ),
    _Family(
        frozenset({
            "AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch",
            "IncompleteSignature", "InvalidAccessKeyId", "InvalidSignatureException",
        }),
        AwsNoAccess,
        "AWS does not know these credentials here: check AWS_PROFILE, the key, and that the region is enabled",
    ),
    _Family(
        frozenset({
            "UnauthorizedOperation", "Client.UnauthorizedOperation", "AccessDenied", "AccessDeniedException",
            "UnauthorizedException",
        }),
        AwsNoAccess,
    ),
    _Family(
        frozenset({
            "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestThrottled", "SlowDown",
            "RequestThrottledException", "TooManyRequestsException", "EC2ThrottledException",
            "SnapshotCreationPerVolumeRateExceeded",
        }),
        AwsLimit,
        "AWS throttles this account: run the same command again in some minutes",
    ),
    _Family(
        CAPACITY,
        AwsLimit,
        "name more `aws.instance_types` or `aws.subnets` (other zones), or write `aws: {purchase: on-demand}`",
    ),
    _Family(
        frozenset({
            "MaxSpotInstanceCountExceeded", "AMIQuotaExceeded", "ServiceQuotaExceededException",
            "LimitExceededException",
        }),
        AwsLimit,
        QUOTA_HINT,
    ),
)  # fmt: skip
_OF_KMS = re.compile(r"kms|\bkey id\b|\bcmk\b", re.IGNORECASE)
_NOT_FOUND = (".NotFound", "NotFoundException", ".Unavailable", ".Malformed", "NotFound", "NoSuchEntity")


def name_of(operation: str) -> str:
    """Return an operation as AWS spells it: ``run_instances`` is RunInstances."""
    return "".join(part.capitalize() for part in operation.split("_"))


@contextmanager
def translate(service: str, operation: str, region: str) -> Iterator[None]:
    """Turn what botocore raises inside into AwsError; everything else passes."""
    try:
        yield
    except ParbakeError:
        raise
    except Exception as error:
        translated = _translated(error, service, name_of(operation), region)
        if translated is None:
            raise
        raise translated from error


def _translated(error: Exception, service: str, operation: str, region: str) -> AwsError | None:
    import botocore.exceptions as known

    where = f"{operation} ({service} in {region})" if region else f"{operation} ({service})"
    if isinstance(error, known.ClientError):
        details: dict[str, Any] = error.response.get("Error", {})
        return fault(str(details.get("Code", "")), str(details.get("Message", "")), where)
    if isinstance(error, known.ParamValidationError) or not isinstance(error, known.BotoCoreError):
        return None  # a mistake of ours
    if isinstance(error, (known.HTTPClientError, known.ConnectionError)):
        hint = f"check that {region} is a region that exists, and the network (proxy, VPC endpoint) on the way to it"
        return AwsError(f"{where}: AWS cannot be reached: {error}", hint=hint)
    access = _no_access(error, known)
    if access:
        return AwsNoAccess(f"{where}: {access[0]}", hint=access[1])
    return AwsError(f"{where}: {error}")


def _no_access(error: Exception, known: Any) -> tuple[str, str] | None:
    """Return what is wrong with the user's configuration and what to do, None when it is something else."""
    if isinstance(error, (known.NoCredentialsError, known.PartialCredentialsError)):
        hint = "set AWS_PROFILE, run `aws configure` or `aws sso login`, or run on a machine with an instance role"
        return "there are no AWS credentials", hint
    expired = (
        known.CredentialRetrievalError, known.MetadataRetrievalError, known.TokenRetrievalError,
        known.SSOTokenLoadError, known.UnauthorizedSSOTokenError,
    )  # fmt: skip
    if isinstance(error, expired):
        return f"cannot get the credentials: {error}", _LOG_IN
    if isinstance(error, (known.ProfileNotFound, known.ConfigParseError)):
        return str(error), "check AWS_PROFILE and ~/.aws/config"
    if isinstance(error, (known.NoRegionError, known.InvalidRegionError)):
        return str(error), "write `aws: {region: eu-west-1}`, or set AWS_REGION"
    return None


def fault(code: str, message: str, what: str) -> AwsError:
    """Return the error for a code that AWS answered with; ``what`` is the call."""
    summary = f"{what}: {_short(message) or code}" + (f" [{code}]" if code and message else "")
    if _OF_KMS.search(f"{code} {message}"):
        return AwsNoAccess(summary, code=code, hint=KMS_HINT)
    for family in _FAMILIES:
        if code in family.codes:
            return family.error(summary, code=code, hint=family.hint)
    if code.endswith("LimitExceeded"):
        return AwsLimit(summary, code=code, hint=QUOTA_HINT)
    if code.endswith(_NOT_FOUND):
        return AwsNotFound(summary, code=code)
    return AwsError(summary, code=code)


def _short(message: str) -> str:
    """Drop the encoded authorisation message, which is kilobytes that nobody can read."""
    return message.partition("Encoded authorization failure message")[0].strip().rstrip(".")
