"""From records to what targets are offered: ids of a region, sizes, and the user data that comes with a volume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from parbake.bakefile.targets import Target
from parbake.coldstart.hydrate import user_data
from parbake.coldstart.trace import hydrate_list
from parbake.core.errors import InputError
from parbake.core.model import Published
from parbake.machine.disk import filesystem_uuid
from parbake.records import Record
from parbake.rollouts import Offer, mount
from parbake.workflows.trace import trace_of


def offer(found: Sequence[Record], region: str | None, *, here: bool = False) -> Offer:
    """Make the offer of one region out of records; raises InputError when they do not go together.

    Machine images may be one for each architecture: a node class of Karpenter takes them all. What lies in no cloud can
    be offered where the target takes files (``here``), by its name and key alone.
    """
    kinds = [(record.plan.artefact.kind, record.plan.platform.architecture) for record in found]
    twice = next((kind for kind, count in Counter(kinds).items() if count > 1), None)
    if twice:
        raise InputError(
            f"two records of the kind {twice[0]} for {twice[1]}",
            hint="give one machine image for each architecture, one volume, or one of each",
        )
    architectures = sorted({architecture for _, architecture in kinds})
    if len(architectures) > 1 and any(kind == "volume" for kind, _ in kinds):
        raise InputError(
            f"the records are for {' and '.join(architectures)}, and all nodes of a target get the same volume",
            hint="give records of one platform, and a node class for each",
        )
    named = {
        "artefacts": [record.artefact for record in found],
        "keys": [record.key for record in found],
        "architectures": architectures,
    }
    if here and not region and not any(record.published for record in found):
        return Offer(**named, image_size=max(record.size for record in found))
    if nowhere := " and ".join(record.artefact for record in found if not record.published):
        raise InputError(
            f"{nowhere}: published in no region of a cloud, so there is nothing to hand out",
            hint="write `builder: ebs` (from here, no instance) or `builder: ec2` into the Bakefile, and bake again",
        )
    region = region or _one_region(found)
    images, volume, runtime = list[Published](), Published(), ""
    for record in found:
        published = record.published.get(region)
        if published is None:
            raise InputError(
                f"{record.artefact} is not published in {region}, but in {', '.join(sorted(record.published))}",
                hint="`parbake copy` publishes it there too; or correct the target's `region`",
            )
        if record.plan.artefact.kind == "volume":
            volume, runtime = published, record.verdict.runtime if record.verdict else ""
        else:
            images.append(published)
    bases = {record.plan.base.variant for record in found if record.plan.artefact.kind == "machine-image"}
    return Offer(
        **named,
        variant=bases.pop() if len(bases) == 1 else "",
        region=region,
        images=[each.image for each in images],
        image_size=max((each.snapshots[0].size for each in images if each.snapshots), default=0),
        snapshot=volume.snapshots[0].id if volume.snapshots else "",
        snapshot_size=volume.snapshots[0].size if volume.snapshots else 0,
        encrypted=any(each.plan.artefact.encrypted for each in found if each.plan.artefact.kind == "volume"),
        kms_key=next((each.plan.artefact.kms_key for each in found if each.plan.artefact.kind == "volume"), ""),
        family=volume.family,
        runtime=runtime,
    )


def fitting(offered: Offer, config: Target) -> Offer:
    """Return an offer that a target can take; raises InputError for several images where there is room for one."""
    if len(offered.images) > 1 and not config.options.takes_several_images:
        raise InputError(
            f"{config.name}: it takes one machine image, and the records are for {' and '.join(offered.architectures)}",
            hint="node classes that name images by id take one for each architecture; roll out one record here",
        )
    return offered


def hydrate_part(located: Iterable[tuple[Path, Record]], *, boost: bool = False) -> str:
    """Return the user data that loads what the images' starts read: of the volume, or of a machine image.

    With ``boost`` it then takes a volume back that was launched raised. Empty for a machine image alone that has the
    service in it. Raises InputError where no start was traced.
    """
    found = tuple(located)
    volumes = [each for each in found if each[1].plan.artefact.kind == "volume"]
    if not volumes and all(record.verdict and record.verdict.hydrate for _, record in found):
        return ""
    if not volumes and len(found) > 1:
        raise InputError(
            "`remedy: hydrate` loads the blocks of one machine image, and the records are of several",
            hint="bake them with --rehearse, which puts the service into each; or choose another remedy",
        )
    ((artefact, record),) = volumes or found
    try:
        return user_data(hydrate_list(trace_of(artefact, record)), boost=boost and bool(volumes))
    except InputError as error:
        raise InputError(
            f"{error.message}, and a target says `remedy: hydrate`", hint=f"{error.hint}; or choose another remedy"
        ) from None


def with_mount(offered: Offer, found: Sequence[Record], config: Target) -> Offer:
    """Add the user data that mounts the volume, where nodes mount nothing by themselves, and the target wants it."""
    if not offered.snapshot or offered.family:
        return offered
    return offered.model_copy(update={"mount": mount_part(found, config)})


def mount_part(found: Sequence[Record], config: Target) -> str:
    """Return the user data that mounts the volume among records; empty without one, or where the target has its own."""
    volume = next((record for record in found if record.plan.artefact.kind == "volume"), None)
    if volume is None or not getattr(config.options, "mount", False):
        return ""
    sandbox = str(volume.plan.sandbox.reference) if volume.plan.sandbox else ""
    root = getattr(config.options, "root", "")
    uuid = filesystem_uuid(volume.key)  # of an instance of EC2's making as well, unless it is Bottlerocket's own
    return mount.user_data(sandbox, root, uuid=uuid)


def hydrates(config: Target) -> bool:
    """Whether a target wants user data that loads hot blocks."""
    return config.remedy in {"hydrate", "boost"}


def _one_region(found: Sequence[Record]) -> str:
    regions = set.intersection(*(set(record.published) for record in found))
    if len(regions) == 1:
        return regions.pop()
    names = " and ".join(record.artefact for record in found)
    if regions:
        raise InputError(f"{names}: published in {', '.join(sorted(regions))}", hint="name the target's `region`")
    raise InputError(f"{names}: there is no region in which all are", hint="`parbake copy` publishes one there too")
