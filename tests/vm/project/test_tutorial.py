"""The tutorial, followed to the letter: it bakes, and boots what it has baked."""

from __future__ import annotations

import pytest

from tests.system.project.test_docs import TUTORIAL, World, default_base, follow, world

__all__ = ["default_base", "world"]

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow(80)]


def test_the_tutorial_can_be_followed(world: World) -> None:
    follow(TUTORIAL, world)
