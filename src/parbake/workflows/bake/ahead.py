"""What begins while the plan of a volume is made, since it takes as long as the plan: a worker, and loading code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING

from parbake.core.errors import EnvironmentProblem

if TYPE_CHECKING:
    from parbake.bakefile import Bakefile
    from parbake.builders.workers.hire import Spare


@contextmanager
def spare_worker(bakefile: Bakefile, *, force: bool) -> Iterator[Spare | None]:
    """Yield a worker that starts while the plan is made, where a volume will be written.

    That is so if no artefact of this name exists yet. The code of what comes after the plan loads meanwhile too.
    """
    here = not bakefile.traits.on_instance
    first = force or not any(bakefile.output.glob(f"{bakefile.name}-*"))
    spare = None
    with ExitStack() as stack:
        if here and first and not bakefile.artefact.mounted:
            from parbake.builders.workers.hire import Spare  # loads only where a volume will be written

            with suppress(EnvironmentProblem, OSError):  # what is missing is told by the bake, if there is one
                spare = stack.enter_context(Spare())
            Thread(target=_load_ahead, name="load-ahead").start()
        yield spare


def _load_ahead() -> None:
    for name in ("parbake.workflows.bake.make", "parbake.builders.local"):
        import_module(name)
