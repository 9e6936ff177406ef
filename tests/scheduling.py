"""Which file of tests a process gets next, where files run side by side."""

from __future__ import annotations

import os
from typing import override

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

MACHINES = "tests/vm/"
SLOTS = max(1, int(os.environ.get("VM_JOBS", "3")))


class FewMachines(LoadFileScheduling):  # type: ignore[misc] # which has none
    """Files go out in their order, but of those that boot machines no more than ``SLOTS`` at a time.

    An emulated machine takes a processor. Whoever would have to wait for one runs something else meanwhile.
    """

    @override
    def _assign_work_unit(self, node: WorkerController) -> None:
        if self._booting() >= SLOTS:
            other = next((scope for scope in self.workqueue if not scope.startswith(MACHINES)), None)
            if other is not None:
                self.workqueue.move_to_end(other, last=False)
        super()._assign_work_unit(node)

    def _booting(self) -> int:
        """Return how many processes have machines to boot, now or next."""
        return sum(
            any(scope.startswith(MACHINES) and not all(tests.values()) for scope, tests in work.items())
            for work in self.assigned_work.values()
        )
