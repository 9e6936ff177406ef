"""What holds for every test."""

from __future__ import annotations

import os
import signal

import pytest

# moto makes a thousand AMIs of its own in each region otherwise, for each test that asks for EC2; ours make theirs.
os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"

# Who starts the tests in the background may have these ignored, and programs inherit that: then nothing can be
# interrupted, and tests of interruptions would fail.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where files of tests run side by side, begin with those that take long: none is to be left alone at the end."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
