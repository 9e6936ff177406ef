"""Random stacks of hostile layers against containerd, for a while: ``make fuzz``.

The engine is no fuzzer of bytes: a stack is made from a number, so that one that fails can be had again. What fails is
made smaller before it is told.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

from standins.comparison import Difference, Way, comparison

COMPARISONS: dict[str, Way] = {"mounted_stacks": "mounted", "volume_stacks": "volume"}
"""Names beside those of ``targets``: layers unpacked on a mounted file system, and by parbake's own writer of ext4."""


def compare(name: str, seconds: float, found: Path) -> bool:
    """Compare for so long; print what came of it, and return whether no difference was found.

    A finding is a file in ``found`` with the stack's number in it.
    """
    end = time.monotonic() + seconds
    seed = first = int.from_bytes(os.urandom(6))
    seen: Counter[str] = Counter()
    with comparison(COMPARISONS[name]) as held:
        while not seen or time.monotonic() < end:
            try:
                seen[held.run(seed)] += 1
            except Difference as difference:
                file = found / f"{name}-{seed}"
                file.write_text(f"{seed}\n")
                print(f"{name}: stack {seed}:\n{difference}")
                print(f"Test unit written to {file}")
                return False
            seed += 1
    said = ", ".join(f"{count} {outcome}" for outcome, count in seen.most_common())
    print(f"stat::number_of_executed_units: {seen.total()}")
    print(f"stacks {first} to {seed - 1}: {said}")
    return True


def again(name: str, file: Path) -> None:
    """Compare one stack again; raises Difference."""
    with comparison(COMPARISONS[name]) as held:
        held.run(int(file.read_text()))
