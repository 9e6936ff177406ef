"""Roles in AWS, and sessions of boto3 that act in them. boto3 is imported by whoever asks for a session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SESSION = "parbake"  # the name that CloudTrail shows


@dataclass(frozen=True, slots=True)
class Role:
    """A role that calls are made with, in whatever account it is; ``external_id`` is what its trust policy asks for."""

    arn: str
    external_id: str = ""

    @property
    def account(self) -> str:
        """The number of its account."""
        return self.arn.split(":")[4]


def session(role: Role | None, region: str) -> Any:
    """Return a session of the caller's, or of a role that the caller assumes: its credentials are asked for by a call.

    ``region`` is that of the STS which is asked. Raises ImportError without boto3.
    """
    import boto3

    own = boto3.Session()  # one of our own: the default one remembers the credentials that it once found
    if role is None:
        return own
    from botocore.credentials import DeferredRefreshableCredentials, create_assume_role_refresher
    from botocore.session import get_session

    asked = {"RoleArn": role.arn, "RoleSessionName": _SESSION}
    asked |= {"ExternalId": role.external_id} if role.external_id else {}
    theirs = get_session()
    theirs._credentials = DeferredRefreshableCredentials(  # noqa: SLF001 (botocore has no other way to set them)
        method="assume-role", refresh_using=create_assume_role_refresher(own.client("sts", region_name=region), asked)
    )
    return boto3.Session(botocore_session=theirs)
