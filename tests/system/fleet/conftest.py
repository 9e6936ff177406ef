"""What tests of rollouts share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from standins.fleets import Fleet


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One engine with a worker, for tests that leave them alive; what they have done is done the same again."""
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.work(1)
        yield fleet
        fleet.replay()
