"""An OCI image layout on disk, as a place where images come from.

Source: OCI image specification, image-layout.md. Paths follow from digests alone, and only regular files are read, so
nothing in a layout can name a file outside of it.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import override

from pydantic import ValidationError

from parbake.core.errors import BadContent, InputError, NoSuchImage
from parbake.core.files import open_file, read_bounded, read_file
from parbake.core.model import Descriptor, Image, Platform
from parbake.core.reference import Reference
from parbake.core.sources import LayerSource, Readable
from parbake.images.registry import strictjson
from parbake.images.registry.documents import (
    CONFIG_LIMIT,
    DOCUMENTS,
    INDEXES,
    MANIFEST_LIMIT,
    FetchedDocument,
    Index,
    IndexEntry,
    check,
    load,
    read_document,
)
from parbake.images.registry.resolve import DocumentStore, all_platforms, resolve

_VERSIONS = {"1.0.0", "1.1.0"}
_NAMES = ("org.opencontainers.image.ref.name", "io.containerd.image.name")


class Layout(LayerSource, DocumentStore):
    """An OCI image layout in the folder ``path``. Thread-safe, holds nothing open."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resolve(self, reference: Reference, platform: Platform) -> Image:
        """Return the image that the layout holds under a reference: by its digest, its tag, its full name, or alone.

        Raises InputError when the folder is not a layout, NoSuchImage, BadContent.
        """
        return resolve(self, reference, self._top(reference), platform, layout=str(self.path))

    def platforms(self, reference: Reference) -> tuple[Platform, ...]:
        """Return the platforms that a reference offers; raises as ``resolve`` does."""
        return all_platforms(self, str(reference), self._top(reference))

    def source(self, image: Image) -> LayerSource:  # noqa: ARG002 - the same signature as Registry's; a layout is one place
        """Return where the content of an image comes from."""
        return self

    @override
    def read(self, descriptor: Descriptor) -> bytes:
        return self.small(descriptor, MANIFEST_LIMIT if descriptor.media_type in DOCUMENTS else CONFIG_LIMIT)

    @override
    @contextmanager
    def open(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[Readable]:
        with self._file(descriptor) as file:
            file.seek(offset)
            yield file

    @override
    def small(self, descriptor: Descriptor, limit: int) -> bytes:
        what = f"{self.path}: {descriptor.digest}"
        if descriptor.size > limit:
            raise BadContent(
                f"{what}: {descriptor.size} bytes are too many for {descriptor.media_type} (at most {limit})"
            )
        with self._file(descriptor) as file:
            body = file.read(limit + 1)
        check(what, body, descriptor.digest, descriptor.size)
        return body

    @override
    def piece(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        with self._file(descriptor) as file:
            return os.pread(file.fileno(), length, offset)

    @override
    def submit[T](self, call: Callable[[], T]) -> Future[T]:
        """Run ``call`` at once: a disk needs no hiding of latency."""
        future: Future[T] = Future()
        future.set_result(call())
        return future

    def _top(self, reference: Reference) -> FetchedDocument:
        entry = self._choose(reference, self._index().manifests)
        return read_document(str(reference), self.small(entry.descriptor, MANIFEST_LIMIT), entry.media_type)

    def _index(self) -> Index:
        hint = "name the folder that holds oci-layout, index.json and blobs"
        try:
            head = read_file(self.path / "oci-layout", 4096)
            version = load(f"{self.path}/oci-layout", head, strictjson.LAYOUT)["imageLayoutVersion"]
            with open_file(self.path / "index.json") as file:
                body = read_bounded(file, MANIFEST_LIMIT)
        except (FileNotFoundError, NotADirectoryError) as error:
            what = f"{self.path} is not an OCI image layout: {error.filename} is missing"
            raise InputError(what, hint=hint) from error
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{self.path} is not an OCI image layout: {error}", hint=hint) from error
        if version not in _VERSIONS:
            raise InputError(f"{self.path}: image layout version {version!r} is not known", hint="write it as 1.0.0")
        if len(body) > MANIFEST_LIMIT:
            raise BadContent(f"{self.path}: index.json has more than {MANIFEST_LIMIT} bytes")
        try:
            return Index.model_validate(load(f"{self.path}/index.json", body, strictjson.DOCUMENT))
        except ValidationError as error:
            reason = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise BadContent(f"{self.path}: index.json is malformed: {reason}") from error
        except (ValueError, RecursionError) as error:
            raise BadContent(f"{self.path}: index.json is not JSON") from error

    def _choose(self, reference: Reference, entries: tuple[IndexEntry, ...]) -> IndexEntry:
        images = [entry for entry in entries if entry.media_type in DOCUMENTS and not entry.artifact_type]
        if reference.digest:
            images = [entry for entry in images if entry.digest == reference.digest]
            if not images:
                return self._inner(reference, entries)
            return images[0]
        wanted = {reference.tag, str(reference), f"{reference.repository}:{reference.tag}"}
        named = [entry for entry in images if wanted & _names(entry)]
        if named:
            return named[0]
        if len(images) == 1 and not _names(images[0]):
            return images[0]
        there = sorted(name for entry in images for name in _names(entry))
        raise NoSuchImage(
            f"{self.path} holds no image {reference.tag!r}",
            hint=f"its names are: {', '.join(there)}" if there else "none of its images has a name",
        )

    def _inner(self, reference: Reference, entries: tuple[IndexEntry, ...]) -> IndexEntry:
        """Return the entry of an index inside that has the wanted digest: a pin to one platform's manifest."""
        for entry in entries:
            if entry.media_type in INDEXES:
                inner = read_document(str(reference), self.small(entry.descriptor, MANIFEST_LIMIT), entry.media_type)
                if isinstance(inner.content, Index):
                    for found in inner.content.manifests:
                        if found.digest == reference.digest and found.media_type in DOCUMENTS:
                            return found
        raise NoSuchImage(f"{self.path} holds no image {reference.digest}", hint="was the image exported completely?")

    @contextmanager
    def _file(self, descriptor: Descriptor) -> Iterator[io.FileIO]:
        path = self.path / "blobs" / "sha256" / descriptor.digest.removeprefix("sha256:")
        try:
            # Not blocking, so that a pipe in the place of a file is an error and no wait.
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise BadContent(
                f"{path}: {error.strerror}, although the image needs it", hint="export the image again"
            ) from error
        with open(handle, "rb", buffering=0) as file:  # noqa: PTH123 - from a descriptor
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadContent(f"{path} is not a regular file", hint="export the image again")
            if status.st_size != descriptor.size:
                raise BadContent(
                    f"{path} has {status.st_size} bytes, its descriptor says {descriptor.size}",
                    hint="export the image again",
                )
            yield file


def _names(entry: IndexEntry) -> set[str]:
    annotations = entry.annotations or {}
    return {annotations[name] for name in _NAMES if annotations.get(name)}
