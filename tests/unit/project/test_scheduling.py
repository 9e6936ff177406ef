"""Files of tests that run side by side: who boots machines holds nobody else up."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Self

from tests.scheduling import SLOTS, FewMachines


class Worker:
    def send_runtest_some(self, indices: list[int]) -> None:
        assert indices


class Scheduling(FewMachines):
    def __init__(self, files: list[str], workers: int) -> None:
        self.collection = [f"{file}::test_it" for file in files]
        self.workqueue = OrderedDict((file, {f"{file}::test_it": False}) for file in files)
        self.nodes_there: list[Any] = [Worker() for _ in range(workers)]
        self.assigned_work: dict[Any, dict[str, dict[str, bool]]] = {node: {} for node in self.nodes_there}
        self.registered_collections = dict.fromkeys(self.nodes_there, self.collection)

    def give(self, worker: int) -> str:
        """Give a worker the next file; return which."""
        self._assign_work_unit(node := self.nodes_there[worker])
        return next(reversed(self.assigned_work[node]))

    def end(self, worker: int, file: str) -> Self:
        self.assigned_work[self.nodes_there[worker]][file][f"{file}::test_it"] = True
        return self


def test_no_more_machines_than_places_and_the_others_go_on() -> None:
    machines, others = [f"tests/vm/test_{n}.py" for n in range(SLOTS + 1)], ["tests/unit/a.py", "tests/unit/b.py"]
    scheduling = Scheduling([*machines, *others], SLOTS + 1)
    assert [scheduling.give(n) for n in range(SLOTS + 1)] == [*machines[:SLOTS], others[0]]
    assert scheduling.end(SLOTS, others[0]).end(0, machines[0]).give(SLOTS) == machines[SLOTS], "a place is free"


def test_where_nothing_else_is_left_machines_run() -> None:
    machines = [f"tests/vm/test_{n}.py" for n in range(SLOTS + 1)]
    scheduling = Scheduling(machines, SLOTS + 1)
    assert [scheduling.give(n) for n in range(SLOTS + 1)] == machines
