"""Where a server may send us, and with what: two real servers count what arrives."""

from __future__ import annotations

import http.server
import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from parbake.core.errors import Denied, RegistryError
from parbake.core.model import RegistryOptions
from parbake.images.registry import Registry
from standins.faulty_proxy import FaultyProxy, Redirect, Status
from standins.images import image, layer, push
from standins.registry import Certificates, DockerRegistry, certificates
from standins.registry_client import AMD64, PLAIN, QUICK, log_in, nobody, not_loopback, read_all, ref, user

__all__ = ["nobody"]  # a fixture for every test here

BUILT = image(layer({"a": b"1"}))


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as running:
        push(running.url, "team/app", BUILT, "v1")
        yield running.url


@pytest.fixture
def front(content: str) -> Iterator[FaultyProxy]:
    """The registry, which has asked for a password."""
    with FaultyProxy(content) as running:
        yield running


@pytest.fixture
def storage(content: str) -> Iterator[FaultyProxy]:
    """A stranger, to whom the registry sends us."""
    with FaultyProxy(content) as running:
        running.only = ""
        yield running


def heard(server: FaultyProxy) -> list[str]:
    """Return the credentials that a server was given."""
    return [headers["authorization"] for _, _, headers in server.requests if "authorization" in headers]


def redirected(front: FaultyProxy, location: str) -> bytes:
    """Fetch the image's layer as somebody who is logged in, by one redirect."""
    log_in(front.host, user("ann", "secret-word"))
    with Registry({front.host: PLAIN}, patience=QUICK) as client:
        front.only = ""
        front.faults.append(Status(401, {"WWW-Authenticate": "Basic"}))
        found = client.resolve(ref(front.host), AMD64)
        front.only = "/blobs/"
        front.faults.append(Redirect(location))
        return read_all(client, found)


def refused(front: FaultyProxy, location: str) -> RegistryError | None:
    """Return the error of ``redirected``, None when there is none."""
    try:
        redirected(front, location)
    except RegistryError as error:
        return error
    return None


@pytest.mark.parametrize(
    "location",
    [
        "http://STORAGE\\@REGISTRY{path}",
        "//STORAGE\\@REGISTRY{path}",
        "http://STORAGE\\\\@REGISTRY{path}",
        "http://STORAGE\\.REGISTRY{path}",
        "\\\\STORAGE{path}",
        "/\\STORAGE{path}",
        "http://REGISTRY@STORAGE{path}",
        "http://ann:secret-word@STORAGE{path}",
        "http://@STORAGE{path}",
        "//REGISTRY@STORAGE{path}",
        "http://STORAGE%5c@REGISTRY{path}",
        "http://STORAGE%5C.REGISTRY{path}",
        "http://STORAGE\t@REGISTRY{path}",
        "http://STORAGE{path}\t",
        "http://STORA\tGE{path}",
        "http://STORAGE {path}",
        "http://STORAGE\x01{path}",
        "http://STORAGE\x7f{path}",
        "http://STORAGE\xa0{path}",
        "http://STORAGE\uff20REGISTRY{path}",
        "http://STORAGE:80{path}",
        "http://127.0.0.1:0{path}",
        "http://127.0.0.1:65536{path}",
        "http://[::1{path}",
        "file:///etc/passwd",
    ],
    ids=ascii,
)
def test_a_redirect_that_two_readers_could_read_differently_is_refused(
    front: FaultyProxy, storage: FaultyProxy, location: str
) -> None:
    """On ``http://storage\\@registry/`` one reader says registry and the other connects to the storage."""
    location = location.replace("STORAGE", storage.host).replace("REGISTRY", front.host)
    front.faults.clear()
    if any(ord(sign) > 0xFF for sign in location):
        location = location.encode().decode("latin-1")  # as it travels
    error = refused(front, location)
    assert heard(storage) == []
    assert storage.requests == []
    assert error is not None
    assert re.search(r"redirects: .* that parbake does not follow", error.message)
    assert "secret-word" not in json.dumps(error.to_json())


@pytest.mark.parametrize(
    "location",
    [
        "http://STORAGE{path}#@REGISTRY/",
        "http://STORAGE{path}?x=@REGISTRY/",
        "http://STORAGE{path}?x=%5c@REGISTRY/",
        "HTTP://STORAGE{path}",
        "//STORAGE{path}",
        "http://LOCALHOST:PORT{path}",
    ],
)
def test_a_redirect_to_another_host_takes_no_credentials_along(
    front: FaultyProxy, storage: FaultyProxy, location: str
) -> None:
    port = storage.host.partition(":")[2]
    location = location.replace("STORAGE", storage.host).replace("REGISTRY", front.host).replace("PORT", port)
    assert redirected(front, location) == BUILT.layers[0].data
    assert len(storage.requests) == 1
    assert "#" not in storage.requests[0][1]
    assert heard(storage) == []
    assert heard(front)


@pytest.mark.parametrize(
    "location", ["{path}?again", "?again", "//REGISTRY{path}?again", "HTTP://REGISTRY{path}?again#x"]
)
def test_a_redirect_to_the_registry_itself_keeps_them(front: FaultyProxy, location: str) -> None:
    assert redirected(front, location.replace("REGISTRY", front.host)) == BUILT.layers[0].data
    _, path, headers = front.requests[-1]
    assert path.endswith("?again")
    assert headers["authorization"] == f"Basic {user('ann', 'secret-word')['auth']}"


def test_a_stranger_behind_a_doubtful_redirect_names_no_token_server(front: FaultyProxy, storage: FaultyProxy) -> None:
    """Its 401 must not be taken for one of the registry, which decides where the password goes."""
    storage.faults.append(Status(401, {"WWW-Authenticate": f'Bearer realm="{storage.url}/token"'}))
    error = refused(front, f"http://{storage.host}\\@{front.host}{{path}}")
    assert heard(storage) == []
    assert storage.requests == []
    assert error is not None


@pytest.mark.parametrize(
    "realm",
    [
        "http://STORAGE\\\\@REGISTRY/token",
        "http://ann@STORAGE/token",
        "http://STORAGE\t/token",
        "http://STORAGE%5c@REGISTRY/token",
        "http://STORAGE /token",
        "//STORAGE\\\\@REGISTRY/token",
    ],
    ids=ascii,
)
def test_a_realm_that_two_readers_could_read_differently_is_refused(
    front: FaultyProxy, storage: FaultyProxy, realm: str
) -> None:
    realm = realm.replace("STORAGE", storage.host).replace("REGISTRY", front.host)
    log_in(front.host, user("ann", "secret-word"))
    front.only = ""
    front.faults.append(Status(401, {"WWW-Authenticate": f'Bearer realm="{realm}"'}))
    with Registry({front.host: PLAIN}, patience=QUICK) as client, pytest.raises(RegistryError) as caught:
        client.resolve(ref(front.host), AMD64)
    assert heard(storage) == []
    assert storage.requests == []
    assert "no usable realm" in caught.value.message


# -- token servers that lie nearer than the registry


@dataclass
class Server:
    """A TLS server on some address that asks for a token, or gives one; counts connections and requests."""

    host: str
    challenge: str = ""
    connections: int = 0
    requests: list[str] = field(default_factory=list)


@contextmanager
def serving(address: str, tls: Certificates) -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def setup(self) -> None:
            state.connections += 1
            super().setup()

        def do_GET(self) -> None:
            state.requests.append(self.path)
            body = b'{"token": "a-token"}'
            self.send_response(401 if state.challenge else 200)
            if state.challenge:
                self.send_header("WWW-Authenticate", state.challenge)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    with http.server.ThreadingHTTPServer((address, 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        state = Server(f"{address}:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def address() -> str:
    """An address of this machine that is not a loopback one."""
    return not_loopback()


@pytest.fixture
def tls(tmp_path: Path, address: str) -> Certificates:
    return certificates(tmp_path, names=f"IP:127.0.0.1,IP:{address},DNS:localhost,DNS:auth.test")


def ask(host: str, options: RegistryOptions) -> None:
    log_in(host, user("ann", "secret-word"))
    with Registry({host: options}, patience=QUICK) as client:
        client.resolve(ref(host), AMD64)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "127.1", "2130706433", "auth.test"])
def test_a_realm_that_lies_nearer_than_the_registry_is_refused(
    address: str, tls: Certificates, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the address that is reached, so that no spelling and no name that leads here helps; nothing is sent to it."""
    resolve = socket.getaddrinfo

    def lying(host: str, *rest: object, **more: object) -> object:
        return resolve("127.0.0.1" if host == "auth.test" else host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", lying)
    with serving(address, tls) as registry, serving("127.0.0.1", tls) as inner:
        port = inner.host.partition(":")[2]
        registry.challenge = f'Bearer realm="https://{name}:{port}/token",service="x"'
        with pytest.raises(Denied, match=r"token server is refused: .* a loopback address"):
            ask(registry.host, RegistryOptions(ca=str(tls.ca)))
        assert registry.requests
        assert inner.requests == []


def test_a_realm_as_near_as_the_registry_is_asked(address: str, tls: Certificates) -> None:
    with serving(address, tls) as registry, serving(address, tls) as beside:
        registry.challenge = f'Bearer realm="https://{beside.host}/token",service="x"'
        with pytest.raises(Denied, match="access denied"):  # it asks again, whatever it is told
            ask(registry.host, RegistryOptions(ca=str(tls.ca)))
        assert len(beside.requests) == 1


def test_a_realm_of_the_registrys_own_name_is_asked_wherever_it_lies(
    address: str, tls: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its certificate says that it is the same party: a name may have a public IPv6 and a private IPv4 address."""
    resolve = socket.getaddrinfo
    places: dict[int, str] = {}

    def split(host: str, port: int, *rest: Any, **more: Any) -> object:
        return resolve(places.get(port, host), port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", split)
    with serving(address, tls) as registry, serving("127.0.0.1", tls) as inner:
        outer_port, inner_port = (int(server.host.partition(":")[2]) for server in (registry, inner))
        places |= {outer_port: address, inner_port: "127.0.0.1"}
        registry.challenge = f'Bearer realm="https://auth.test:{inner_port}/token",service="x"'
        with pytest.raises(Denied, match="access denied"):
            ask(f"auth.test:{outer_port}", RegistryOptions(ca=str(tls.ca)))
        assert len(inner.requests) == 1


def test_a_realm_behind_a_proxy_is_judged_by_its_literal(
    address: str, tls: Certificates, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy resolves names by itself: only an address that stands in the URL can be judged."""
    with serving(address, tls) as registry, FaultyProxy(content) as forward:
        forward.only = ""
        monkeypatch.setenv("https_proxy", forward.url)
        monkeypatch.setenv("no_proxy", address)
        registry.challenge = 'Bearer realm="https://169.254.169.254/latest/meta-data",service="x"'
        with pytest.raises(Denied, match=r"169\.254\.169\.254 is a link-local address"):
            ask(registry.host, RegistryOptions(ca=str(tls.ca)))
        assert forward.requests == []


@pytest.mark.parametrize("logged_in", [True, False])
def test_a_realm_on_plain_http_is_refused_with_and_without_credentials(
    address: str, tls: Certificates, content: str, *, logged_in: bool
) -> None:
    """Also a token for the anonymous is worth stealing, and an address of the machine's own network worth asking."""
    with serving(address, tls) as registry, FaultyProxy(content) as plain:
        registry.challenge = f'Bearer realm="http://127.0.0.1:{plain.host.partition(":")[2]}/token",service="x"'
        options = RegistryOptions(ca=str(tls.ca), credentials="docker" if logged_in else "none")
        with pytest.raises(Denied, match="speaks plain HTTP"):
            ask(registry.host, options)
        assert plain.requests == []


def test_a_registry_that_is_called_insecure_may_have_its_realm_likewise(
    front: FaultyProxy, storage: FaultyProxy
) -> None:
    front.only = ""
    front.faults.append(Status(401, {"WWW-Authenticate": f'Bearer realm="{storage.url}/token",service="x"'}))
    storage.faults.append(Status(200, body=b'{"token": "given"}'))
    ask(front.host, PLAIN)
    assert len(heard(storage)) == 1
    assert heard(front)[-1] == "Bearer given"
