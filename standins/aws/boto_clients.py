"""boto3 clients for tests themselves, made once: making one reads megabytes of AWS's models."""

from __future__ import annotations

from functools import cache
from typing import Any

import boto3

from tests.aws.conftest import REGION


@cache
def raw(service: str, region: str = REGION) -> Any:
    """Return a client of moto; credentials are those of the first test that asked."""
    return boto3.client(service, region_name=region, aws_access_key_id="testing", aws_secret_access_key="testing")
