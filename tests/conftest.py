"""What holds for every test."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# moto makes a thousand AMIs of its own in each region otherwise, for each test that asks for EC2; ours make theirs.
os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"

# Tests have homes of their own, and share what is made once for all of them: so is the key that it is sealed with.
os.environ.setdefault("XDG_STATE_HOME", str(Path.home() / ".local/state"))

# Who starts the tests in the background may have these ignored, and programs inherit that: then nothing can be
# interrupted, and tests of interruptions would fail.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How long an example takes depends on what else the machine does: no property is about that.
settings.register_profile("parbake", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("parbake")


@pytest.fixture
def made_up_records() -> Iterator[None]:
    """Let AWS show the images of records that a test has made up, such as those of ``clusters.project``."""
    from standins import clusters

    with clusters.showing():
        yield


_LIBC = ctypes.CDLL(None)
_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3  # malloc.h


def pytest_configure(config: pytest.Config) -> None:
    """Keep the processes of thousands of tests small.

    Large buffers go back to the system at once, and threads share their heaps. What texts are made of is written down
    by a process of its own: each worker would hold 200 MiB to its end.
    """
    _LIBC.mallopt(_M_ARENA_MAX, 2)
    _LIBC.mallopt(_M_MMAP_THRESHOLD, 256 << 10)
    table = config.rootpath / ".hypothesis/unicode_data"
    if not hasattr(config, "workerinput") and not any(table.glob("*/codec-*")):
        make = "from hypothesis import strategies; strategies.text().validate()"
        subprocess.run([sys.executable, "-c", make], check=True, cwd=config.rootpath)


def pytest_unconfigure() -> None:
    """End what the tests of this process share."""
    preloaded = sys.modules.get("standins.preloaded")
    if preloaded is not None:
        preloaded.end()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What thousands of tests are made of stays to the end: no search for garbage is to go through it, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where files of tests run side by side, begin with those that take long: none is to be left alone at the end."""
    if hasattr(config, "workerinput"):
        weights: dict[Any, float] = {}
        for item in items:
            if (marker := item.get_closest_marker("slow")) is not None:
                weights[item.path] = max(weights.get(item.path, 0), *marker.args, 10)
        items.sort(key=lambda item: -weights.get(item.path, 0))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Files that boot machines do not wait for each other in processes that could run others."""
    if config.getoption("dist") != "loadfile":
        return None
    from tests.scheduling import FewMachines

    return FewMachines(config, log)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Give back at the end of each file what its tests had: buffers that a caught error's frames still hold, too."""
    if nextitem is None or nextitem.path != item.path:
        module = item.getparent(pytest.Module)
        assert module is not None
        for made in list(vars(module.obj).values()):
            # What a file's tests share, functions with a cache make: when it is needed, in the process that needs it.
            if getattr(made, "__module__", "") == module.obj.__name__ and hasattr(made, "cache_clear"):
                made.cache_clear()
        gc.collect()
        _LIBC.malloc_trim(0)
