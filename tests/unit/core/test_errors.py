"""Errors as ``--json`` prints them: their names are a contract, and outlive renamed classes."""

from __future__ import annotations

import pytest

from parbake.builders.ec2.errors import SpotReclaimed
from parbake.core.errors import (
    AwsError,
    AwsNotFound,
    ContainerdError,
    Interrupted,
    MachineError,
    NoSuchImage,
    ParbakeError,
    TargetMissing,
)


@pytest.mark.parametrize(
    ("kind", "name", "code"),
    [
        (NoSuchImage, "NoSuchImage", 2),
        (Interrupted, "Interrupted", 130),
        (TargetMissing, "NotMade", 2),
        (SpotReclaimed, "Interrupted", 1),
        (ContainerdError, "RuntimeFault", 1),
        (MachineError, "MachineFault", 1),
        (AwsError, "AwsFault", 1),
        (AwsNotFound, "AwsNotFound", 1),
    ],
)
def test_an_error_keeps_its_name_in_json_when_its_class_is_renamed(
    kind: type[ParbakeError], name: str, code: int
) -> None:
    document = kind("what failed", hint="what to do").to_json()
    assert document == {"error": name, "message": "what failed", "hint": "what to do", "exit_code": code}
