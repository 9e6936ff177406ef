"""The disk of a plan on this machine: whether there is room for it, its base, and building it large enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from parbake.builders import Builder, Disk, Ingredients, ParentVolume, Publisher
from parbake.builders.choose import builder_of
from parbake.core.errors import ArtefactFull, CacheDamaged, DiskFull, LayerTooLarge
from parbake.core.model import MIB, Plan
from parbake.core.plan import larger, measure
from parbake.core.workspace import part_of, remove_tree, work_folder
from parbake.images.cache import cached
from parbake.images.registry import open_source
from parbake.machine import disk
from parbake.workflows.plan import Session


@contextmanager
def holding_layouts(cache: Path, plan: Plan) -> Iterator[None]:
    """Keep `clean --caches` from removing what this run is going to read of images that lie in the cache."""
    with ExitStack() as stack:
        layouts = [Path(image.layout) for image in plan.all_images if image.layout]
        for part in sorted({path.relative_to(cache).parts[0] for path in layouts if path.is_relative_to(cache)}):
            stack.enter_context(work_folder(part_of(cache, part), plan.key[:12]))
        yield


def need_room(output: Path, plan: Plan) -> None:
    """Raise DiskFull before any work when the output folder cannot hold the artefact, whatever the estimates are."""
    sizes = measure(plan.all_images, keep_layers=plan.keep_layers)
    least = max(sizes.transfer, 0 if sizes.estimated else sizes.raw // 2)
    total, used = disk.usage(output)
    if total - used < least:
        raise DiskFull(
            f"{output} has {(total - used) // MIB} MiB of free space, and the images take more than {least // MIB} MiB",
            hint="free some space, or move `output` to a larger disk",
        )


def find_base(run: Session, plan: Plan, publisher: Publisher | None = None) -> Path | None:
    """Return the base's disk image on this machine; the default one is made when it is not cached."""
    match plan.base.kind:
        case "none":
            return None
        case "debian":
            from parbake.machine import base  # loads only where it is asked for

            choice = run.bakefile.base
            return base.ensure(
                run.cache, run.events, packages=choice.packages, serial=choice.serial, platform=plan.platform
            )
        case "file":
            return Path(plan.base.path)
        case "ami":
            return publisher.base(plan, run.events) if publisher else None


def build_disk(
    run: Session, plan: Plan, base_path: Path | None, work: Path, *, parent: ParentVolume | None = None
) -> tuple[Plan, Disk]:
    """Let the builder make the disk in a work folder; return it, and the plan with the size that it needed."""
    sources = cached(partial(open_source, run.registry), run.cache, run.events)
    ingredients = Ingredients(base_path, sources, work, run.events, run.registry.close, parent, spare=run.spare)
    return build_large_enough(plan, builder_of(run.bakefile), ingredients)


def build_large_enough(plan: Plan, builder: Builder, ingredients: Ingredients) -> tuple[Plan, Disk]:
    """Let the builder make the disk; where the automatic size was too small, again with a larger one.

    How much a layer inflates to, and into how many files, is known for certain only when it is unpacked.
    """
    while True:
        work = ingredients.work / f"{plan.size // MIB}"
        work.mkdir()
        try:
            return plan, builder.build(plan, replace(ingredients, work=work))
        except (ArtefactFull, LayerTooLarge) as error:
            bigger = larger(plan, bomb=isinstance(error, LayerTooLarge))
            if bigger is None:
                raise
            ingredients.events.warn(f"{error.message}: baking again with a disk of {bigger.size // MIB} MiB")
            plan = bigger
        except CacheDamaged as error:
            ingredients.events.warn(f"{error.message}: baking again")
        remove_tree(work)
