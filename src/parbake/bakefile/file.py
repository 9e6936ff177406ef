"""The whole file: its keys, its JSON Schema, and advice on what it says."""

import copy
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic import field_validator as check
from pydantic_core import PydanticKnownError

from parbake.bakefile.aws import AwsSection
from parbake.bakefile.bases import BaseChoice, BaseText
from parbake.bakefile.image_set import ImagesFromSection
from parbake.bakefile.proof import RetentionSection, SignSection, VerifySection, verify_text
from parbake.bakefile.sections import ArtefactText, Build, Image, RegistryText, Section, Via
from parbake.bakefile.targets import Target, TargetText, distinct
from parbake.bakefile.values import (
    Duration,
    FolderToBe,
    Name,
    PlatformText,
    PublicKeyFile,
    Reading,
    RegistryHost,
    Size,
    StoreText,
    close,
    described,
    reference,
    text_schema,
    wrong,
)
from parbake.core.access import ReadableBy
from parbake.core.model import Artefact, Platform
from parbake.core.reference import DOCKER_HUB, Reference


def first_version(value: object) -> object:
    """Check the version of a format, of which there is one."""
    if type(value) is int and value == 1:  # True is an int and equals 1
        return value
    raise wrong(f"this parbake reads version 1, not {described(value)}", "write version: 1")


def _runtime(value: object) -> object:
    if value == "docker":
        raise wrong("docker is not supported yet", "write containerd, which nodes of Kubernetes 1.24 and later run")
    return value


def _sandbox(value: object) -> object:
    return value if value in ("auto", "none") else reference(value)


class BuilderTraits(NamedTuple):
    """What a builder is like, for whoever asks: kinds of base, where its artefacts lie, and what bakes."""

    bases: tuple[str, ...]
    in_ec2: bool = False
    """What it makes lies in EC2: an AMI or a snapshot."""
    on_instance: bool = False
    """An instance bakes; else this machine does, and sends what it has made."""
    runs_packer: bool = False
    """Packer starts the instance, and leaves things of its own behind where it dies."""

    @property
    def sends(self) -> bool:
        """Whether what is baked here is sent to EC2."""
        return self.in_ec2 and not self.on_instance


BUILDERS: Final = {
    "local": BuilderTraits(("debian", "file", "none")),
    "qemu": BuilderTraits(("debian", "file")),
    "ec2": BuilderTraits(("ami",), in_ec2=True, on_instance=True),
    "ebs": BuilderTraits(("debian", "file", "none", "ami"), in_ec2=True),
    "packer": BuilderTraits(("ami",), in_ec2=True, on_instance=True, runs_packer=True),
}
_WHICH = {"ami": "an AMI", "debian": "debian", "file": "a disk image", "none": "none"}


def _default_artefact(data: dict[str, Any]) -> Artefact:
    in_ec2 = "builder" in data and BUILDERS[data["builder"]].in_ec2
    if data["base"].kind == "none":
        return Artefact(kind="volume", format="snapshot" if in_ec2 else "raw")
    return Artefact(kind="machine-image", format="ami" if in_ec2 else "raw")


def _first_platform(data: dict[str, Any]) -> Platform:
    platforms: tuple[Platform, ...] = data.get("platforms") or ()
    return platforms[0] if platforms else Platform.host()


class Bakefile(Section):
    """What to bake, onto what base, into what artefact (`parbake.yaml`)."""

    version: Annotated[Literal[1], BeforeValidator(first_version)]
    """The version of this format."""
    name: Name
    """The beginning of the artefact's file name. Default: the name of the Bakefile's folder, made valid."""
    platforms: tuple[PlatformText, ...] = ()
    """The nodes' platforms, where there are several: an artefact is baked for each, and rolled out together."""
    platform: Annotated[PlatformText, Field(validate_default=True)] = Field(default_factory=_first_platform)
    """The nodes' platform. Default: that of the machine that bakes, or the first of `platforms`."""
    images_from: Annotated[ImagesFromSection, Via(ImagesFromSection)] | None = None
    """Where images come from besides `images`, which may then be left out: a cluster's pods."""
    images: tuple[Image, ...]
    """The images to bake, in the order in which nodes start them; a bare text is a reference."""
    builder: Literal["local", "qemu", "ec2", "ebs", "packer"] = "local"
    """How to bake: `local` fills a disk offline; `qemu` boots the base and lets it bake; `ec2` does so with an AMI;
    `ebs` sends what is baked here to EC2, without an instance; `packer` leaves it to Packer."""
    base: BaseText = Field(default_factory=BaseChoice, json_schema_extra={"default": "debian"})
    """What to bake onto: `debian` (the default base), `none` (for a volume), a disk image, an AMI (which also fills
    volumes, with the builder ec2), or Debian with choices."""
    artefact: ArtefactText = Field(default_factory=_default_artefact)
    """What comes out: a format for a machine image, or a mapping. Default: raw; for base none, an ext4 volume; an AMI
    or a snapshot with the builders ec2, ebs and packer."""
    runtime: Annotated[Literal["containerd"], BeforeValidator(_runtime)] = "containerd"
    """The container runtime of the nodes."""
    size: Size = Field(default=0, json_schema_extra={"default": "auto"})
    """Size of the disk or volume: `auto` (the baked part stays under 60 % of what the base leaves), or such as 20GiB.
    KiB to TiB (whole MiB); KB to TB are rounded down to whole MiB."""
    sandbox: Annotated[
        Literal["auto", "none"] | Reference, BeforeValidator(_sandbox), text_schema("^[^ ]+$", "auto", "none")
    ] = "auto"
    """The sandbox (pause) image: `auto`, `none`, or the reference that the nodes' containerd is configured with."""
    keep_layers: bool = False
    """Keep the compressed layers in the store, which costs about half as much again."""
    registries: dict[RegistryHost, RegistryText] = Field(default_factory=dict)
    """How to reach registries, by host[:port]. Others are reached over HTTPS with Docker's logins."""
    time_limit: Duration = Field(default=5400.0, json_schema_extra={"default": "1h30m"})
    """How long a guest (of the builders qemu and ec2) may bake before it powers itself off; emulation stretches it."""
    aws: Annotated[AwsSection, Via(AwsSection)] = Field(default_factory=AwsSection.model_construct)
    """Where and how to bake in EC2, and what to do with the result there."""
    output: FolderToBe = Path("artefacts")
    """The folder for artefacts and records, relative to the Bakefile."""
    store: StoreText | None = None
    """Where records and artefacts are shared with other machines: `s3://BUCKET/PREFIX`, or a folder that they all
    mount. The first record of a content key counts for all of them. Default: `output` alone."""
    readable_by: ReadableBy = "owner"
    """Who on this machine may read artefacts, their records, and exports of them, which hold all that images hold:
    `owner` (files 0600, a new folder 0700), `group` (0640, 0750) or `everyone` (0644, 0755)."""
    retention: Annotated[RetentionSection, Via(RetentionSection)] = Field(
        default_factory=RetentionSection.model_construct
    )
    """What `parbake prune` and `parbake watch --prune` keep."""
    verify: Annotated[
        VerifySection,
        Via(VerifySection, short=verify_text, short_schema={"type": "string", "enum": ["machine", "canary"]}),
    ] = Field(default_factory=VerifySection.model_construct)
    """What artefacts are verified on, or who proves them instead."""
    trust: tuple[PublicKeyFile, ...] = ()
    """PEM files with public keys. Where there are any, `parbake verify`, `rollout`, `watch` and `export` refuse a
    record that none of them has signed."""
    sign: Annotated[SignSection, Via(SignSection)] | None = None
    """The key that signs records. Its public half must be among `trust`."""
    rollout: Annotated[tuple[TargetText, ...], AfterValidator(distinct)] = ()
    """The targets of `parbake rollout`."""

    @property
    def named_sandbox(self) -> Reference | None:
        """The sandbox image that is named; None where parbake finds it, or there is to be none."""
        return self.sandbox if isinstance(self.sandbox, Reference) else None

    @property
    def traits(self) -> BuilderTraits:
        """What its builder is like."""
        return BUILDERS[self.builder]

    @property
    def needs_root(self) -> bool:
        """Whether a bake takes root: where this machine builds an image, or mounts what it fills."""
        mounts = self.artefact.mounted and not self.traits.on_instance
        return mounts or any(entry.build for entry in self.images)

    @check("platforms")
    @classmethod
    def _distinct_platforms(cls, value: tuple[Platform, ...]) -> tuple[Platform, ...]:
        names = [each.architecture for each in value]
        if len(set(names)) < len(names):
            raise wrong("an architecture is listed twice", "write each once, such as [linux/amd64, linux/arm64]")
        return value

    @check("images_from")
    @classmethod
    def _is_one_set(cls, value: ImagesFromSection | None, info: ValidationInfo) -> ImagesFromSection | None:
        if value and len(info.data.get("platforms") or ()) > 1:
            raise wrong(
                "a cluster's images are chosen for one platform, and `platforms` names several",
                "write a Bakefile for each platform",
            )
        return value

    @check("images")
    @classmethod
    def _are_any(cls, value: tuple[Image, ...], info: ValidationInfo) -> tuple[Image, ...]:
        if not value and "images_from" in info.data and not info.data["images_from"]:
            raise PydanticKnownError("too_short", {"field_type": "Tuple", "min_length": 1, "actual_length": 0})
        return value

    @check("images")
    @classmethod
    def _are_pulled(cls, value: tuple[Image, ...], info: ValidationInfo) -> tuple[Image, ...]:
        built = [entry.reference.written for entry in value if entry.build]
        if built and len(info.data.get("platforms") or ()) > 1:
            raise wrong(
                f"{built[0]} is built here, for one platform, and `platforms` names several",
                "build and push an image for all platforms first, with docker buildx or podman manifest",
            )
        return value

    @check("builder")
    @classmethod
    def _bakes_parts(cls, value: str, info: ValidationInfo) -> str:
        if BUILDERS[value].on_instance and info.data.get("images_from"):
            raise wrong(f"{value} lets an instance pull, and `images_from` bakes parts of images", "write builder: ebs")
        if BUILDERS[value].on_instance and any(entry.layers for entry in info.data.get("images") or ()):
            raise wrong(
                f"{value} lets an instance pull, and no registry serves the lowest `layers` of an image",
                "write builder: ebs, or remove `layers`",
            )
        return value

    @check("platform")
    @classmethod
    def _remember(cls, value: Platform, info: ValidationInfo) -> Platform:
        platforms: tuple[Platform, ...] = info.data.get("platforms") or ()
        if platforms and value not in platforms:
            known = ", ".join(map(str, platforms))
            raise wrong(f"{value} is not one of `platforms`", f"choose one of {known}, or remove `platform`")
        reading: Reading | None = info.context
        if reading:
            reading.platform = value
        return value

    @check("base")
    @classmethod
    def _fits_the_builder(cls, value: BaseChoice, info: ValidationInfo) -> BaseChoice:
        builder = info.data.get("builder")
        by_id = value.ami and value.ami.id
        if len(info.data.get("platforms") or ()) > 1 and (value.kind == "file" or by_id):
            raise wrong(
                f"{'an AMI by its id' if by_id else 'a disk image'} is for one platform, and `platforms` names several",
                'write such as base: {eks: al2023, kubernetes: "1.36"}, or a Bakefile for each',
            )
        fitting = BUILDERS[builder].bases if builder else ()
        if builder and value.kind not in fitting:
            ways = [each for each, traits in BUILDERS.items() if value.kind in traits.bases]
            raise wrong(
                f"the builder {builder} bakes onto {' or '.join(_WHICH[each] for each in fitting)}, "
                f"not onto {_WHICH[value.kind]}",
                f"write builder: {' or '.join(ways)}"
                if value.kind != "debian"
                else 'write base: {eks: al2023, kubernetes: "1.36"}, or another builder',
            )
        return value

    @check("verify")
    @classmethod
    def _has_a_volume(cls, value: VerifySection, info: ValidationInfo) -> VerifySection:
        artefact: Artefact | None = info.data.get("artefact")
        elsewhere = "builder" in info.data and BUILDERS[info.data["builder"]].on_instance
        if value.base and ((artefact and artefact.kind != "volume") or elsewhere):
            raise wrong(
                "verify.base is for volumes that are made here: a machine image is itself what is booted",
                "remove it",
            )
        if value.base and value.by == "canary":
            raise wrong("nothing is booted where the canary proves an artefact", "remove base, or by: canary")
        return value

    @check("sign")
    @classmethod
    def _is_trusted(cls, value: SignSection | None, info: ValidationInfo) -> SignSection | None:
        if value and info.data.get("trust") == ():
            raise wrong(
                "needs `trust`: parbake checks a record's signature before it signs a new verdict",
                "write trust: [FILE], with the public half of the key",
            )
        return value

    @check("rollout")
    @classmethod
    def _fast_somewhere(cls, value: tuple[Target, ...], info: ValidationInfo) -> tuple[Target, ...]:
        aws: AwsSection | None = info.data.get("aws")
        wanted = next((target.name for target in value if target.remedy == "fsr"), "")
        if aws and wanted and not (aws.fast_snapshot_restore and aws.fast_snapshot_restore.at == "rollout"):
            raise wrong(
                f"{wanted} says remedy: fsr, and `aws.fast_snapshot_restore` does not say where",
                "write fast_snapshot_restore: {zones: [ZONE], at: rollout} below aws",
            )
        return value

    @check("artefact")
    @classmethod
    def _fits_the_base(cls, value: Artefact, info: ValidationInfo) -> Artefact:
        base: BaseChoice | None = info.data.get("base")
        if base and base.kind == "none" and value.kind == "machine-image":
            raise wrong(
                "a machine image needs a base, and base is none",
                "write artefact: {kind: volume, filesystem: ext4}, or base: debian",
            )
        builder = info.data.get("builder")
        if base and base.kind != "none" and value.kind == "volume" and builder != "ec2":
            raise wrong("a volume starts empty and takes no base", "write base: none")
        if not builder:
            return value
        in_ec2 = BUILDERS[builder].in_ec2
        if in_ec2 and value.kind == "volume" and value.format == "raw":
            value = value.model_copy(update={"format": "snapshot"})
        if value.in_cloud != in_ec2:
            raise wrong(
                f"the builder {builder} makes {'an AMI or a snapshot' if in_ec2 else 'a file'}, not {value.format}",
                "remove artefact" if in_ec2 else "write builder: ebs, or another format",
            )
        return value


@cache
def _schema() -> dict[str, Any]:
    from parbake.bakefile.json_schema import schema_of  # nobody else needs what it loads

    # `load` fills the others in, so the text may leave them out.
    found = schema_of(Bakefile, required=("version",))
    listed = {"required": ["images"], "properties": {"images": {"minItems": 1}}}
    return {**found, "anyOf": [listed, {"required": ["images_from"]}]}


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the file as users write it, shorthands included."""
    return copy.deepcopy(_schema())


def _swallows(build: Build, output: Path) -> bool:
    """Whether artefacts would be part of what a build sees."""
    inside = os.path.relpath(output, build.context)
    if Path(inside).parts[:1] == (os.pardir,):
        return False
    ignored: set[str] = set()
    for name in (".containerignore", ".dockerignore"):
        with suppress(OSError, ValueError):
            lines = (build.context / name).read_text().splitlines()
            ignored |= {line.strip().strip("/").removesuffix("/**") for line in lines}
    return inside not in ignored


def advice(bakefile: Bakefile) -> tuple[str, ...]:
    """Return what is allowed and still likely to hurt: moving tags, short names, artefacts in a build context."""
    found = []
    for index, entry in enumerate(bakefile.images):
        reference, written = entry.reference, entry.reference.written
        place, tagged = f"images[{index}]: {written}", ":" in written.rpartition("/")[2].partition("@")[0]
        if not tagged and not reference.digest:
            found.append(f"{place}: no tag means :latest, which moves; name a version or a digest")
        elif reference.tag == "latest" and not reference.digest:
            found.append(
                f"{place}: `latest` moves, and pods that ask for it also ask the registry at every start "
                f"(imagePullPolicy is then Always unless set); name a version or a digest"
            )
        if reference.registry == DOCKER_HUB and not written.startswith((DOCKER_HUB, f"index.{DOCKER_HUB}")):
            found.append(f"{place}: a short name, baked as {reference}; write it in full to avoid guessing")
        if entry.build and _swallows(entry.build, bakefile.output):
            found.append(
                f"{place}: its build context holds the output folder, so that every bake changes the image; "
                f"add {bakefile.output.name} to {entry.build.context / '.dockerignore'}"
            )
    used = {entry.reference.registry for entry in bakefile.images}
    if bakefile.named_sandbox:
        used.add(bakefile.named_sandbox.registry)
    used |= {mirror.partition("/")[0] for options in bakefile.registries.values() for mirror in options.mirrors}
    if bakefile.base.ami and bakefile.base.ami.eks == "al2":
        found.append(
            "base: Amazon Linux 2 is past its end: EKS publishes no AMI of it since 2025-11-26, and mends none; "
            "write eks: al2023"
        )
    if bakefile.trust and not bakefile.sign:
        found.append(
            "trust: there is no `sign`, so artefacts baked here are not signed: nothing takes them, and each bake "
            "makes them again"
        )
    unused = [host for host in bakefile.registries if host not in used]
    return (*found, *(f"registries: no image is from {host} ({close(host, sorted(used))})" for host in unused))
