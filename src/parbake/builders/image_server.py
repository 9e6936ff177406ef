"""Serves a plan's images to one machine on this host's loopback: it needs no login, mirror or authority of its own.

What asks finds them by digest, under the names of their repositories, behind a path that only the machine is told. A
Docker daemon, which knows no such paths, asks with it as a proxy's password. All of it comes from the sources that
every bake uses, so that a secret stays in this process. Source: the OCI distribution specification, "Pull";
containerd ``docs/hosts.md`` (a server's path goes before ``/v2``).
"""

from __future__ import annotations

import base64
import io
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from parbake.builders import Ingredients
from parbake.core.errors import ParbakeError
from parbake.core.model import Descriptor, Plan
from parbake.core.sources import LayerSource, Readable

_PIECE = 1 << 20
_PLACE = re.compile(r"/v2/.+/(?:manifests|blobs)/(sha256:[0-9a-f]{64})")
_THROUGH = re.compile(r"http://[^/]+(/.*)")
_PROXY = "parbake"  # the user whom the guest's script logs in as
_FROM = re.compile(r"bytes=([0-9]+)-")


@dataclass(frozen=True, slots=True)
class _Item:
    """One thing that is served: a document, read whole and verified, or a layer, which the machine verifies."""

    source: LayerSource
    descriptor: Descriptor
    is_document: bool = False

    @contextmanager
    def open(self, offset: int) -> Iterator[Readable]:
        if self.is_document:
            data = io.BytesIO(self.source.read(self.descriptor))
            data.seek(offset)
            yield data
        else:
            with self.source.open(self.descriptor, offset=offset) as stream:
                yield stream


class Server:
    """What is served; ``failure`` is the first error of a source, which the machine only sees as a bad gateway."""

    def __init__(self, plan: Plan, ingredients: Ingredients) -> None:
        self.failure: ParbakeError | None = None
        self.secret = secrets.token_urlsafe(24)
        self.port = 0
        self._there: dict[str, _Item] = {}
        for image in plan.all_images:
            source = ingredients.source(image)
            for each in image.layers:
                layer = Descriptor(media_type=each.media_type, digest=each.digest, size=each.size)
                self._there.setdefault(each.digest, _Item(source, layer))
            for document in (image.target, image.manifest, image.config):
                self._there.setdefault(document.digest, _Item(source, document, is_document=True))

    def inside(self, path: str, proxied: str) -> str:
        """Return the path of a request in the registry; empty: who asks is not the machine.

        ``proxied`` is how the client of a proxy logs in; then the path is a whole URL.
        """
        place, login = path.partition("?")[0], base64.b64encode(f"{_PROXY}:{self.secret}".encode()).decode()
        if found := _THROUGH.fullmatch(place):
            return found[1] if secrets.compare_digest(proxied, f"Basic {login}") else ""
        inside = place.removeprefix(f"/{self.secret}")
        return inside if inside != place else ""

    def find(self, inside: str) -> _Item | None:
        """Return what a path in the registry asks for; None: it is not here."""
        found = _PLACE.fullmatch(inside)
        return self._there.get(found[1]) if found else None


@contextmanager
def serve(plan: Plan, ingredients: Ingredients) -> Iterator[Server]:
    """Serve a plan's images on a free port of the loopback for as long as the body runs."""
    server = Server(plan, ingredients)

    class Handler(_Handler):
        served = server

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    server.port = listening.server_address[1]
    thread = threading.Thread(target=listening.serve_forever, args=(0.1,), name="serve images", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: ClassVar[Server]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        inside = self.served.inside(self.path, self.headers.get("Proxy-Authorization", ""))
        if inside.rstrip("/") == "/v2":  # whether there is a registry
            self._begin(HTTPStatus.OK, 0, {"Docker-Distribution-Api-Version": "registry/2.0"})
            return
        found = self.served.find(inside)
        if found is None:
            self._begin(HTTPStatus.NOT_FOUND, 0)
            return
        descriptor, begun = found.descriptor, False
        asked = _FROM.match(self.headers.get("Range", ""))
        offset = min(int(asked[1]), descriptor.size) if asked else 0
        headers = {"Content-Type": descriptor.media_type, "Docker-Content-Digest": descriptor.digest}
        if asked:
            headers["Content-Range"] = f"bytes {offset}-{descriptor.size - 1}/{descriptor.size}"
        status = HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK
        if not body:
            self._begin(status, descriptor.size - offset, headers)
            return
        try:
            with found.open(offset) as stream:
                self._begin(status, descriptor.size - offset, headers)
                begun, view = True, memoryview(bytearray(_PIECE))
                while count := stream.readinto(view):
                    self.wfile.write(view[:count])
        except ParbakeError as error:
            self.served.failure = self.served.failure or error
            self.close_connection = True
            if not begun:
                self._begin(HTTPStatus.BAD_GATEWAY, 0)
        except ConnectionError:
            self.close_connection = True  # the machine hung up

    def _begin(self, status: HTTPStatus, length: int, headers: dict[str, str] | None = None) -> None:
        with suppress(ConnectionError):
            self.send_response_only(status)
            for name, value in {**(headers or {}), "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 (http.server's name)
        """Say nothing: paths hold the secret."""
