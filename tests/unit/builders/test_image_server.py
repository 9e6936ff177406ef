"""What a machine pulls from this process: by digest, behind a secret, whole or from somewhere on."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from parbake.builders import Ingredients
from parbake.builders.image_server import Server, serve
from parbake.core.errors import Denied
from parbake.core.events import Events
from parbake.core.model import Descriptor
from parbake.core.sources import Readable
from standins.plans import image, plan

APP = image("registry.example/team/app:1")


class Shelf:
    """A source with made-up bytes for each descriptor."""

    refuses = False

    def read(self, descriptor: Descriptor) -> bytes:
        if self.refuses:
            raise Denied("registry.example says no", hint="log in")
        return content(descriptor.digest, descriptor.size)

    @contextmanager
    def open(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[Readable]:
        yield io.BytesIO(content(descriptor.digest, descriptor.size)[offset:])


def content(digest: str, size: int) -> bytes:
    return (hashlib.sha256(digest.encode()).digest() * (size // 32 + 1))[:size]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def server(shelf: Shelf, tmp_path: Path) -> Iterator[Server]:
    ingredients = Ingredients(None, lambda _image: shelf, tmp_path, Events())
    with serve(plan(images=(APP,)), ingredients) as made:
        yield made


def ask(
    server: Server, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[int, bytes, Mapping[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    with closing(connection):
        connection.request(method, path, headers=dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())


def test_all_of_an_image_is_there_by_its_digest(server: Server) -> None:
    root = f"/{server.secret}/v2"
    assert ask(server, f"{root}/")[0] == 200
    for kind, each in (("manifests", APP.target), ("manifests", APP.manifest), ("blobs", APP.config)):
        status, data, headers = ask(server, f"{root}/team/app/{kind}/{each.digest}?ns=registry.example")
        assert (status, data) == (200, content(each.digest, each.size))
        assert headers["Content-Type"] == each.media_type
        assert headers["Docker-Content-Digest"] == each.digest
        status, data, headers = ask(server, f"{root}/team/app/{kind}/{each.digest}", "HEAD")
        assert (status, data, headers["Content-Length"]) == (200, b"", str(each.size))
    layer = APP.layers[0]
    assert ask(server, f"{root}/team/app/blobs/{layer.digest}")[1] == content(layer.digest, layer.size)
    status, data, headers = ask(server, f"{root}/team/app/blobs/{layer.digest}", headers={"Range": "bytes=1000-"})
    assert (status, data) == (206, content(layer.digest, layer.size)[1000:])
    assert headers["Content-Range"] == f"bytes 1000-{layer.size - 1}/{layer.size}"


def test_without_the_secret_there_is_nothing(server: Server) -> None:
    place = f"/v2/team/app/manifests/{APP.target.digest}"
    for path in (place, f"/x{place}", f"/{server.secret}x{place}", "/v2/", "/"):
        assert ask(server, path)[0] == 404
    assert ask(server, f"/{server.secret}/v2/team/app/manifests/1")[0] == 404, "by digest alone"
    assert ask(server, f"/{server.secret}/v2/team/app/blobs/sha256:{'0' * 64}")[0] == 404


def test_a_docker_daemon_asks_through_a_proxy(server: Server) -> None:
    """It sends whole URLs, and logs in to the proxy as Go's HTTP client does."""
    login = base64.b64encode(f"parbake:{server.secret}".encode()).decode()
    known, other = ({"Proxy-Authorization": f"Basic {word}"} for word in (login, login[4:]))
    place = f"http://registry.example/v2/team/app/manifests/{APP.target.digest}"
    status, _, headers = ask(server, "http://registry.example/v2/", headers=known)
    assert (status, headers["Docker-Distribution-Api-Version"]) == (200, "registry/2.0")
    assert ask(server, place, headers=known)[1] == content(APP.target.digest, APP.target.size)
    assert ask(server, place, headers=other)[0] == 404
    assert ask(server, place)[0] == 404
    assert ask(server, "registry.example:443", "CONNECT", headers=known)[0] == 501, "then it asks without TLS"


def test_what_a_registry_refuses_is_kept_for_the_user(server: Server, shelf: Shelf) -> None:
    shelf.refuses = True
    assert ask(server, f"/{server.secret}/v2/team/app/manifests/{APP.target.digest}")[0] == 502
    assert isinstance(server.failure, Denied)
    assert server.failure.hint == "log in"
