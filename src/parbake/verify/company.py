"""Start images beside each other, and look at each once more when all have started.

What starts may still fail: a program that lacks its database ends after some seconds. So all stay until the last has
started, and each as long as the ``watch`` of its startup says. They share one network and one memory, so two may want
the same port: what fails beside others is started again alone, and only that counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from parbake.core.model import RunningProbe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from parbake.core.events import Events
    from parbake.core.model import ImageVerdict, Startup
    from parbake.verify.starter import Begun, Started, Starter


def start_all(starter: Starter, images: Sequence[tuple[str, Startup]], events: Events) -> Iterator[tuple[str, Started]]:
    """Start images by their names in the store; yield what is known of each, the last of which counts.

    Raises MachineError when the machine is gone.
    """
    company: list[tuple[str, Begun]] = []
    alone: list[tuple[str, Startup]] = []
    for name, startup in images:
        with events.stage(f"start {name}", f"Start {name}"):
            begun = starter.begin(name, startup)
        yield name, begun.started
        if begun.since:
            company.append((name, begun))
        elif begun.started.problems and company:
            alone.append((name, startup))
    if company:
        with events.stage("watch", "Look whether what started still runs"):
            looked = [(name, begun.startup, starter.look_again(begun)) for name, begun in company]
        for name, startup, started in looked:
            yield name, started
            if started.problems and len(images) > 1:  # alone, it has at least as long to fail
                alone.append((name, startup.model_copy(update={"watch": startup.watch + (started.ran_seconds or 0)})))
    for name, startup in alone:
        with events.stage(f"start {name} alone", f"Start {name} again, alone: it failed beside others"):
            yield name, starter.look_again(starter.begin(name, startup))


def cautions(images: Sequence[ImageVerdict]) -> tuple[str, ...]:
    """Return what a reader should know of images that passed: those of which nothing was asked. Pure."""
    silent = [f"{each.reference} ({each.ran_seconds:.0f} s)" for each in images if _only_ran(each)]
    if not silent:
        return ()
    return (
        f"nothing was asked of {', '.join(silent)}: that a program runs does not say that it works. Write when it is "
        "up, as `startup: {up: {http: 8080/healthz}}` (or `tcp`, `log`, `exec`), or how long it has to run (`running`)",
    )


def _only_ran(image: ImageVerdict) -> bool:
    default = image.startup is not None and image.startup.up == RunningProbe()
    return default and image.shown == "running" and image.ran_seconds is not None and not image.problems
