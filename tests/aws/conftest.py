"""A stand-in for AWS in this process: moto, which keeps to AWS's interfaces and to nothing behind them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from parbake.aws import clients, waiters
from standins.aws import lean

REGION = "eu-west-1"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Credentials that are none, no configuration of the developer's, and waits that do not last."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(waiters, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(waiters, "_LONGEST_PAUSE", 0.002)
    clients.forget()
    yield
    clients.forget()


@pytest.fixture
def aws_mock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Answer every AWS call from memory, in which there is nothing yet."""
    # Hundreds of strangers' AMIs otherwise, with snapshots that every call would look through.
    monkeypatch.setattr(lean.amis, "AMIS", [])
    with lean.mock_aws():
        yield
