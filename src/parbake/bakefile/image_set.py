"""Images that follow a cluster: the section that asks for them, and the lock that says which they are.

The lock lies beside the records: ``NAME.images.json``. Whoever reads the Bakefile finds its images among the others.
"""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from parbake.bakefile.sections import ImageEntry, Section, StartupSection, Via
from parbake.bakefile.values import SIZE_SCHEMA, matching, size, text_schema, wrong
from parbake.core.errors import InputError
from parbake.core.files import read_file
from parbake.core.model import GIB, Digest, Frozen, Startup
from parbake.core.reference import Reference

LOCK_SUFFIX = ".images.json"
MOST_IMAGES = 500
"""Images that are considered at a time: those that most nodes run. A lock holds no more."""
_LARGEST_LOCK = 4 << 20
_NAME = r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?"
ObjectName = Annotated[
    str, matching(_NAME, "a name of Kubernetes", "write it as `kubectl get` shows it"), text_schema(f"^{_NAME}$")
]


def _budget(value: object) -> object:
    """Read a size, which Kubernetes' way of writing it (40Gi) may lack the B of; there is no ``auto``."""
    found = size(f"{value}B" if isinstance(value, str) and value[-2:-1] in set("KMGT") and value[-1] == "i" else value)
    if found == 0:
        raise wrong("a budget is a size", "write such as 40Gi")
    return found


class ClusterImagesSection(Section):
    """The images of a cluster's pods: those that save nodes most of what they pull."""

    context: str = ""
    """The context of kubectl. Default: the current one; in a pod, its own cluster."""
    namespaces: tuple[ObjectName, ...] = ()
    """The namespaces whose pods count. Default: all."""
    min_pods: Annotated[int, Field(ge=1)] = 1
    """How many pods must run an image for it to count."""
    exclude: tuple[Annotated[str, text_schema("^[^ ]+$", "registry.example.com/batch/*")], ...] = ()
    """Images that do not count: patterns, in which `*` is any text, of the whole reference."""
    budget: Annotated[int, BeforeValidator(_budget), SIZE_SCHEMA] = Field(
        default=40 * GIB, json_schema_extra={"default": "40Gi"}
    )
    """What they may take on a node's disk, unpacked. Where not all fit, the lowest layers of some are baked."""
    missing: Literal["fail", "skip"] = "fail"
    """What happens where a registry lets parbake have no image: `fail` bakes nothing, `skip` bakes the others."""
    startups: dict[str, Annotated[Startup, Via(StartupSection, StartupSection.startup)]] = Field(default_factory=dict)
    """How images start in proofs, by their names without a tag, such as `registry.example.com/team/app`. Default: the
    image's own command must run for a second."""


class ImagesFromSection(Section):
    """Where images come from besides `images`."""

    cluster: Annotated[ClusterImagesSection, Via(ClusterImagesSection)]
    """Those of a cluster's pods. The choice is made anew at each bake, and lies beside the records as a lock."""


class ChosenImage(ImageEntry):
    """An image that a choice has added to those of the file."""


class LockedImage(Frozen):
    """An image of the set: ``layers`` of the lowest of its ``of_layers`` are baked (0: the whole image)."""

    reference: Reference
    digest: Digest
    layers: Annotated[int, Field(ge=0)] = 0
    of_layers: Annotated[int, Field(ge=0)] = 0
    why: str = ""


class SeenImage(Frozen):
    """What an image's name meant (empty: not known), and on how many nodes it ran in the last turns, newest first."""

    digest: str = ""
    nodes: tuple[Annotated[int, Field(ge=0)], ...]


class ImageLock(Frozen):
    """The choice of a turn: ``images``, and what the next turn goes on from.

    ``cluster`` says which one, ``changed`` when the set became what it is, ``left_out`` why others are not in it.
    """

    version: Literal[1] = 1
    cluster: str
    at: datetime
    changed: datetime
    calm: Annotated[int, Field(ge=0)] = 0
    budget: Annotated[int, Field(ge=0)]
    images: Annotated[tuple[LockedImage, ...], Field(max_length=MOST_IMAGES)] = ()
    left_out: dict[str, str] = Field(default_factory=dict)
    seen: dict[Reference, SeenImage] = Field(default_factory=dict)


def lock_path(output: Path, name: str) -> Path:
    """Return where the lock of a Bakefile lies."""
    return output / f"{name}{LOCK_SUFFIX}"


def read_lock(path: Path) -> ImageLock | None:
    """Read a lock, None where there is none; raises InputError for one that says nothing sensible."""
    try:
        return ImageLock.model_validate_json(read_file(path, _LARGEST_LOCK))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", hint="remove it: a bake chooses anew") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise InputError(
            f"{path} is no lock of images: {where}: {first['msg']}", hint="remove it: the next bake chooses anew"
        ) from None
