"""What holds for every test."""

from __future__ import annotations

import signal

import pytest

# Who starts the tests in the background may have these ignored, and programs inherit that: then nothing can be
# interrupted, and tests of interruptions would fail.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where tests run side by side: one worker has all virtual machines, which take long, and begins with them."""
    if not hasattr(config, "workerinput"):
        return
    items.sort(key=lambda item: item.get_closest_marker("vm") is None)
    for item in items:
        group = "machines" if item.get_closest_marker("vm") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
