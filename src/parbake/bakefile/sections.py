"""The sections of a Bakefile, in the user's words and shorthands.

A section with the suffix ``Section`` mirrors the text and is turned into a noun of the model when read; the others are
what a loaded Bakefile holds. Both are the source of the JSON Schema: docstrings below fields become its descriptions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic import field_validator as check
from pydantic_core import CoreSchema, core_schema

from parbake.bakefile.values import (
    ContainerKey,
    ContainerPath,
    Duration,
    Expression,
    File,
    Folder,
    Mirror,
    Mode,
    PathText,
    PlatformText,
    Port,
    PublicKeyFile,
    Reading,
    ReferenceText,
    Scalar,
    User,
    Variables,
    Words,
    close,
    existing_file,
    status,
    wrong,
)
from parbake.core.model import (
    KIB,
    Artefact,
    ExecProbe,
    ExitProbe,
    Frozen,
    HttpProbe,
    LogProbe,
    MountedProbe,
    Platform,
    Probe,
    RegistryOptions,
    RunningProbe,
    Startup,
    StartupFile,
    TcpProbe,
)
from parbake.core.reference import Reference


class Section(Frozen):
    """A part of the file; the docstrings of its fields are published in the JSON Schema (``json_schema``).

    What reads a section is built when the first one is read, and few Bakefiles have more than three of the thirty: most
    of what it costs to load their classes. So whoever holds one holds it by ``Via``, which needs nothing of it until
    then, and a default is made by ``model_construct``.
    """

    model_config = ConfigDict(defer_build=True)


@dataclass(frozen=True)
class Via:
    """Reads a value by a section and holds it as the noun that ``convert`` makes of it.

    ``short`` turns a bare text into what the section reads, or into the finished noun; ``short_schema`` describes it.
    Errors keep the places of the user's text, since the section mirrors it.
    """

    section: type[BaseModel]
    convert: Callable[[Any], BaseModel] = lambda section: section
    short: Callable[[str], object] | None = None
    short_schema: dict[str, Any] | None = None

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        # What is held is the noun, so that is what is dumped.
        dump = core_schema.plain_serializer_function_ser_schema(
            lambda noun, info: noun.model_dump(mode=info.mode), info_arg=True
        )
        return core_schema.with_info_plain_validator_function(self._read, serialization=dump)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        kind = self.section
        kind.model_rebuild()  # as deferred as anything else
        # With the name that pydantic gives it elsewhere, it is one of the JSON Schema's definitions.
        name = f"{kind.__module__}.{kind.__qualname__}:{id(kind)}"
        named = cast("CoreSchema", {**kind.__pydantic_core_schema__, "ref": name})
        written = handler(core_schema.definitions_schema(named, []))
        return {"anyOf": [self.short_schema, written]} if self.short_schema else written

    def _read(self, value: object, info: ValidationInfo) -> BaseModel:
        if isinstance(value, str) and self.short:
            value = self.short(value)
        if isinstance(value, BaseModel) and not isinstance(value, self.section):
            return value  # a finished noun
        return self.convert(self.section.model_validate(value, strict=True, context=info.context))


class HttpSection(Section):
    """Up when GET http://127.0.0.1:port/path answers with a status from 200 to 399."""

    port: Port
    """The TCP port, on the node's loopback."""
    path: Annotated[str, Field(pattern="^/")] = "/"
    """The path to ask for, with its leading slash."""


def _http(text: str) -> object:
    port, slash, path = text.partition("/")
    if not port.isascii() or not port.isdigit() or len(port) > 5:
        raise wrong(f"{text!r} is not a port with a path", "write 8080/healthz, or {port: 8080, path: /healthz}")
    return {"port": int(port), "path": slash + path or "/"}


_WAYS = ("exit", "running", "log", "tcp", "http", "exec", "mounted")


class UpSection(Section):
    """How to know that a started container is up: exactly one of these."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    log: Expression | None = None
    """Up when a line of the container's output matches this regular expression (Python's, searched)."""
    tcp: Port | None = None
    """Up when something accepts connections on this port of the node's loopback."""
    http: (
        Annotated[
            HttpSection,
            Via(
                HttpSection, short=_http, short_schema={"type": ["string", "integer"], "pattern": "^[0-9]{1,5}(/.*)?$"}
            ),
        ]
        | None
    ) = None
    """Up when HTTP answers: ``8080/healthz`` or ``{port: 8080, path: /healthz}``."""
    exec: Words | None = None
    """Up when this command, run in the container again and again, ends with code 0, as a pod's `exec` probe."""
    running: Duration | None = None
    """Up when the main process has run for this long, or has ended with code 0 before."""
    mounted: Annotated[str, Field(pattern="^/")] | None = None
    """Up when a pod has the image as a volume (`volumes[].image`) and finds this path in it. Nothing of it runs."""

    def probe(self) -> Probe:
        """Return the one probe; raises when there is none or more than one."""
        given: list[Probe] = []
        if self.log is not None:
            given.append(LogProbe(pattern=self.log))
        if self.tcp is not None:
            given.append(TcpProbe(port=self.tcp))
        if self.http is not None:
            given.append(HttpProbe(port=self.http.port, path=self.http.path))
        if self.exec is not None:
            if not self.exec:
                raise wrong("`exec` needs a command", "write exec: [PROGRAM, ARGUMENT]")
            given.append(ExecProbe(command=self.exec))
        if self.running is not None:
            given.append(RunningProbe(seconds=self.running))
        if self.mounted is not None:
            given.append(MountedProbe(path=self.mounted))
        if len(given) != 1:
            count = "none" if not given else str(len(given))
            raise wrong(f"must be exactly one of {', '.join(_WAYS)}; there are {count}", "write up: exit")
        return given[0]


def _up(text: str) -> object:
    ways = {"exit": ExitProbe(), "running": RunningProbe(), "mounted": MountedProbe()}
    if text in ways:
        return ways[text]
    if text in {"log", "tcp", "http", "exec"}:
        needs = {"log": "REGEX", "tcp": "8080", "http": "8080/healthz", "exec": "[PROGRAM, ARGUMENT]"}[text]
        raise wrong(f"{text!r} needs a value", f"write {{{text}: {needs}}}")
    raise wrong(f"{text!r} is not a startup check", close(text, _WAYS))


class FileSection(Section):
    """A small file in the container."""

    content: str
    """What it holds: text. It is in the record, so put no secrets here."""
    mode: Mode = "0644"
    """Its permissions, octal; root owns it."""

    def file(self) -> StartupFile:
        """Return the model's noun."""
        return StartupFile(content=self.content, mode=self.mode)


def _content(text: str) -> object:
    return {"content": text}


MOST_FILES, MOST_IN_FILES = 16, 64 * KIB
"""How many files an image is started with, and how many bytes they hold in all."""
FileText = Annotated[StartupFile, Via(FileSection, FileSection.file, _content, {"type": "string"})]


class StartupSection(Section):
    """How to start an image for rehearsal and verification, and how to know that it is up."""

    command: Words = ()
    """Replaces the image's entrypoint, as a pod's `command` does; empty keeps the image's own."""
    args: Words = ()
    """Replaces the image's command, as a pod's `args` does; empty keeps the image's own."""
    env: Variables = Field(default_factory=dict)
    """Environment variables on top of the image's own. They are in the record, so put no secrets here."""
    user: User = ""
    """Who runs it, as a pod's `runAsUser` and `runAsGroup`: `10001`, `10001:10001`, or a name of the image's own
    /etc/passwd. Default: the image's."""
    workdir: Annotated[str, Field(pattern="^/")] | None = None
    """The folder it starts in, as a pod's `workingDir`. Default: the image's."""
    read_only: bool = False
    """Its root is read-only, as a pod's `readOnlyRootFilesystem`."""
    writable: tuple[ContainerPath, ...] = ()
    """Empty folders that it may write to, as a pod's `emptyDir`, such as [/tmp]."""
    files: dict[ContainerKey, FileText] = Field(default_factory=dict)
    """Small files that it finds, as of a pod's ConfigMap: a text for each path, or {content: TEXT, mode: "0644"}. At
    most 16, with 64 KiB in all."""
    up: Annotated[Probe, Via(UpSection, UpSection.probe, _up, {"enum": ["exit", "running", "mounted"]})] = Field(
        default_factory=RunningProbe, json_schema_extra={"default": "running"}
    )
    """When it counts as up: `exit` (ended with code 0), `running` (ran for a second), `mounted` (a pod has it as an
    image volume), or a log line, a port, HTTP, a command in it."""
    timeout: Duration = Field(default=120.0, json_schema_extra={"default": "120s"})
    """How long it may take with hardware virtualisation; in emulation, correspondingly longer."""
    watch: Duration = Field(default=10.0, json_schema_extra={"default": "10s"})
    """How long after its start it is looked at once more, by the clock, and later if others start meanwhile: it must
    still run, or have ended well. Give a program that fails late more."""

    @check("files")
    @classmethod
    def _are_small(cls, value: dict[str, StartupFile]) -> dict[str, StartupFile]:
        size = sum(len(file.content.encode()) for file in value.values())
        if len(value) > MOST_FILES or size > MOST_IN_FILES:
            raise wrong(
                f"{len(value)} files of {size} bytes: at most {MOST_FILES} of {MOST_IN_FILES} bytes in all",
                "keep those that it needs to start",
            )
        return value

    def startup(self) -> Startup:
        """Return the model's noun; raises for how to run what is only mounted."""
        given = {key: getattr(self, key) for key in StartupSection.model_fields if getattr(self, key)}
        if self.up.kind == "mounted" and (unused := given.keys() - {"up", "timeout", "watch"}):
            raise wrong("an image that is only mounted runs nothing", f"leave out {', '.join(sorted(unused))}")
        if both := sorted(self.files.keys() & set(self.writable)):
            raise wrong(f"{both[0]} is a file and a writable folder", "remove it from one of the two")
        return Startup(**given)


def _containerfile(data: dict[str, Any]) -> Path:
    """Find the build file where the user names none."""
    folder: Path = data["context"]
    names = [folder / "Containerfile", folder / "Dockerfile"]
    return next((path for path in names if status(path)), names[0])


class Build(Section):
    """How to build an image that is not in a registry yet."""

    context: Folder
    """The build context, relative to the Bakefile."""
    file: Annotated[PathText, Field(default_factory=_containerfile, validate_default=True)]
    """The build file, relative to the context. Default: Containerfile, then Dockerfile."""
    args: Variables = Field(default_factory=dict)
    """Build arguments (ARG). They end up in the image's history, so put no secrets here."""
    target: Scalar = ""
    """The stage to build; the last one when empty."""
    network: Literal["private", "host", "none"] | None = None
    """What RUN steps reach: `private`, a network of their own, without this machine's loopback and a cloud's metadata
    service; `host`, all that this machine reaches; `none`. Without: private where that can be had, else host, with a
    warning."""
    compression: Literal["zstd", "gzip"] = "zstd"
    """How its layers are compressed when they are pushed: zstd is unpacked in about 60 % of gzip's time, and
    containerd has known it since 1.5. Where Docker builds, it is always gzip."""

    @check("file", mode="before")
    @classmethod
    def _below_context(cls, value: object, info: ValidationInfo) -> object:
        context = info.data.get("context")
        return str(context / value) if isinstance(value, str) and value and context else value

    @check("file")
    @classmethod
    def _exists(cls, value: Path, info: ValidationInfo) -> Path:
        return existing_file(value, info) if "context" in info.data else value


def _build(text: str) -> object:
    return {"context": text}


BuildText = Annotated[Build, Via(Build, short=_build, short_schema={"type": "string", "minLength": 1})]


class ImageEntry(Section):
    """An image to bake."""

    reference: ReferenceText
    """The image, exactly as pod specs name it. `localhost/name:tag` (no port) is built here and never pushed."""
    platform: PlatformText | None = None
    """The platform to take of an image for several; must be of the node's architecture and may add a variant."""
    build: Annotated[BuildText | None, Field(validate_default=True)] = None
    """Build the image first, and push it to where the reference says; a bare text is the context."""
    also_by_digest: bool = True
    """Store the image under name@sha256:… too, for pods that ask for the digest, as admission webhooks let them."""
    startup: Annotated[Startup, Via(StartupSection, StartupSection.startup)] | None = None
    """How verification starts it. Default: the image's own command must run for a second."""
    layers: Annotated[int, Field(ge=1)] | None = None
    """Bake only so many of its layers, the lowest, for whatever begins with them; nodes fetch the rest. The image
    itself is then not there, and proofs do not start it; `parbake coverage` shows what that saves. Default: all."""
    signed_by: Annotated[PublicKeyFile | None, Field(validate_default=True)] = None
    """A PEM file with the public key (Ed25519, or ECDSA on P-256) that must have signed the image, as `cosign sign
    --key` does. It is checked before anything else is decided."""

    @check("reference")
    @classmethod
    def _is_new(cls, value: Reference, info: ValidationInfo) -> Reference:
        reading: Reading | None = info.context
        name = str(value)
        if reading and name in reading.seen:
            raise wrong(f"{name} is already in the list", "remove one of them")
        if reading:
            reading.seen[name] = None
        return value

    @check("platform")
    @classmethod
    def _fits_the_node(cls, value: Platform | None, info: ValidationInfo) -> Platform | None:
        reading: Reading | None = info.context
        node = reading.platform if reading else None
        if value and node and (value.os, value.architecture) != (node.os, node.architecture):
            raise wrong(f"{value} does not run on a node of {node}", "remove it, or change the Bakefile's platform")
        return value

    @check("build")
    @classmethod
    def _has_a_source(cls, value: Build | None, info: ValidationInfo) -> Build | None:
        if "reference" not in info.data:
            return value
        reference: Reference = info.data["reference"]
        if value and reference.digest:
            raise wrong("a build makes a new digest, and the reference pins one", "write name:tag")
        if value is None and reference.is_local:
            raise wrong(
                f"{reference} can only be built: no registry has `localhost` without a port",
                "add build: {context: FOLDER}, or name the registry's port",
            )
        return value

    @check("layers")
    @classmethod
    def _starts_nothing(cls, value: int | None, info: ValidationInfo) -> int | None:
        for key in ("build", "startup"):
            if value and info.data.get(key):
                raise wrong(f"a part of an image is neither built nor started, and there is `{key}`", f"remove {key}")
        return value

    @check("signed_by")
    @classmethod
    def _comes_from_others(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value and info.data.get("build"):
            raise wrong("an image that is built here has no signature yet", "remove signed_by, or build")
        return value


_FORMATS = ("raw", "qcow2", "vmdk", "vhd", "ami")
_FILE_SYSTEMS = ("ext4", "xfs")


class ArtefactSection(Section):
    """What comes out."""

    kind: Literal["machine-image", "volume"] | None = None
    """`machine-image` boots; `volume` is a node's second disk. Default: what the other keys ask for."""
    format: Literal["raw", "qcow2", "vmdk", "vhd", "ami", "snapshot"] | None = None
    """The format of a machine image's file. Default: raw. `ami`, and `snapshot` for a volume, lie in EC2: that is what
    the builders ec2, ebs and packer make."""
    filesystem: Literal["ext4", "xfs"] | None = None
    """The file system of a volume (a machine image keeps its base's). Default: ext4."""

    def artefact(self) -> Artefact:
        """Return the model's noun; raises where the keys contradict each other."""
        volume = self.format == "snapshot" or (self.filesystem and not self.format)
        kind = self.kind or ("volume" if volume else "machine-image")
        if kind == "volume" and self.format not in {None, "raw", "snapshot"}:
            raise wrong(f"a volume is raw, not {self.format}", "remove format")
        if kind == "machine-image" and self.format == "snapshot":
            raise wrong("a machine image in EC2 is an ami", "write format: ami")
        if kind == "machine-image" and self.filesystem:
            raise wrong("a machine image keeps the file system of its base", "remove filesystem")
        return Artefact(kind=kind, format=self.format or "raw", filesystem=self.filesystem or "ext4")


def _artefact(text: str) -> object:
    if text in _FORMATS:
        return {"kind": "machine-image", "format": text}
    if text in _FILE_SYSTEMS:
        raise wrong(f"{text} is a file system", f"write {{kind: volume, filesystem: {text}}}")
    if text in {"volume", "machine-image"}:
        raise wrong(f"{text} is a kind", f"write {{kind: {text}}}")
    raise wrong(f"{text!r} is not a valid format", close(text, _FORMATS))


class RegistrySection(Section):
    """How to reach one registry."""

    plain_http: bool = False
    """Speak HTTP instead of HTTPS. Loopback registries are tried with both anyway."""
    credentials: Literal["auto", "none", "docker", "ecr", "environment"] = "auto"
    """Where a login comes from: `auto` looks where Docker does and asks AWS for ECR hosts; `docker` looks only at
    config.json and its helpers; `ecr` asks AWS; `environment` reads PARBAKE_USERNAME and PARBAKE_PASSWORD."""
    mirrors: tuple[Mirror, ...] = ()
    """Mirrors to ask first: hosts, or host/path."""
    ca: File | None = None
    """A PEM file with certificate authorities to trust besides the system's, relative to the Bakefile."""
    create: bool = True
    """For ECR: create a missing repository when a built image is pushed to it."""
    scan_on_push: bool = True
    """For ECR: whether a created repository scans images on push."""
    immutable_tags: bool = False
    """For ECR: whether the tags of a repository that is made can never name another image. Then a changed build needs
    a new tag."""

    def options(self) -> RegistryOptions:
        """Return the model's noun."""
        return RegistryOptions(
            plain_http=self.plain_http,
            credentials=self.credentials,
            mirrors=self.mirrors,
            ca=str(self.ca or ""),
            create=self.create,
            scan_on_push=self.scan_on_push,
            immutable_tags=self.immutable_tags,
        )


def short_image(text: str) -> object:
    """Read a bare reference in the list of images."""
    return {"reference": text}


Image = Annotated[ImageEntry, Via(ImageEntry, short=short_image, short_schema={"type": "string", "pattern": "^[^ ]+$"})]
ArtefactText = Annotated[Artefact, Via(ArtefactSection, ArtefactSection.artefact, _artefact, {"enum": list(_FORMATS)})]
RegistryText = Annotated[RegistryOptions, Via(RegistrySection, RegistrySection.options)]
