"""The first half of a bake: the images that are missing are built and pushed, and then the content key is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parbake.core.events import Events
from parbake.core.model import Image, Plan
from parbake.core.reference import Reference
from parbake.core.workspace import remove_leftovers
from parbake.workflows.plan import decide, make_images, open_session, resolve


@dataclass(frozen=True, slots=True)
class Built:
    """What a bake would be of: ``made`` are the references that were built now, ``plan`` names the content key."""

    images: tuple[Image, ...]
    made: tuple[Reference, ...]
    plan: Plan


def build_images(
    bakefile_path: Path, events: Events, *, rebuild: bool = False, overrides: Mapping[str, str] | None = None
) -> Built:
    """Build and push the Bakefile's images whose context has changed, with ``rebuild`` all that it builds.

    ``overrides`` replace keys of the Bakefile.
    """
    with open_session(bakefile_path, events, overrides) as run:
        remove_leftovers(run.cache)  # builds that were killed leave credentials there
        found = resolve(run, ignore_built=rebuild)
        images = make_images(run, found, force=rebuild)
        made = tuple(reference for reference, image in found.items() if image is None)
        return Built(tuple(images), made, decide(run, images))
