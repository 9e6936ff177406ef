"""``parbake init``: find the images, ask for their sizes, write the Bakefile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from parbake.bakefile import scaffold
from parbake.core.errors import InputError, ParbakeError
from parbake.core.events import Events
from parbake.core.model import Platform
from parbake.core.reference import Reference
from parbake.images import workloads as kubernetes
from parbake.images.registry import Registry
from parbake.images.registry.retry import SHORT
from parbake.rollouts.cluster import Cluster
from parbake.workflows.init import startups
from parbake.workflows.init.eks import look, node_classes

# Sizes are a courtesy in a comment: a registry that does not answer soon is not worth the wait.


@dataclass(frozen=True, slots=True)
class InitOptions:
    """What a Bakefile is to be made of: ``images``, ``manifests`` (a folder, a file, or ``-``), or a ``cluster``'s.

    ``eks`` makes it one for the nodes of kubectl's cluster: a volume for Karpenter's node class. ``sizes`` are told in
    comments; ``force`` replaces files.
    """

    images: tuple[str, ...] = ()
    manifests: str | None = None
    cluster: bool = False
    context: str = ""
    sizes: bool = False
    force: bool = False
    eks: bool = False


def begin(folder: Path, events: Events, options: InitOptions) -> tuple[Path, ...]:
    """Write a Bakefile for what the user named, or for what the folder holds; return the files that were written.

    Raises InputError when files exist already (unless ``force``), when there is nothing to bake, or for a named image
    that could only be built.
    """
    context, eks, manifests = options.context, options.eks, options.manifests
    settings = look(context).settings(context) if eks else {}
    cluster = options.cluster or (eks and manifests is None and not options.images)
    entries = [_named(image) for image in options.images]
    if manifests is not None or cluster:
        entries += _from_kubernetes(manifests, cluster, context, events)
        if not entries:
            raise InputError("no images were found", hint="do the manifests hold Pods, Deployments, Jobs or the like?")
    if cluster and not eks and _has_node_classes(context):
        events.note(
            "the cluster has Karpenter's node classes: `--for eks` writes a Bakefile that can be rolled out there"
        )
    if options.sizes:
        entries = _with_sizes(entries, events)
    return scaffold.write(folder, entries, today=datetime.now(UTC).date(), settings=settings, force=options.force)


def _has_node_classes(context: str) -> bool:
    with suppress(ParbakeError):  # a hint is not worth an error
        return bool(node_classes(Cluster(context)))
    return False


def _named(image: str) -> scaffold.InitImage:
    reference = Reference.parse(image)
    if reference.is_local:
        raise InputError(
            f"{reference} is in no registry: `localhost` without a port is for images that are built here",
            hint="run `parbake init` in the folder of its Containerfile, without --image; or name the registry's port",
        )
    return scaffold.InitImage(reference)


def _from_kubernetes(manifests: str | None, cluster: bool, context: str, events: Events) -> list[scaffold.InitImage]:
    names = () if manifests is None else (manifests,)
    found = kubernetes.images_in(kubernetes.collect(names, cluster=cluster, context=context))
    for warning in found.warnings:
        events.warn(warning)
    entries = []
    for image in sorted(found.images, key=lambda each: not each.on_every_node):
        if image.reference.is_local:
            events.warn(f"{image.reference} is left out: it is in no registry, and nothing says how to build it")
            continue
        entries.append(_entry(image, found.configs))
    if unknown := [str(entry.reference) for entry in entries if entry.fill]:
        events.warn(
            f"{', '.join(unknown[:3])}{' and others' * (len(unknown) > 3)}: some variables are of a Secret or a "
            f"ConfigMap that was not read; {scaffold.FILE_NAME} names them, to be filled in before a bake"
        )
    return entries


def _entry(image: kubernetes.FoundImage, configs: kubernetes.ConfigMaps) -> scaffold.InitImage:
    uses = tuple(str(use) for use in image.uses)
    if image.only_mounted:
        return scaffold.InitImage(image.reference, uses=uses, startup={"up": "mounted"})
    start = startups.start(image, configs)
    known = image.container and len(uses) > 1 and (start.keys or start.fill)
    first = [f"as {image.container.use} starts it"] if image.container and known else []
    return scaffold.InitImage(
        image.reference,
        uses=uses,
        on_every_node=image.on_every_node,
        startup=start.keys,
        fill=start.fill,
        notes=(*first, *start.notes),
    )


def _with_sizes(entries: list[scaffold.InitImage], events: Events) -> list[scaffold.InitImage]:
    platform = Platform.host()
    with Registry({}, events=events, patience=SHORT) as registry, ThreadPoolExecutor(max_workers=8) as pool:

        def sized(entry: scaffold.InitImage) -> scaffold.InitImage:
            try:
                return replace(entry, size=registry.resolve(entry.reference, platform).size)
            except ParbakeError:
                return entry  # unknown: the bake will say why

        return list(pool.map(sized, entries))
