"""The images that follow a cluster: what its pods run now, held against the last choice, is the choice of this turn."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

from parbake.bakefile import with_images
from parbake.bakefile.image_set import (
    MOST_IMAGES,
    ClusterImagesSection,
    ImageLock,
    LockedImage,
    SeenImage,
    lock_path,
    read_lock,
)
from parbake.core import access, atomic, steady
from parbake.core.errors import Denied, EnvironmentProblem, InputError, ParbakeError, Unreachable
from parbake.core.events import Events
from parbake.core.model import Image
from parbake.core.printable import word
from parbake.core.reference import Reference
from parbake.core.suggestion import Pick
from parbake.core.workspace import room_for
from parbake.images.live import LiveImages, excluded
from parbake.rollouts.cluster import Cluster

if TYPE_CHECKING:
    from parbake.bakefile import Bakefile
    from parbake.images.registry import Registry

_MOST_TOLD: Final = 20

type Turn = Literal["take", "show", "keep"]
"""Whether a run asks the cluster and writes down its choice, only asks, or goes on with the last choice."""


class _Asking(Protocol):
    """What a turn needs of a session (``plan.Session``)."""

    @property
    def bakefile(self) -> Bakefile: ...

    @property
    def registry(self) -> Registry: ...

    @property
    def events(self) -> Events: ...


def following(run: _Asking, turn: Turn) -> tuple[Bakefile, ImageLock | None]:
    """Return the Bakefile with the images of its cluster, and their lock; None where there is no ``images_from``.

    Where the cluster cannot be asked, the last choice counts. Raises EnvironmentProblem where there is none, Denied for
    an image that the registry does not let parbake have, and what asking registries raises.
    """
    bakefile = run.bakefile
    if bakefile.images_from is None:
        return bakefile, None
    path = lock_path(bakefile.output, bakefile.name)
    before = read_lock(path)
    if turn == "keep" and before:
        return bakefile, before
    wanted = bakefile.images_from.cluster
    cluster = Cluster(wanted.context)
    with run.events.stage("cluster", f"Look at what pods of {cluster} run"):
        live = _live(cluster, wanted, before, path, run.events)
    if live is None:
        assert before
        return bakefile, before
    lock = _choose(run, wanted, live, before, str(cluster))
    _tell(lock, before, run.events)
    changed = with_images(bakefile, lock.images)
    if not changed.images:
        raise EnvironmentProblem(
            f"no image of {cluster} is to be baked: {_why(lock) or 'no pod that counts runs any'}",
            hint="name other namespaces, or list what is always baked under `images`",
        )
    if turn == "take":
        bakefile.output.mkdir(parents=True, exist_ok=True)
        with room_for(path):
            atomic.replace(path, lock.model_dump_json(indent=2) + "\n")
        access.give(bakefile.output, [path], bakefile.readable_by)
    return changed, lock


def _live(
    cluster: Cluster, wanted: ClusterImagesSection, before: ImageLock | None, path: Path, events: Events
) -> LiveImages | None:
    """Return what pods run; None where that cannot be asked and there is an earlier choice."""
    live = LiveImages()
    try:
        for namespace in wanted.namespaces or ("",):
            for pod in cluster.each_pod(namespace):
                live.take(pod)
    except InputError:
        raise
    except ParbakeError as error:
        if before:
            events.warn(f"{error.message}: the choice of {before.at:%Y-%m-%d %H:%M} counts ({path})")
            return None
        raise EnvironmentProblem(
            f"the images of {cluster} are not known, and there is no earlier choice: {error.message}",
            hint="reach the cluster once (`kubectl get pods` shows whether it answers), or list `images`",
        ) from error
    return live


def _choose(
    run: _Asking, wanted: ClusterImagesSection, live: LiveImages, before: ImageLock | None, cluster: str
) -> ImageLock:
    own = {entry.reference for entry in with_images(run.bakefile, ()).images}
    left_out = dict.fromkeys(sorted(live.no_names)[:MOST_IMAGES], "it is no name of an image")
    now: dict[Reference, int] = {}
    for name, nodes in live.nodes().most_common():
        if excluded(name, wanted.exclude):
            left_out[str(name)] = "excluded"
        elif name.is_local:
            left_out[str(name)] = "no registry has it"
        elif live.of_pods[name] < wanted.min_pods:
            left_out[str(name)] = f"{live.of_pods[name]} pods run it, of {wanted.min_pods} that are needed"
        elif len(now) == MOST_IMAGES:
            left_out[str(name)] = f"{MOST_IMAGES} others run on more nodes"
        elif name not in own:
            now[name] = nodes
    earlier = before.seen if before else {}
    counts = steady.remember({name: each.nodes for name, each in earlier.items()}, now)
    counts = {name: each for name, each in list(counts.items())[:MOST_IMAGES] if not excluded(name, wanted.exclude)}
    members = {each.reference for each in before.images} if before else set()
    asked = run.registry.each(lambda name: _digest(run, name, wanted, members), counts)
    digests = dict(zip(counts, asked, strict=True))
    seen = {
        name: SeenImage(digest=digests[name] if digests[name].startswith("sha256:") else "", nodes=counts[name])
        for name in counts
    }
    left_out |= {str(name): word(said) for name, said in digests.items() if not said.startswith("sha256:")}
    at = datetime.now(UTC).replace(microsecond=0)
    same = {name: each.digest for name, each in seen.items()} == {name: each.digest for name, each in earlier.items()}
    if before and same and before.budget == wanted.budget:
        # What nodes run has only come to more or fewer nodes: the set stays, and registries are asked for no manifest.
        still = set(map(str, seen))
        left_out = {name: why for name, why in before.left_out.items() if name in still} | left_out
        calm = min(before.calm + 1, steady.MEMORY)
        return before.model_copy(update={"at": at, "calm": calm, "seen": seen, "left_out": left_out})
    known = [name for name in counts if str(name) not in left_out]
    resolved = run.registry.each(lambda name: _image(run, name, wanted, members), known)
    answers = dict(zip(known, resolved, strict=True))
    images = {name: each for name, each in answers.items() if isinstance(each, Image)}
    left_out |= {str(name): word(each) for name, each in answers.items() if isinstance(each, str)}
    started = steady.demand(live.together(set(images) & set(now)), counts, images)
    settled = steady.settle(_kept(before, images), before.calm if before else 0, started, wanted.budget)
    chosen = {pick.image.reference: pick for pick in settled.choice.picks}
    served = {layer.chain_id for pick in chosen.values() for layer in pick.image.layers[: pick.layers]}
    left_out |= {
        str(name): "others save nodes more, within the budget"
        for name, image in images.items()
        if name not in chosen and not {layer.chain_id for layer in image.layers} <= served
    }
    locked = tuple(
        LockedImage(
            reference=name,
            digest=pick.image.target.digest,
            layers=0 if pick.whole else pick.layers,
            of_layers=len(pick.image.layers),
            why=_reason(counts[name]),
        )
        for name, pick in sorted(chosen.items(), key=lambda item: (-max(counts[item[0]]), str(item[0])))
    )
    moved = before is None or _set(before.images) != _set(locked)
    return ImageLock(
        cluster=cluster,
        at=at,
        changed=at if moved or before is None else before.changed,
        calm=settled.calm,
        budget=wanted.budget,
        images=locked,
        left_out=dict(sorted(left_out.items())),
        seen=seen,
    )


def _set(images: tuple[LockedImage, ...]) -> set[tuple[str, str, int]]:
    return {(str(each.reference), each.digest, each.layers) for each in images}


def _kept(before: ImageLock | None, images: Mapping[Reference, Image]) -> list[Pick]:
    """Return what stays of the last choice, without what is gone; of a part, only where the image is still the same."""
    return [
        Pick(image, each.layers or len(image.layers))
        for each in (before.images if before else ())
        if (image := images.get(each.reference)) and (not each.layers or image.target.digest == each.digest)
    ]


def _reason(nodes: tuple[int, ...]) -> str:
    if nodes[0]:
        return f"on {nodes[0]} {'node' if nodes[0] == 1 else 'nodes'}"
    ago = next(turns for turns, count in enumerate(nodes) if count)
    return f"on {nodes[ago]} {'node' if nodes[ago] == 1 else 'nodes'} {ago} {'turn' if ago == 1 else 'turns'} ago"


def _digest(run: _Asking, name: Reference, wanted: ClusterImagesSection, members: set[Reference]) -> str:
    """Return what a name means now, or in words why that is not known; costs registries no pull."""
    if name.digest:
        return name.digest
    try:
        return run.registry.head(name).digest
    except ParbakeError as error:
        return _left_out(name, error, wanted, members)


def _image(run: _Asking, name: Reference, wanted: ClusterImagesSection, members: set[Reference]) -> Image | str:
    try:
        return run.registry.resolve(name, run.bakefile.platform)
    except ParbakeError as error:
        return _left_out(name, error, wanted, members)


def _left_out(name: Reference, error: ParbakeError, wanted: ClusterImagesSection, members: set[Reference]) -> str:
    """Return why an image is left out; raises the error where that is no reason to leave it out."""
    if isinstance(error, Denied) and wanted.missing == "fail":
        raise Denied(
            error.message,
            hint=f"{error.hint}; or `missing: skip` below `images_from.cluster` bakes the other images",
        ) from error
    if isinstance(error, Unreachable) and name in members:
        raise error
    return error.message


def _tell(lock: ImageLock, before: ImageLock | None, events: Events) -> None:
    """Say what came into the set, what went, and why others are not in it: what was said before is not said again."""
    had, has = ({str(each.reference) for each in one.images} if one else set() for one in (before, lock))
    for name in sorted(had - has):
        events.note(f"{name} is not baked any more: {lock.left_out.get(name, 'no pod has run it in the last turns')}")
    new = [name for name in lock.left_out if before is None or lock.left_out[name] != before.left_out.get(name)]
    for name in [each for each in new if each not in had][:_MOST_TOLD]:
        events.note(f"{name} is left out: {lock.left_out[name]}")
    if len(new) > _MOST_TOLD:
        events.note(f"{len(new) - _MOST_TOLD} more are left out: the lock says why")


def _why(lock: ImageLock) -> str:
    return "; ".join(f"{name}: {why}" for name, why in list(lock.left_out.items())[:3])
