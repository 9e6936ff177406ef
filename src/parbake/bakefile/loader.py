"""Load a Bakefile: every problem at once, in the order of lines, in words for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from parbake.bakefile.file import Bakefile, schema
from parbake.bakefile.format import Format
from parbake.bakefile.image_set import ChosenImage, LockedImage, lock_path, read_lock
from parbake.bakefile.targets import ROLE
from parbake.bakefile.values import REGION, valid_name
from parbake.core.errors import InputError
from parbake.core.reference import Reference

COPY_ROLES = "copy_roles"
ONLY_IMAGES = "only_images"
"""Overrides that do not correspond to a key of the Bakefile; see ``load``."""


def _defaults(folder: Path, data: Mapping[str, object]) -> dict[str, object]:
    found: dict[str, object] = {"name": valid_name(folder.name) or "node", "output": "artefacts"}
    return {**found, "images": ()} if data.get("images_from") else found


BAKEFILE = Format(
    noun="Bakefile",
    usual="parbake.yaml",
    hint="`parbake init` writes a commented Bakefile that works as it stands",
    no_file="`parbake init` writes one, -f names another",
    model=Bakefile,
    schema=schema,
    not_text=frozenset({
        "version", "keep_layers", "layers", "also_by_digest", "plain_http", "create", "scan_on_push", "immutable_tags",
        "tcp", "port", "credits", "iops", "throughput", "encrypted", "initialization_rate", "mount",
        "healthy", "batch", "auto_rollback", "force", "respect_pdb", "keep", "keep_store", "read_only", "min_hit_rate",
        "pods", "min_pods", "launches", "burst", "node_hour",
    }),
    numbers=frozenset({"checkpoints"}),
    of_the_user=frozenset({"env", "args", "tags", "files"}),
    missing={
        "version": "write version: 1",
        "images": "list what to bake",
        "reference": "name the image",
        "context": "name the folder to build in",
    },
    empty={"images": ("must list at least one image", "write - registry.example.com/app:1.0 below it")},
    defaults=_defaults,
)  # fmt: skip


def load(path: Path, overrides: Mapping[str, str] | None = None) -> Bakefile:
    """Read and check a Bakefile; relative paths in it become absolute, from its folder. ``overrides`` replace keys.

    ``COPY_ROLES`` among them replaces nothing: its roles (``REGION=ROLE``, with blanks between) go beside those of
    ``aws.copy_roles``, for copies that the Bakefile knows nothing of. With ``ONLY_IMAGES`` no file is read: its
    references (with blanks between) become a volume, named after the first of them, as a Bakefile here would say it.
    Checks also what only the text or the folder can tell: repeated keys and images, platforms that do not fit, files
    that are missing. Raises BakefileError with every problem, or InputError when there is no file to read.
    """
    given = dict(overrides or {})
    roles = dict(_role(each) for each in given.pop(COPY_ROLES, "").split())
    if images := given.pop(ONLY_IMAGES, "").split():
        name = valid_name(Reference.parse(images[0]).repository.rpartition("/")[2])
        text = f"version: 1\nname: '{name}'\nbase: none\nimages: {images}\n"
        bakefile = BAKEFILE.load(Path("--image"), given, text=text)
    else:
        bakefile = _with_locked(BAKEFILE.load(path, given))
    if not roles:
        return bakefile
    aws = bakefile.aws.model_copy(update={"copy_roles": {**bakefile.aws.copy_roles, **roles}})
    return bakefile.model_copy(update={"aws": aws})


def _with_locked(bakefile: Bakefile) -> Bakefile:
    """Return a Bakefile with the images that were chosen for it last."""
    lock = read_lock(lock_path(bakefile.output, bakefile.name)) if bakefile.images_from else None
    return with_images(bakefile, lock.images) if lock else bakefile


def with_images(bakefile: Bakefile, chosen: Iterable[LockedImage]) -> Bakefile:
    """Return a Bakefile with the images of a choice in the place of earlier ones; what it lists itself comes first."""
    if bakefile.images_from is None:
        return bakefile
    startups = bakefile.images_from.cluster.startups
    own = {entry.reference: entry for entry in bakefile.images if not isinstance(entry, ChosenImage)}
    more = [
        ChosenImage.model_construct(
            reference=each.reference,
            layers=each.layers or None,
            startup=None if each.layers else startups.get(each.reference.name),
        )
        for each in chosen
        if each.reference not in own
    ]
    return bakefile.model_copy(update={"images": (*own.values(), *more)})


def _role(text: str) -> tuple[str, str]:
    region, _, role = text.partition("=")
    if not re.fullmatch(REGION, region) or not re.fullmatch(ROLE, role):
        raise InputError(f"{text!r} is not a region and its role", hint="write REGION=arn:aws:iam::ACCOUNT:role/NAME")
    return region, role
