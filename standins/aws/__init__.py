"""AWS, for tests."""

from standins.aws import lean

__all__ = ["lean"]
