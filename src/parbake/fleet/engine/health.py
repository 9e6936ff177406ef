"""What stands in the way of a fleet: the engine, the key, the store, workers. Asks, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, GetSystemInfoRequest
from temporalio.client import Client

from parbake import __version__
from parbake.fleet.engine import schedules, search, tasks
from parbake.fleet.engine.facts import BAKERS_CAN, Facts, pollers
from parbake.fleet.engine.failures import in_words
from parbake.workflows.doctor import Check, Status

_FOR = ("fleet",)
_LEAST_KEPT = timedelta(days=7)
"""A rollout lasts for days, and what it has written is wanted back after its end."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the engine says: who polls each queue, and why the schedule is held (empty: it is not).

    ``kept`` is how long it knows what has ended, ``searchable`` as in ``search``.
    """

    address: str
    workers: Mapping[str, tuple[Facts, ...]]
    held: str = ""
    version: str = ""
    kept: timedelta = timedelta(days=30)
    searchable: Sequence[str] = search.NAMES


@in_words
async def look(client: Client, fleet: str) -> Seen:
    """Ask the engine. Raises EngineUnreachable."""
    found = {queue: tuple(map(Facts.read, sorted((await pollers(client, queue)).asked))) for queue in tasks.QUEUES}
    about = await client.workflow_service.get_system_info(GetSystemInfoRequest())
    space = await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
    return Seen(
        client.service_client.config.target_host,
        found,
        await schedules.held(client, fleet),
        about.server_version,
        space.config.workflow_execution_retention_ttl.ToTimedelta(),
        await search.registered(client),
    )


@dataclass(frozen=True, slots=True)
class Here:
    """What this machine is, and what the fleet's file says; ``keys`` are the fingerprints of the keys here.

    ``needs_root``: some of what is baked is mounted or built, see ``facts.need_root``.
    """

    host: str
    keys: tuple[str, ...]
    store: str
    verify: bool
    rolls_out: bool = False
    has_places: bool = False
    needs_root: bool = True


def judge(seen: Seen, here: Here) -> tuple[Check, ...]:
    """Return what is right and wrong. Pure."""
    return tuple(_judged(seen, here))


def _judged(seen: Seen, here: Here) -> Iterator[Check]:
    version = f" (Temporal {seen.version})" if seen.version else ""
    yield _check("engine", "decides who does what", "ok", f"{seen.address}{version}")
    if seen.kept < _LEAST_KEPT:
        yield _check(
            "histories",
            "lead back",
            "warn",
            f"the engine forgets after {seen.kept.total_seconds() / 3600:.0f} h what has ended: `fleet logs` and "
            "`fleet rollback` need it",
            "`temporal operator namespace update --retention 30d`, and --namespace unless it is `default`",
        )
    if missing := [name for name in search.NAMES if name not in seen.searchable]:
        found = f"no search by {', '.join(missing)}: docs/how-to/fleet-engine.md says how to have it"
        yield _check("search", "finds cells and states", "ok", found, f"`{search.HOW}`")
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
    if queue == tasks.BAKE and here.needs_root and (lacks := sorted(BAKERS_CAN.keys() - worker.can)):
        return ", ".join(BAKERS_CAN[each] for each in lacks), "bakes need both: run it as root, privileged", "missing"
    if not here.store.startswith("s3://") and worker.name.partition("@")[2] != here.host:
        hint = "a worker that has another folder there refuses to work; or name a bucket"
        return f"it is on another machine, which must mount {here.store}", hint, "warn"
    if queue == tasks.BAKE and here.verify and "kvm" not in worker.can:
        return "it has no /dev/kvm, so verification is slow", "give it a machine with KVM", "warn"
    return "", "", "ok"


def _check(name: str, purpose: str, status: Status, found: str, hint: str = "") -> Check:
    return Check(name=name, purpose=purpose, needed_by=_FOR, status=status, found=found, hint=hint)
