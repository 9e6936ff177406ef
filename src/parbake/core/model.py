"""The nouns: frozen data that every room shares.

Sizes are bytes, times are seconds, digests are ``sha256:<hex>`` strings as in the OCI image specification. Everything
here is immutable, comparable and serialises to JSON and back (pydantic), to be printed, hashed, stored and compared.

Modules of models that each bake loads import no ``annotations`` from ``__future__``: pydantic would have to compile
each of them again, which is a tenth of a command's imports.
"""

import hashlib
import json
import platform as host_platform
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from parbake.core.errors import InputError
from parbake.core.printable import bounded
from parbake.core.reference import Reference

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
EBS_BLOCK = 512 * KIB
"""Bytes of a block of an EBS snapshot, the unit in which a cold volume is loaded (EBS direct API)."""
TIB = 1 << 40

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
"""A content digest: the only algorithm that registries and containerd use in practice."""

FILE_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}"
"""Pattern of the name of a file in a folder: never hidden, never a path."""
FileName = Annotated[str, StringConstraints(pattern=f"^{FILE_NAME}$")]
"""The name of a file beside others, which records say of themselves: it leads to no other folder."""

# `uname -m` to the names that Go, and with it every image index, uses.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


class Frozen(BaseModel):
    """Immutable data; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Platform(Frozen):
    """The machine that an image is for, in the OCI image index's words, such as ``linux/arm64/v8``."""

    os: str = "linux"
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``os/architecture[/variant]``, normalised as containerd does; raises InputError.

        arm64 is arm64/v8 and amd64 is amd64/v1, and both lose the variant; arm without one is arm/v7
        (containerd ``platforms.Normalize``).
        """
        parts = text.lower().split("/")
        if len(parts) not in {2, 3} or not all(parts):
            raise InputError(
                f"platform {text!r} is not os/architecture[/variant]", hint="write linux/amd64 or linux/arm64"
            )
        os_, architecture, variant = (*parts, "")[:3]
        architecture = _ARCHITECTURES.get(architecture, architecture)
        if (architecture, variant) in {("amd64", "v1"), ("arm64", "v8"), ("arm64", "8")}:
            variant = ""
        if architecture == "arm" and not variant:
            variant = "v7"
        return cls(os=os_, architecture=architecture, variant=variant)

    @classmethod
    def host(cls) -> Self:
        """Return the platform of this machine."""
        machine = host_platform.machine()
        return cls.parse(f"linux/{_ARCHITECTURES.get(machine, machine)}")

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(Frozen):
    """A pointer to content: media type, digest and size in bytes (OCI image specification, descriptor.md)."""

    media_type: str
    digest: Digest
    size: int = Field(ge=0)


class Layer(Frozen):
    """One layer of an image, bottom first in an image's tuple.

    ``size`` is what travels, ``raw_size`` the inflated tar as far as the registry's bytes tell without inflating all
    of it (0: unknown); ``chain_id`` names the snapshot that results from this layer on top of those below it.
    """

    media_type: str
    digest: Digest
    size: int = Field(ge=0)
    diff_id: Digest
    chain_id: Digest
    raw_size: int = Field(default=0, ge=0)


class RegistryOptions(Frozen):
    """How to reach one registry. ``ca`` is the path of a PEM file with authorities to trust besides the system's.

    ``credentials``: ``auto`` looks where Docker does and, for ECR host names, asks AWS; ``docker`` looks only at
    ``config.json`` and its helpers; ``ecr`` asks AWS; ``environment`` reads PARBAKE_USERNAME and PARBAKE_PASSWORD;
    ``none`` sends none. ``mirrors`` are hosts (or host/path) to ask first. ``create``, ``scan_on_push`` and
    ``immutable_tags`` are for ECR, whose repositories are made when an image is pushed to one that is missing.
    """

    plain_http: bool = False
    credentials: Literal["auto", "none", "docker", "ecr", "environment"] = "auto"
    mirrors: tuple[str, ...] = ()
    ca: str = ""
    create: bool = True
    scan_on_push: bool = True
    immutable_tags: bool = False


class ExitProbe(Frozen):
    """Up when the main process has ended with code 0."""

    kind: Literal["exit"] = "exit"


class LogProbe(Frozen):
    """Up when a line of the container's output matches ``pattern`` (Python regular expression, searched)."""

    kind: Literal["log"] = "log"
    pattern: str


class TcpProbe(Frozen):
    """Up when something accepts connections on the port of the node's loopback."""

    kind: Literal["tcp"] = "tcp"
    port: int = Field(ge=1, le=65535)


class HttpProbe(Frozen):
    """Up when GET http://127.0.0.1:port/path answers with a status from 200 to 399."""

    kind: Literal["http"] = "http"
    port: int = Field(ge=1, le=65535)
    path: str = "/"


class RunningProbe(Frozen):
    """Up when the main process has run for ``seconds``, or has ended with code 0 before: the default."""

    kind: Literal["running"] = "running"
    seconds: float = Field(default=1.0, gt=0)


class MountedProbe(Frozen):
    """Up when a pod has the image as a volume, read-only, and finds ``path`` in it; nothing of the image runs."""

    kind: Literal["mounted"] = "mounted"
    path: str = "/"


class ExecProbe(Frozen):
    """Up when a program that is run in the container, again and again, ends with code 0."""

    kind: Literal["exec"] = "exec"
    command: tuple[str, ...] = Field(min_length=1)


_Probe = ExitProbe | LogProbe | TcpProbe | HttpProbe | RunningProbe | MountedProbe | ExecProbe
Probe = Annotated[_Probe, Field(discriminator="kind")]


class StartupFile(Frozen):
    """A small file of text that a container finds at a path; ``mode`` is octal, and root owns it."""

    content: str
    mode: str = "0644"


type Shown = Literal["", "answered", "logged", "ended", "running", "mounted"]


class Startup(Frozen):
    """How to start an image for rehearsal and verification, and how to know that it is up.

    ``command`` replaces the image's entrypoint and ``args`` its command, as in a pod; empty keeps the image's own.
    ``user`` (``ID[:GROUP]``, or a name that the runtime looks up in the image) and ``workdir`` likewise. Where the root
    is ``read_only``, it may write to ``writable``, empty folders as a pod's emptyDir; ``files`` lie at their paths.
    ``timeout`` is in seconds on a machine with hardware virtualisation; emulation stretches it. ``watch`` is how many
    seconds after its start it is looked at once more, at the earliest: by the clock of any machine.
    """

    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    user: str = ""
    workdir: str = ""
    read_only: bool = False
    writable: tuple[str, ...] = ()
    files: dict[str, StartupFile] = Field(default_factory=dict)
    up: Probe = Field(default_factory=RunningProbe)
    timeout: float = Field(default=120.0, gt=0)
    watch: float = Field(default=10.0, ge=0)


class Image(Frozen):
    """An image, resolved: what its name meant when the plan was made.

    ``target`` is what the name points to (an index or a manifest), ``manifest`` the platform's manifest; they are equal
    when the name points straight to a manifest. ``layout`` is the path of a local OCI layout that holds the content
    instead of the registry (images that were built here and never pushed). ``order`` is its place in the Bakefile:
    nodes start first what stands first. ``part_of`` is the image of which these are the lowest layers alone, under a
    name that no pod asks for (None: it is whole).
    """

    reference: Reference
    platform: Platform
    target: Descriptor
    manifest: Descriptor
    config: Descriptor
    layers: tuple[Layer, ...]
    startup: Startup | None = None
    layout: str = ""
    also_by_digest: bool = False
    order: int = Field(default=0, ge=0)
    part_of: Reference | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which the runtime's store must know the image, the one that pods use most first.

        A pod spec that says ``name:tag@digest`` asks the store for ``name@digest`` (containerd's CRI drops the tag).
        """
        reference = self.reference
        names = [f"{reference.name}:{reference.tag}"] if reference.tag else []
        if reference.digest or self.also_by_digest:
            names.append(reference.with_digest(reference.digest or self.target.digest))
        return tuple(names)

    @property
    def size(self) -> int:
        """Bytes that travel: manifest, config and each distinct layer once."""
        return self.manifest.size + self.config.size + sum({layer.digest: layer.size for layer in self.layers}.values())


type Variant = Literal["", "standard", "nvidia", "neuron"]


class Base(Frozen):
    """What the images are baked onto.

    ``identity`` names the content for the content key: a file's digest, for ``debian`` that of the recipe, an AMI's id
    (its content never changes), empty for ``none``. What follows is not in the key: ``path``, where a file lies on this
    machine, and ``variant``, of which of EKS's variants an AMI is (empty: unknown).
    """

    kind: Literal["debian", "file", "none", "ami"]
    identity: str = ""
    path: str = ""
    size: int = Field(default=0, ge=0)
    variant: Variant = ""


class Artefact(Frozen):
    """What comes out: a bootable machine image or a volume for a node's second disk.

    ``ami`` and ``snapshot`` are formats of no file: such an artefact lies in EC2. ``encrypted`` and ``kms_key`` (the
    key as the user names it; empty: the account's default) are of those alone.
    """

    kind: Literal["machine-image", "volume"]
    format: Literal["raw", "qcow2", "vmdk", "vhd", "ami", "snapshot"] = "raw"
    filesystem: Literal["ext4", "xfs"] = "ext4"
    encrypted: bool = False
    kms_key: str = ""

    @model_validator(mode="after")
    def _volume_is_raw(self) -> Self:
        if self.kind == "volume" and self.format not in {"raw", "snapshot"}:
            raise ValueError("a volume is raw: clouds and `mount -o loop` take nothing else")
        if self.kind == "machine-image" and self.format == "snapshot":
            raise ValueError("a machine image in EC2 is an AMI; only a volume is a bare snapshot")
        return self

    @property
    def mounted(self) -> bool:
        """Whether it is mounted to be filled, which takes root; into an ext4 volume, parbake writes without a mount."""
        return (self.kind, self.filesystem) != ("volume", "ext4")

    @property
    def in_cloud(self) -> bool:
        """Whether the artefact lies in a cloud and is not a file."""
        return self.format in {"ami", "snapshot"}

    @property
    def file_format(self) -> str:
        """The format of the file that is made on this machine: raw for what is then sent to a cloud."""
        return "raw" if self.in_cloud else self.format


_IMAGES = {**dict.fromkeys(("startup", "layout", "order", "part_of"), True), "layers": {"__all__": {"raw_size"}}}
# What a plan holds for people or for later steps, without any effect on the artefact's content.
_NOT_IN_KEY: dict[str, Any] = {
    "base": {"path", "size", "variant"},
    "images": {"__all__": _IMAGES},
    "sandbox": _IMAGES,
    "size_is_fixed": True,
}


class Plan(Frozen):
    """A Bakefile with every name resolved and every choice made. Same key, same artefact.

    ``size`` is that of the disk or volume in bytes; unless the user fixed it, it is derived from the rest (with hints
    from the registry) and no part of the key. ``images`` are sorted by reference.
    """

    version: Literal[1] = 1
    name: FileName
    platform: Platform
    base: Base
    artefact: Artefact
    runtime: Literal["containerd"] = "containerd"
    images: tuple[Image, ...]
    sandbox: Image | None = None
    keep_layers: bool = False
    size: int = Field(gt=0)
    size_is_fixed: bool = False

    @property
    def key(self) -> str:
        """The content key: 64 hex digits that follow from everything that shapes the artefact, on any machine."""
        content = self.model_dump(mode="json", exclude={**_NOT_IN_KEY, "size": not self.size_is_fixed})
        for later in ("encrypted", "kms_key"):  # came later: where unused, keys are those of before
            if not content["artefact"][later]:
                del content["artefact"][later]
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def artefact_name(self) -> str:
        """The file name of the artefact: name, the key's first 12 digits, and the format's suffix."""
        return f"{self.name}-{self.key[:12]}.{self.artefact.format}"

    @property
    def all_images(self) -> tuple[Image, ...]:
        """Every image that the store must hold, the sandbox image included."""
        return self.images if self.sandbox is None else (*self.images, self.sandbox)

    @property
    def whole_images(self) -> tuple[Image, ...]:
        """The images that pods can start: not those of which there are the lowest layers alone."""
        return tuple(image for image in self.images if image.part_of is None)

    @property
    def startups(self) -> dict[str, Startup]:
        """How each image is started, by reference."""
        return {str(image.reference): image.startup or Startup() for image in self.images}

    def to_json(self) -> dict[str, object]:
        """Return the plan as printed by ``parbake plan --json``: its fields and its key."""
        return {"key": self.key, **self.model_dump(mode="json")}


class HydrateFigures(Frozen):
    """What the hydrate service says of one run: bytes and ranges read, read errors, and seconds.

    ``started_after`` is the node's uptime when it began, ``seconds`` how long the list took. What begins with ``rest``
    is of the rest of the device, where that was asked for; ``prefetch`` says the same of files read into memory.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: str
    device: str = ""
    bytes: int = Field(default=0, ge=0)
    ranges: int = Field(default=0, ge=0)
    errors: int = Field(default=0, ge=0)
    seconds: float = Field(default=0.0, ge=0)
    started_after: float = Field(default=0.0, ge=0)
    rest_bytes: int = Field(default=0, ge=0)
    rest_seconds: float = Field(default=0.0, ge=0)
    prefetch: dict[str, str | float] = Field(default_factory=dict)


Told = Annotated[str, BeforeValidator(bounded)]
"""What a machine says that is verified: a record can hold it, whatever and however much it is."""


class ImageVerdict(Frozen):
    """What verification saw of one image; an empty ``problems`` means that it passed.

    ``startup`` is how it was started (null: it was only looked up): the verdict is of that, and of no other way.
    ``shown`` is what its start has shown: a port or command answered, its log line came, it ended with code 0, a pod
    had it mounted; ``running`` says that it ran and nothing was asked of it. ``ran_seconds`` is how long it had run
    when it was looked at for the last time, or when it failed (null: it had ended well, or nothing ran).
    ``start_seconds`` is from the request to the runtime until the startup's probe said up, ``sandbox_seconds`` what the
    pod's sandbox took before that; ``output`` is the end of what the container wrote.
    """

    reference: Told
    digest: Told = ""
    pinned: bool = False
    unpacked: bool = False
    startup: Startup | None = None
    shown: Shown = ""
    ran_seconds: float | None = None
    start_seconds: float | None = None
    sandbox_seconds: float | None = None
    problems: tuple[Told, ...] = ()
    output: Told = ""


class Verdict(Frozen):
    """The result of a verification. ``boot_seconds`` is from power-on until the runtime answered.

    A machine that resumed, as those for volumes do in emulation, counts the boot that it was kept after;
    ``resumed_seconds`` is what it took this time (null: it booted). The accelerator ``ec2`` was a launch there; with
    ``rehearsal`` an image had failed in that already, with ``canary`` pods used it (``canary`` says which), and with
    ``none`` nothing was booted. ``emulator`` played a machine of another architecture than the one that verified,
    such as ``qemu-system-aarch64`` (empty: the same). ``runtime`` started the images, such as ``containerd 2.2.4``;
    ``base`` is the file name of the node's image that a volume was attached to, empty for the default base.
    ``intact`` says whether the bytes are those that the record names (null: not compared), ``warnings`` what a reader
    should know of what passed, ``hydrate`` what the hydrate service of a machine image said of itself.
    """

    passed: bool
    intact: bool | None = None
    accelerator: Literal["kvm", "tcg", "ec2", "rehearsal", "canary", "none"]
    emulator: str = ""
    boot_seconds: float | None = None
    resumed_seconds: float | None = None
    runtime: Told = ""
    base: str = ""
    canary: Told = ""
    images: tuple[ImageVerdict, ...] = ()
    problems: tuple[Told, ...] = ()
    warnings: tuple[str, ...] = ()
    hydrate: HydrateFigures | None = None
    verified_at: str = ""


class Snapshot(Frozen):
    """A volume snapshot of a cloud. ``size`` is that of the volumes made from it, in bytes (0: unknown).

    ``device`` is the device name under which a machine image maps it, empty for a volume by itself.
    """

    id: str
    size: int = Field(default=0, ge=0)
    device: str = ""


type Family = Literal["", "Bottlerocket"]


class Published(Frozen):
    """The artefact in one region of a cloud: what a rollout hands out, and what retention removes.

    ``image`` is the machine image (an AMI), empty for a volume; ``snapshots`` are the machine image's, or the volume's.
    ``account`` owns them (empty: unknown). ``family`` is whose nodes alone can take a volume (empty: any nodes').
    ``shared_with`` are others that parbake has let launch it: accounts, organisations, units.
    """

    image: str = ""
    snapshots: tuple[Snapshot, ...] = ()
    account: str = ""
    family: Family = ""
    shared_with: tuple[str, ...] = ()


class TraceSummary(Frozen):
    """What a record keeps of a start-up trace; the trace itself is the file ``file`` beside the artefact.

    ``digest`` is the SHA-256 of that file: no other one is taken for it. Bytes, and seconds of each traced start with
    cold caches; ``hot_bytes`` is what a node must load of the ``volume_bytes``, in whole blocks of ``block_bytes``;
    ``scattered_blocks`` is how many that were before the volume was laid out by what starts read (0: it was not).
    ``stages`` are those of each start with their seconds; ``skipped`` says why an image was not traced,
    and ``failed`` which of these would not start on a node either.
    """

    file: str = ""
    digest: str = ""
    uuid: str = ""
    how: Literal["loop", "boot", "node"] = "loop"
    made_at: str = ""
    volume_bytes: int = Field(default=0, ge=0)
    hot_bytes: int = Field(default=0, ge=0)
    block_bytes: int = Field(default=512 << 10, gt=0)
    hot_blocks: int = Field(default=0, ge=0)
    scattered_blocks: int = Field(default=0, ge=0)
    reads: int = Field(default=0, ge=0)
    read_bytes: int = Field(default=0, ge=0)
    seconds: dict[str, float] = Field(default_factory=dict)
    stages: dict[str, dict[str, float]] = Field(default_factory=dict)
    skipped: dict[str, str] = Field(default_factory=dict)
    failed: tuple[str, ...] = ()
