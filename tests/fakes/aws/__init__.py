"""AWS, for tests."""

from tests.fakes.aws import lean

__all__ = ["lean"]
