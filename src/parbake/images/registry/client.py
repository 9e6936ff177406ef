"""The registry client: references to images, blobs to streams, over any number of registries and their mirrors.

Mirrors are asked first, in order, and whatever goes wrong there (even a missing tag) leads to the next host; only what
the registry itself says is an error.
"""

from __future__ import annotations

import difflib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Self, override
from urllib.parse import urlsplit

from parbake.core.errors import BadContent, Denied, InputError, NoSuchImage, RegistryError, Unreachable
from parbake.core.events import Events
from parbake.core.model import Descriptor, Image, Platform, RegistryOptions
from parbake.core.reference import Reference
from parbake.core.roles import Role
from parbake.core.signing import Attached, PublicKey
from parbake.core.sources import LayerSource, Readable
from parbake.images.registry import attachments, ecr
from parbake.images.registry.blob import Blob
from parbake.images.registry.documents import (
    ACCEPT,
    CONFIG_LIMIT,
    DOCUMENTS,
    MANIFEST_LIMIT,
    OCI_INDEX,
    FetchedDocument,
    Index,
    check,
    read_document,
)
from parbake.images.registry.endpoint import Answer, Endpoint, Missing
from parbake.images.registry.resolve import DocumentStore, all_platforms, resolve
from parbake.images.registry.retry import Patience
from parbake.images.registry.transport import Transport, whole_number

# Requests at once for one Registry: enough to hide the network's latency, few enough for any registry's limits.
_AT_ONCE = 8
_TAGS_LIMIT = 4 << 20
_HOST = re.compile(r"([\w.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?", re.ASCII)


class Registry:
    """Access to registries, each as ``options`` says for its host; a host that is not there gets the defaults.

    ECR is asked in ``role``, or else as the caller.

    Thread-safe; a context manager that closes its connections, also those that other threads are waiting on.
    """

    def __init__(
        self,
        options: Mapping[str, RegistryOptions] | None = None,
        *,
        events: Events | None = None,
        patience: Patience | None = None,
        role: Role | None = None,
    ) -> None:
        self.patience = patience or Patience()
        self._options, self._role = dict(options or {}), role
        self._events = events
        self._transport = Transport(self.patience)
        self._threads = ThreadPoolExecutor(_AT_ONCE, "registry")
        self._lock = threading.Lock()
        self._endpoints: dict[str, tuple[Endpoint, ...]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections and end all that is under way. Idempotent."""
        self._transport.close()
        self._threads.shutdown(cancel_futures=True)

    def each[Item, Answer](self, ask: Callable[[Item], Answer], items: Iterable[Item]) -> list[Answer]:
        """Ask of several items at a time, and return the answers in their order; raises what asking raises.

        Then, and where it is interrupted, the connections are cut.
        """
        with ThreadPoolExecutor(_AT_ONCE) as pool, self.closing_on_failure():
            return list(pool.map(ask, items))

    @contextmanager
    def closing_on_failure(self) -> Iterator[None]:
        """Cut the connections when the body fails or is interrupted: no thread goes on waiting for an answer."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def resolve(self, reference: Reference, platform: Platform) -> Image:
        """Return what a reference means for a platform, with the config read and the layers described.

        Raises NoSuchImage (saying which tags or platforms there are), InputError for an image that cannot be baked,
        Denied, Unreachable, BadContent, RegistryError, and EnvironmentProblem when credentials cannot be looked up.
        """
        repository = self._repository(reference)
        return resolve(repository, reference, repository.top(reference), platform)

    def head(self, reference: Reference) -> Descriptor:
        """Return what a reference points to with one cheap request; raises as ``resolve`` does."""
        return self._repository(reference).head(reference)

    def platforms(self, reference: Reference) -> tuple[Platform, ...]:
        """Return the platforms that a reference offers; raises as ``resolve`` does."""
        repository = self._repository(reference)
        return all_platforms(repository, str(reference), repository.top(reference))

    def need_signature(self, image: Image, key: PublicKey) -> Attached:
        """Return the signature of an image by a key; raises VerificationFailed when there is none."""
        return attachments.need_signature(self._repository(image.reference), image, key)

    def find_attachments(self, images: Iterable[Image]) -> Callable[[], dict[Reference, tuple[Attached, ...]]]:
        """Begin to look for what is attached to images, beside other work; return what gives the answers, by reference.

        What cannot be known is noted, and is not an error.
        """
        pulled = [each for each in images if not (each.layout or each.reference.is_local or each.part_of)]
        asked = {
            each.reference: self._threads.submit(attachments.find, self._repository(each.reference), each)
            for each in pulled
        }
        return lambda: attachments.collect(asked, self._note)

    def source(self, image: Image) -> LayerSource:
        """Return where the content of an image comes from."""
        return self._repository(image.reference)

    def _repository(self, reference: Reference) -> _Repository:
        if reference.is_local:
            raise NoSuchImage(
                f"{reference}: a name of localhost without a port is local to a node and cannot be pulled",
                hint="push the image to a registry, or write localhost:PORT/… for a registry on this machine",
            )
        return _Repository(reference, self.endpoints(reference.registry), self._transport, self._threads, self._note)

    def endpoints(self, host: str) -> tuple[Endpoint, ...]:
        """Return the hosts to ask for a registry's content: its mirrors, then itself."""
        with self._lock:
            found = self._endpoints.get(host)
            if found is None:
                options = self._options.get(host, RegistryOptions())
                mirrors = [self._mirror(text, host) for text in options.mirrors]
                found = self._endpoints[host] = (*mirrors, Endpoint(host, options, self._transport, role=self._role))
        return found

    def _mirror(self, text: str, namespace: str) -> Endpoint:
        parts = urlsplit(text if "://" in text else f"//{text}")
        if not _HOST.fullmatch(parts.netloc) or parts.scheme not in {"", "http", "https"}:
            raise InputError(f"registries.{namespace}.mirrors: {text!r} is not a host", hint="write host[:port][/path]")
        options = self._options.get(parts.netloc, RegistryOptions())
        if parts.scheme == "http":
            options = options.model_copy(update={"plain_http": True})
        path = parts.path.strip("/").removeprefix("v2/")
        return Endpoint(parts.netloc, options, self._transport, path=path, namespace=namespace, role=self._role)

    def _note(self, text: str) -> None:
        if self._events is not None:
            self._events.note(text)


class _Repository(LayerSource, DocumentStore, attachments.ReferrerStore):
    """One repository: the ``LayerSource`` of its images, and the store that resolving reads from."""

    def __init__(
        self,
        reference: Reference,
        endpoints: tuple[Endpoint, ...],
        transport: Transport,
        threads: ThreadPoolExecutor,
        note: Callable[[str], None],
    ) -> None:
        self._name = reference.name
        self._path = reference.repository
        self._endpoints = endpoints
        self._transport = transport
        self._threads = threads
        self._note = note

    def top(self, reference: Reference) -> FetchedDocument:
        """Return the document that a reference names, verified."""
        what = str(reference)

        def ask(endpoint: Endpoint) -> FetchedDocument:
            answer = self._manifest(endpoint, reference.digest or reference.tag, what)
            claimed = reference.digest or answer.header("Docker-Content-Digest")
            if claimed.startswith("sha256:"):
                check(what, answer.body, claimed)
            return read_document(what, answer.body, answer.header("Content-Type"))

        try:
            return self._first(ask)
        except Missing as missing:
            raise self._no_such(reference) from missing

    def head(self, reference: Reference) -> Descriptor:
        """Return what a reference points to."""
        what = str(reference)

        def ask(endpoint: Endpoint) -> Descriptor | None:
            answer = self._manifest(endpoint, reference.digest or reference.tag, what, method="HEAD")
            digest = answer.header("Docker-Content-Digest")
            media_type = answer.header("Content-Type").partition(";")[0].strip()
            length = whole_number(answer.header("Content-Length"))
            if not digest.startswith("sha256:") or media_type not in DOCUMENTS or length is None:
                return None  # such registries exist; the content tells
            if reference.digest and digest != reference.digest:
                raise BadContent(f"{what}: the registry answers with another digest: {digest}")
            return Descriptor(media_type=media_type, digest=digest, size=length)

        try:
            return self._first(ask) or self.top(reference).descriptor
        except Missing as missing:
            raise self._no_such(reference) from missing

    @override
    def maybe(self, name: str) -> FetchedDocument | None:
        what = f"{self._name}{'@' if name.startswith('sha256:') else ':'}{name}"

        def ask(endpoint: Endpoint) -> FetchedDocument:
            answer = self._manifest(endpoint, name, what)
            if name.startswith("sha256:"):
                check(what, answer.body, name)
            return read_document(what, answer.body, answer.header("Content-Type"))

        try:
            return self._first(ask)
        except Missing:
            return None

    @override
    def referrers(self, digest: str) -> Index | None:
        """Return the index of what refers to a digest, by the API or its fallback tag; None where there is none."""
        what = f"the referrers of {self._name}@{digest}"

        def ask(endpoint: Endpoint) -> FetchedDocument:
            answer = endpoint.fetch(
                self._path, f"referrers/{digest}", accept=OCI_INDEX, limit=MANIFEST_LIMIT, what=what
            )
            return read_document(what, answer.body, answer.header("Content-Type"))

        try:
            found: FetchedDocument | None = self._first(ask)
        except (Denied, Unreachable):
            raise
        except (Missing, RegistryError, NoSuchImage):  # a registry without that API
            found = self.maybe(digest.replace(":", "-"))
        return found.content if found and isinstance(found.content, Index) else None

    @override
    def read(self, descriptor: Descriptor) -> bytes:
        return self.small(descriptor, MANIFEST_LIMIT if descriptor.media_type in DOCUMENTS else CONFIG_LIMIT)

    @override
    @contextmanager
    def open(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[Readable]:
        blob = Blob(self._up(), self._path, descriptor, offset, self._transport.patience)
        try:
            blob.start()
            yield blob
        finally:
            blob.close()

    @override
    def small(self, descriptor: Descriptor, limit: int) -> bytes:
        what = f"{self._name}@{descriptor.digest}"
        if descriptor.size > limit:
            raise BadContent(
                f"{what}: {descriptor.size} bytes are too many for {descriptor.media_type} (at most {limit})"
            )

        def ask(endpoint: Endpoint) -> bytes:
            if descriptor.media_type in DOCUMENTS:
                body = self._manifest(endpoint, descriptor.digest, what).body
            else:
                body = endpoint.fetch(self._path, f"blobs/{descriptor.digest}", limit=limit, what=what).body
            check(what, body, descriptor.digest, descriptor.size)
            return body

        return self._needed(what, ask)

    @override
    def piece(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        """Return some bytes of a blob; nothing when the registry does not serve ranges."""
        what = f"{self._name}: blob {descriptor.digest}"
        part = f"bytes={offset}-{offset + length - 1}"

        def ask(endpoint: Endpoint) -> bytes:
            answer = endpoint.fetch(self._path, f"blobs/{descriptor.digest}", limit=length, what=what, part=part)
            _check_total(what, answer, descriptor.size)
            return answer.body

        return self._needed(what, ask)

    @override
    def submit[T](self, call: Callable[[], T]) -> Future[T]:
        """Run ``call`` on one of the registry's threads."""
        return self._threads.submit(call)

    def _manifest(self, endpoint: Endpoint, name: str, what: str, *, method: str = "GET") -> Answer:
        return endpoint.fetch(
            self._path, f"manifests/{name}", method=method, accept=ACCEPT, limit=MANIFEST_LIMIT, what=what
        )

    def _up(self) -> list[Endpoint]:
        """Return the hosts that are worth asking: a mirror that could not be reached once is left alone."""
        return [*(endpoint for endpoint in self._endpoints[:-1] if not endpoint.down.is_set()), self._endpoints[-1]]

    def _first[T](self, ask: Callable[[Endpoint], T]) -> T:
        *mirrors, registry = self._up()
        for mirror in mirrors:
            try:
                return ask(mirror)
            except Unreachable as error:
                if not mirror.down.is_set():
                    mirror.down.set()
                    self._note(f"the mirror {mirror.host} will not be used any more: {error}")
            except (Missing, RegistryError, NoSuchImage) as error:
                self._note(f"the mirror {mirror.host} does not help: {error}")
        return ask(registry)

    def _needed[T](self, what: str, ask: Callable[[Endpoint], T]) -> T:
        """Ask for a part of an image that is known; raises RegistryError where no host has it."""
        try:
            return self._first(ask)
        except Missing as missing:
            raise RegistryError(
                f"{what}: the registry does not have it, although the image needs it",
                hint="the image was pushed incompletely, or garbage-collected: push it again",
            ) from missing

    def _no_such(self, reference: Reference) -> NoSuchImage:
        """Return the error for a reference that is not there: what is missing, and what may have been meant."""
        registry = self._endpoints[-1]
        try:
            answer = registry.fetch(self._path, "tags/list?n=1000", limit=_TAGS_LIMIT, what=f"the tags of {self._name}")
            tags = [str(tag) for tag in json.loads(answer.body)["tags"] or []]
        except Missing:
            return NoSuchImage(
                f"{reference}: the registry has no repository {self._path}",
                hint=ecr.PULL_THROUGH
                if ecr.parse(reference.registry)
                else "check the spelling; a repository appears with its first push",
            )
        except (RegistryError, ValueError, LookupError, TypeError):
            tags = []
        if reference.digest:
            return NoSuchImage(
                f"{reference}: the repository has no such digest", hint="was it deleted or never pushed?"
            )
        near = difflib.get_close_matches(reference.tag, tags, n=3, cutoff=0.5)
        hint = (
            f"did you mean {', '.join(near)}?" if near else f"its tags include: {', '.join(tags[-5:])}" if tags else ""
        )
        return NoSuchImage(f"{reference}: the repository has no tag {reference.tag}", hint=hint)


def _check_total(what: str, answer: Answer, size: int) -> None:
    """Raise BadContent when the answer to a range says that the blob has another size than its manifest says."""
    ranged = answer.header("Content-Range")
    # A server that knows no ranges was about to send the whole blob, of which nothing was read.
    total = whole_number(ranged.rpartition("/")[2] if ranged or answer.body else answer.header("Content-Length"))
    if total is not None and total != size:
        raise BadContent(
            f"{what}: the manifest says {size} bytes, the registry has {total}",
            hint="the image is inconsistent: build and push it again",
        )
