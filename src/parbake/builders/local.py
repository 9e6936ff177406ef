"""The local builder: fills a disk image or a fresh volume offline. No boot, no cloud, any architecture.

An ext4 volume takes neither root nor a containerd: the layers' files, and those of the store, are written into its
file. All else is mounted, and a private containerd works on it. What is mounted lives in a mount namespace of this
run's own: it goes away with the process, however it ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, override

from parbake.builders import Builder, Disk, Ingredients, ParentVolume
from parbake.builders.fill import MountedStore, VolumeImage, fill, held
from parbake.builders.seal import seal
from parbake.builders.workers.pool import Workers, count_for
from parbake.containerd import Daemon
from parbake.containerd.skeleton import STAGING
from parbake.core.errors import ArtefactFull, BadBase, DiskFull, Interrupted, ParbakeError
from parbake.core.model import MIB, Plan
from parbake.core.plan import title
from parbake.core.run import need, need_root
from parbake.core.workspace import remove_tree
from parbake.machine import disk
from parbake.machine.ext4 import ForeignVolume, Volume

if TYPE_CHECKING:
    from parbake.containerd import Client
    from parbake.core.events import Events
    from parbake.machine.disk.tables import Partition

# Less free space than a file system in a file writes at once counts as none.
_HOST_FULL = 4 * MIB

NO_SANDBOX = (
    "the base's containerd names no sandbox (pause) image: unless its configuration is written at boot, it will pull "
    "the one that is compiled into it; set `sandbox` to that name (`containerd config default` on the base shows it)"
)


class LocalBuilder(Builder):
    """Fills on this machine. What is mounted for that needs root, a loop device and containerd."""

    @override
    def build(self, plan: Plan, ingredients: Ingredients) -> Disk:
        """Make the disk in the work folder.

        Raises BadBase (no root file system, no runtime, a sandbox image that nobody brings), DiskFull, and whatever
        filling raises.
        """
        with _telling_full_host(ingredients.work):
            if not plan.artefact.mounted:
                return _bake_ext4(plan, ingredients)
            need_root("baking")
            with disk.private_mounts():
                if plan.artefact.kind == "volume":
                    return _bake_xfs(plan, ingredients)
                return _bake_machine_image(plan, ingredients)


def _bake_ext4(plan: Plan, ingredients: Ingredients) -> Disk:
    """Make a file system that is the runtime's root: a node mounts it there. Nothing is mounted here."""
    volume = ingredients.work / "disk.raw"
    return _start_from_parent(volume, plan, ingredients) or _make_ext4(volume, plan, ingredients)


def _make_ext4(volume: Path, plan: Plan, ingredients: Ingredients) -> Disk:
    _format(volume, plan, ingredients.events)
    try:
        built = _write_ext4(volume, plan, ingredients)
    except ArtefactFull as error:
        if not plan.size_is_fixed:
            raise  # a larger one is better than a full one
        ingredients.events.note(f"{error.message}: trying again, one layer after the other")
        disk.make_filesystem(volume, plan.artefact.filesystem, plan.size, name=plan.key)
        built = _write_ext4(volume, plan, ingredients, dense=True)
    _check(volume, plan, ingredients.events)
    return built


def _format(volume: Path, plan: Plan, events: Events) -> None:
    with events.stage("format", f"Make the {plan.artefact.filesystem} file system"):
        disk.make_filesystem(volume, plan.artefact.filesystem, plan.size, name=plan.key)


def _check(volume: Path, plan: Plan, events: Events) -> None:
    with events.stage("check", "Check the file system"):
        disk.check_filesystem(volume, plan.artefact.filesystem)


def _start_from_parent(volume: Path, plan: Plan, ingredients: Ingredients) -> Disk | None:
    """Copy or take the earlier volume, change what differs, and check it; None where there is none that serves.

    Its bytes are compared with its list before anything in it is used, unless ``ParentVolume.memory`` spares that.
    """
    parent, events = ingredients.parent, ingredients.events
    if parent is None or not parent.path.exists():
        return None
    second = None
    try:
        if parent.spent:
            parent.path.rename(volume)
            if parent.memory is None:
                with events.stage("compare", f"Compare the disk of {parent.name}"):
                    disk.compare(volume, parent.blocks, events)
        else:
            with events.stage("copy", f"Copy {parent.name}"):
                second = disk.copy_listed(
                    parent.path, volume, parent.blocks, events, memory=parent.memory, saves=parent.saves
                )
        built = _write_ext4(volume, plan, ingredients, parent, second=second)
        _check(volume, plan, events)
    except disk.CopyTakesLonger as error:
        events.note(f"making a new volume without {parent.name}: {error.message} ({error.hint})")
    except (ForeignVolume, ArtefactFull) as error:
        events.note(f"{parent.name} cannot be the base of this volume ({error.message}): making a new one")
    except disk.NotAsListed as error:
        events.warn(f"{parent.name} is damaged ({error.message}): making a new volume without it")
    except Exception:
        if parent.memory and second:  # a disk may have changed what nobody wrote to: the next bake looks
            parent.memory.forget()
        raise
    else:
        return built
    volume.unlink(missing_ok=True)
    return None


def _write_ext4(
    volume: Path,
    plan: Plan,
    ingredients: Ingredients,
    parent: ParentVolume | None = None,
    *,
    second: Path | None = None,
    dense: bool = False,
) -> Disk:
    """Fill an ext4 volume without mounting it.

    Of a parent that was not compared with its list, the blocks that are written to are: the new list has new digests
    for them, which would hide damage. Afterwards where there is a ``second`` copy; before it, where the parent itself
    is written to. Raises NotAsListed for these.
    """
    events, blobs = ingredients.events, ingredients.work / "blobs"
    blobs.mkdir(exist_ok=True)
    with (
        _telling_full_artefact(plan, ingredients.work),
        events.stage("fill", f"Fill the volume ({', '.join(title(image) for image in plan.all_images)})"),
        Volume(volume) as writer,
    ):
        layers = {layer.chain_id: layer.size for image in plan.all_images for layer in image.layers}
        sizes = [size for chain, size in layers.items() if chain not in writer.placed]
        with Workers(ingredients.work / "workers.log", count_for(sizes), ingredients.spare) as workers:
            if parent:
                writer.rename(disk.filesystem_uuid(plan.key))
            destination = VolumeImage(plan, writer, workers, blobs, dense=dense)
            if parent and parent.spent and parent.memory:
                disk.compare(volume, parent.blocks, events, writer.shared_units())
            fill(
                plan,
                destination.store,
                ingredients.source,
                destination=destination,
                events=events,
                close_connections=ingredients.close_connections,
            )
        destination.finish_volume()
    built = Disk(volume, hashes=writer.hashes.known)
    if parent is None:
        return built
    if second:
        disk.compare(second, parent.blocks, events, writer.hashes.touched)
        second.unlink()
    left = {index: digest for index, digest in parent.blocks.blocks.items() if index not in writer.hashes.touched}
    built = replace(built, parent=parent.name)
    if parent.blocks.algorithm == "sha256":
        return replace(built, inherited=left)
    return replace(built, hashes={**built.hashes, **left})


def _bake_xfs(plan: Plan, ingredients: Ingredients) -> Disk:
    """Make such a file system of XFS, which is mounted to be filled."""
    volume = ingredients.work / "disk.raw"
    _format(volume, plan, ingredients.events)
    options = disk.FAST["xfs"]
    with disk.mount(volume, ingredients.work / "mnt", filesystem="xfs", options=options) as mounted:
        _fill_store(mounted.path, plan, ingredients)
        with ingredients.events.stage("trim", "Write to disk, give back unused space"):
            disk.trim(mounted)
    _check(volume, plan, ingredients.events)
    return Disk(volume)


def _bake_machine_image(plan: Plan, ingredients: Ingredients) -> Disk:
    """Copy the base and fill the store of its own containerd."""
    events, raw, at = ingredients.events, ingredients.work / "disk.raw", ingredients.work / "mnt"
    root = grown_copy(plan, ingredients)
    options = disk.FAST[root.filesystem]
    with disk.mount(raw, at, offset=root.start, size=root.size, filesystem=root.filesystem, options=options) as mounted:
        runtime = disk.find_runtime(mounted.path)
        if enforces := disk.file_contexts(mounted.path) is not None:
            need("setfiles")
        _fill_store(runtime.root, plan, ingredients, sandbox=runtime.sandbox_image)
        with events.stage("seal", "Seal the machine image"):
            sealed = seal(mounted.path)
        if enforces:
            with events.stage("label", "Label the files for SELinux"):
                disk.label(mounted.path, [runtime.root])
        with events.stage("trim", "Write to disk, give back unused space"):
            disk.trim(mounted)
    with events.stage("check", "Check the file system"):
        disk.check_filesystem(raw, root.filesystem, offset=root.start, size=root.size)
    return Disk(in_format(raw, plan, ingredients), sealed)


def grown_copy(plan: Plan, ingredients: Ingredients) -> Partition:
    """Copy the base to ``disk.raw`` in the work folder, with the plan's size; return where its root file system is."""
    assert ingredients.base
    raw, at = ingredients.work / "disk.raw", ingredients.work / "mnt"
    with ingredients.events.stage("copy", "Copy the base"):
        disk.to_raw(ingredients.base, raw, ingredients.events)
        root = disk.find_root(raw, called=ingredients.base)
        root = disk.grow(raw, root, plan.size)
        disk.grow_filesystem(raw, root.filesystem, at, offset=root.start, size=root.size)
    return root


def _fill_store(root: Path, plan: Plan, ingredients: Ingredients, *, sandbox: str = "") -> None:
    """Fill a containerd store with the plan's images, by a containerd of our own that works on it."""
    events, staging = ingredients.events, root / STAGING
    with (
        _telling_full_artefact(plan, ingredients.work),
        events.stage("fill", f"Fill the store ({', '.join(title(image) for image in plan.all_images)})"),
        Daemon(root, ingredients.work / "containerd") as daemon,
        daemon.client() as client,
        held(client, plan.key) as store,
    ):
        remove_tree(staging)  # a base that was itself captured in the middle of something
        staging.mkdir(mode=0o700)
        try:
            fill(
                plan,
                store,
                ingredients.source,
                destination=MountedStore(store, staging),
                events=events,
                close_connections=ingredients.close_connections,
            )
        finally:
            remove_tree(staging)
        if sandbox:
            _check_sandbox(sandbox, store)
        elif plan.artefact.kind == "machine-image" and plan.sandbox is None:
            events.warn(NO_SANDBOX)


@contextmanager
def _telling_full_host(work: Path) -> Iterator[None]:
    """Say so when a bake failed because the host's disk is full: to a file system in a file, that is a broken disk."""
    try:
        yield
    except (ParbakeError, OSError) as error:
        if not isinstance(error, (Interrupted, DiskFull)) and _is_full(work):
            raise _host_full(work) from error
        raise


@contextmanager
def _telling_full_artefact(plan: Plan, work: Path) -> Iterator[None]:
    """Tell the artefact that is full from the host that is full."""
    try:
        yield
    except DiskFull as error:
        if _is_full(work):
            raise _host_full(work) from error
        chosen = "the size that `size` sets" if plan.size_is_fixed else "the size estimated for these images"
        raise ArtefactFull(
            f"the images do not fit into the artefact of {plan.size // MIB} MiB, {chosen} ({error.message})",
            hint="raise `size` in the Bakefile, or remove it to let parbake choose"
            if plan.size_is_fixed
            else "set `size` in the Bakefile",
        ) from error


def _is_full(work: Path) -> bool:
    status = os.statvfs(work)
    return status.f_bfree * status.f_frsize < _HOST_FULL or status.f_files > 0 == status.f_ffree


def _host_full(work: Path) -> DiskFull:
    total, used = disk.usage(work)
    return DiskFull(
        f"no space left on the disk of {work}: {used // MIB} of {total // MIB} MiB are used",
        hint="free some space, or move `output` to a larger disk",
    )


def _check_sandbox(wanted: str, store: Client) -> None:
    """Make sure that the pause image which the base's containerd asks for is there: without it no pod starts."""
    if store.images.get(wanted) is None:
        raise BadBase(
            f"the base's containerd is configured with the sandbox image {wanted}, which neither the base nor the "
            f"Bakefile brings: no pod would start without a registry",
            hint=f"write `sandbox: {wanted}` in the Bakefile",
        )


def in_format(raw: Path, plan: Plan, ingredients: Ingredients) -> Path:
    """Turn a raw disk into the plan's format, in its place."""
    image_format = plan.artefact.file_format
    if image_format == "raw":
        return raw
    target = raw.with_suffix(f".{image_format}")
    with ingredients.events.stage("convert", f"Convert to {image_format}"):
        disk.convert(raw, target, image_format)
    raw.unlink()
    return target
