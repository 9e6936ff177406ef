"""One Bakefile for nodes of several platforms: an artefact for each, told apart by its record's platform."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from parbake import records
from parbake.bakefile import Bakefile, load
from parbake.core.errors import InputError
from parbake.records import Record


def each_platform(bakefile_path: Path, overrides: Mapping[str, str]) -> tuple[dict[str, str], ...]:
    """Return what replaces keys of the Bakefile for each of its artefacts: one, or one for each of its platforms."""
    if "platform" in overrides:
        return (dict(overrides),)
    platforms = load(bakefile_path, overrides).platforms
    return tuple({**overrides, "platform": str(each)} for each in platforms) or (dict(overrides),)


def one_platform(bakefile_path: Path, overrides: Mapping[str, str], what: str) -> dict[str, str]:
    """Return the overrides where there is one platform; else raises InputError, for ``what`` is of one artefact."""
    found = each_platform(bakefile_path, overrides)
    if len(found) > 1:
        names = ", ".join(each["platform"] for each in found)
        raise InputError(f"{what} applies to one artefact, and the Bakefile has {names}", hint="add --platform")
    return found[0]


def together(bakefile: Bakefile, output: Path) -> tuple[tuple[Path, Record], ...]:
    """Return the newest artefact of a Bakefile for each of its platforms, all of the same images: the verified ones.

    Where none of a platform is verified, it is the newest. Raises InputError where one is missing, or has other images
    than the first.
    """
    there = records.find(output)
    found = []
    for platform in bakefile.platforms:
        of_platform = [item for item in there if item[1].plan.platform == platform]
        if (meant := records.newest(of_platform, bakefile.name, verified=bakefile.verify.by == "machine")) is None:
            raise InputError(f"there is no record of {bakefile.name} for {platform}", hint="`parbake bake` makes it")
        found.append((meant[0].parent / meant[1].artefact, meant[1]))
    held = [{image.reference: image.target.digest for image in record.plan.whole_images} for _, record in found]
    for (_, record), images in zip(found, held, strict=True):
        if images != held[0]:
            raise InputError(
                f"{record.artefact} has other images than {found[0][1].artefact}",
                hint="`parbake bake` brings all platforms up to date; or name the records one by one",
            )
    return tuple(found)
