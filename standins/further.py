"""More proofs in a machine that a test boots anyway: to boot one in emulation takes a minute.

    steps = Steps({"network": network, "store": store})
    steps.join(monkeypatch, "parbake.coldstart.rehearsal.machine")     # whose verification boots it
    ...                                                                # parbake does what it is told
    steps.check("network")                                             # in a test of its own: raises what it raised

They run, one after the other, when the verification is done with its machine. One that fails keeps no other from being
run, and is told by its own test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Self, override

import pytest

from parbake.verify import Verification

Step = Callable[[Verification], None]


class Steps:
    """Named functions that look into a machine and raise what is wrong; ``prepare`` is called before it boots."""

    def __init__(self, steps: Mapping[str, Step], *, prepare: Step = lambda _: None) -> None:
        self._steps, self._prepare = steps, prepare
        self._outcomes: dict[str, BaseException | None] = {}

    def join(self, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
        """Let the verification of a module take the steps along."""
        steps = self

        class Joined(Verification):
            @override
            def __enter__(self) -> Self:
                steps._prepare(self)
                return super().__enter__()

            @override
            def __exit__(self, *error: object) -> None:
                try:
                    if error[:1] == (None,):
                        steps.take(self)
                finally:
                    super().__exit__(*error)

        monkeypatch.setattr(import_module(module), "Verification", Joined)

    def take(self, verification: Verification) -> None:
        """Take all steps, once: in a machine of which a test has another use."""
        for name, step in self._steps.items():
            try:
                step(verification)
            except Exception as error:  # noqa: BLE001 - its own test raises it
                self._outcomes[name] = error
            else:
                self._outcomes[name] = None

    def check(self, name: str) -> None:
        """Raise what a step raised."""
        assert name in self._outcomes, "no machine came so far"
        if (error := self._outcomes[name]) is not None:
            raise error
