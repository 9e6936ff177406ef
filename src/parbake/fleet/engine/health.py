"""What stands in the way of a fleet: the engine, the key, the store, workers. Asks, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from temporalio.client import Client

from parbake import __version__
from parbake.fleet.engine import schedules, tasks
from parbake.fleet.engine.facts import BAKERS_CAN, Facts
from parbake.fleet.engine.failures import in_words
from parbake.fleet.engine.queues import pollers
from parbake.workflows.doctor import Check, Status

_FOR = ("fleet",)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the engine says: who polls each queue, and why the schedule is held (empty: it is not)."""

    address: str
    workers: Mapping[str, tuple[Facts, ...]]
    held: str = ""


@in_words
async def look(client: Client, fleet: str) -> Seen:
    """Ask the engine. Raises EngineUnreachable."""
    found = {queue: tuple(map(Facts.read, sorted((await pollers(client, queue)).asked))) for queue in tasks.QUEUES}
    return Seen(client.service_client.config.target_host, found, await schedules.held(client, fleet))


@dataclass(frozen=True, slots=True)
class Here:
    """What this machine is, and what the fleet's file says; ``keys`` are the fingerprints of the keys here."""

    host: str
    keys: tuple[str, ...]
    store: str
    verify: bool
    rolls_out: bool = False
    has_places: bool = False


def judge(seen: Seen, here: Here) -> tuple[Check, ...]:
    """Return what is right and wrong. Pure."""
    return tuple(_judged(seen, here))


def _judged(seen: Seen, here: Here) -> Iterator[Check]:
    yield _check("engine", "decides who does what", "ok", seen.address)
    if seen.held:
        yield _check("schedule", "begins runs", "warn", f"held: {seen.held}", "`parbake fleet resume` lets it go on")
    for queue, workers in seen.workers.items():
        needed = {tasks.ROLL: here.rolls_out, tasks.PLACE: here.has_places}.get(queue, True)
        if not workers and needed:
            hint = f"run one: `parbake fleet worker --queues {queue}`"
            yield _check(queue, "works", "missing", f"no worker takes tasks of the queue {queue}", hint)
        for worker in workers:
            problem, hint, status = _problem(queue, worker, here)
            found = f"{worker.name}: {problem}" if problem else worker.name
            yield _check(queue, "works", status, found, hint)


def _problem(queue: str, worker: Facts, here: Here) -> tuple[str, str, Status]:
    """Return what is wrong with a worker, how to mend it, and how bad it is."""
    if worker.key not in here.keys:
        return (
            "its key differs from the one here",
            "give it the fleet's key: PARBAKE_FLEET_KEY names the file",
            "missing",
        )
    if worker.version != __version__:
        return f"it is parbake {worker.version}, and this is {__version__}", "use one version on all machines", "warn"
    if queue == tasks.BAKE and (lacks := sorted(BAKERS_CAN.keys() - worker.can)):
        return ", ".join(BAKERS_CAN[each] for each in lacks), "bakes need both: run it as root, privileged", "missing"
    if not here.store.startswith("s3://") and worker.name.partition("@")[2] != here.host:
        hint = "a worker that has another folder there refuses to work; or name a bucket"
        return f"it is on another machine, which must mount {here.store}", hint, "warn"
    if queue == tasks.BAKE and here.verify and "kvm" not in worker.can:
        return "it has no /dev/kvm, so verification is slow", "give it a machine with KVM", "warn"
    return "", "", "ok"


def _check(name: str, purpose: str, status: Status, found: str, hint: str = "") -> Check:
    return Check(name=name, purpose=purpose, needed_by=_FOR, status=status, found=found, hint=hint)
