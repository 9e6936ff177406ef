"""Write what other tools take: their own files, so that they do what the Bakefile says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from parbake import flow, packer
from parbake.bakefile import load
from parbake.errors import InputError
from parbake.events import Events
from parbake.model import GIB, Base, Image
from parbake.plan import disk_size

# The root volumes of EKS's AMIs; which one it will be, only AWS knows.
_NODE_BASE = Base(kind="ami", size=20 * GIB)


def to_packer(
    bakefile: Path, folder: Path, events: Events, *, pin: bool = False, force: bool = False
) -> tuple[Path, ...]:
    """Write Packer's folder for a Bakefile; return its files.

    ``pin`` asks the registries for the digests that the tags have now, and for sizes; nothing else needs a network.
    Raises InputError where Packer cannot bake what the Bakefile says, and when files in the folder say something else
    (unless ``force``).
    """
    loaded = load(bakefile)
    images = _resolved(bakefile, events) if pin else []
    # nerdctl and ctr keep the compressed layers.
    size = disk_size(images, _NODE_BASE, keep_layers=True) if images else 0
    made = packer.folder(loaded, images, size=size)
    for warning in made.warnings:
        events.warn(warning)
    return write(folder, made.files, force=force)


def _resolved(bakefile: Path, events: Events) -> list[Image]:
    with flow.kitchen(bakefile, events) as run:
        found = flow.resolve(run)
        missing = [name for name, image in found.items() if image is None]
        if missing:
            hint = "build and push them first (a bake does), or leave out --pin"
            raise InputError(f"not built yet: {', '.join(missing)}", hint=hint)
        sandbox = flow.sandbox_of(run)
    return [image for image in (*found.values(), sandbox) if image]


def write(folder: Path, files: Mapping[str, str], *, force: bool) -> tuple[Path, ...]:
    """Write files below a folder, which is made when missing; what says the same already is left alone.

    Raises InputError that names what is in the way, before anything is written, unless ``force``.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file", hint="name a folder; it is made when missing")
    changed = {
        name: text for name, text in files.items() if not (folder / name).is_file() or _text(folder / name) != text
    }
    in_the_way = [name for name in changed if (folder / name).exists()]
    if in_the_way and not force:
        raise InputError(
            f"{folder} holds other files of these names: {', '.join(in_the_way)}",
            hint="name another folder, or replace them with --force",
        )
    for name, text in changed.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.new")
        beside.write_text(text)
        beside.chmod(0o755 if text.startswith("#!") else 0o644)
        beside.replace(path)
    return tuple(folder / name for name in files)


def _text(path: Path) -> str:
    return path.read_text(errors="replace")
