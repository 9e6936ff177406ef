"""Image references: the one grammar for names of images.

Follows the distribution project's grammar and containerd's and Docker's normalisation, since the reference in the store
must be exactly what the kubelet asks for: ``busybox`` is stored as ``docker.io/library/busybox:latest``.
A text is parsed where it comes in (a Bakefile, a manifest, a record), and is a ``Reference`` from there on.
Source: distribution/reference (regexp.go, normalize.go).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Self

from pydantic_core import PydanticCustomError, PydanticKnownError, core_schema

from parbake.core.errors import BadReference

_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])"
_REGISTRY = re.compile(rf"{_HOST}(?::[0-9]+)?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LONGEST_NAME = 255  # distribution/reference: NameTotalLengthMax

DOCKER_HUB = "docker.io"


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised image reference. ``tag`` or ``digest`` is set, or both; ``written`` is the text that was parsed.

    In models it is written and read as text, normalised.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""
    written: str = field(default="", compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse and normalise ``text``; raises BadReference with the reason."""
        rest, _, digest = text.partition("@")
        if "@" in text and not _DIGEST.fullmatch(digest):
            raise BadReference(
                f"{text!r}: the part after @ is not a sha256 digest", hint="write name@sha256:<64 hex digits>"
            )
        head, slash, tail = rest.rpartition("/")
        last, colon, tag = tail.partition(":")
        name = f"{head}{slash}{last}"
        if colon and not _TAG.fullmatch(tag):
            hint = "letters, digits, '_', '.', '-', up to 128 of them"
            raise BadReference(f"{text!r}: {tag!r} is not a valid tag", hint=hint)
        first, slash, remainder = name.partition("/")
        if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
            registry, repository = first, remainder
        else:
            registry, repository = DOCKER_HUB, name
        if registry in {"index.docker.io", DOCKER_HUB}:
            registry = DOCKER_HUB
            repository = repository if "/" in repository else f"library/{repository}"
        if not _REGISTRY.fullmatch(registry):
            hint = "write host[:port]/repository:tag"
            raise BadReference(f"{text!r}: {registry!r} is not a valid registry host", hint=hint)
        if not _PATH.fullmatch(repository):
            reason = "a repository is lower case" if repository != repository.lower() else "not a repository name"
            raise BadReference(
                f"{text!r}: {repository!r}: {reason}", hint="write [host[:port]/]repository[:tag][@digest]"
            )
        if len(registry) + 1 + len(repository) > _LONGEST_NAME:
            raise BadReference(f"{text!r}: the name is longer than {_LONGEST_NAME} characters")
        if not tag and not digest:
            tag = "latest"
        return cls(registry, repository, tag, digest, text)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> core_schema.CoreSchema:
        as_text = core_schema.to_string_ser_schema(when_used="always")
        return core_schema.no_info_plain_validator_function(cls._read, serialization=as_text)

    @classmethod
    def _read(cls, value: object) -> Self:
        if isinstance(value, cls):
            return value
        if not isinstance(value, str):
            raise PydanticKnownError("string_type")
        try:
            return cls.parse(value)
        except BadReference as error:
            raise PydanticCustomError("reference", "{said}", {"said": error.message}) from None

    @property
    def name(self) -> str:
        """Registry and repository, without tag or digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def is_local(self) -> bool:
        """Whether the name cannot be pulled: ``localhost`` without a port is podman's and EKS's word for that."""
        return self.registry == "localhost"

    def with_digest(self, digest: str) -> str:
        """Return ``name@digest``."""
        return f"{self.name}@{digest}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"
