"""HTTP, one exchange at a time: connections that are kept, TLS, proxies, and errors in words.

Nothing here tries again, authenticates or knows what a manifest is. Every wait is bounded, and ``close`` cuts whatever
is under way in other threads, so that Ctrl-C does not wait for a silent server.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    SSLError,
)
from urllib3.util import Url, parse_url

from parbake import __version__
from parbake.core.errors import BadContent, EnvironmentProblem, RegistryError, Unreachable
from parbake.images.registry.addresses import (
    PORTS,
    AddressZone,
    bare_host,
    is_loopback,
    join,
    origin,
    shown,
    zone_of,
    zone_of_literal,
)
from parbake.images.registry.retry import Meter, Patience, Transient

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
_POOL_SIZE = 64
_SMALL = 16 << 10
_MOST_DIGITS = 18
# How OpenSSL says that the other side does not speak TLS (reasons of SSL_R_*, over several releases).
_NOT_TLS = (
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
    "UNKNOWN_PROTOCOL",
)
# A loopback server that does not speak TLS either says so at once or waits for a line that never comes.
_PROBE_SECONDS = 1.0


class TooNear(RegistryError):
    """A server's address lies nearer than whoever names it may send us; nothing was sent there."""


class Transport:
    """Connections to any number of hosts, shared by threads."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._managers: dict[tuple[str, str, str, AddressZone], urllib3.PoolManager] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._schemes: dict[str, str] = {}
        self._zones: dict[tuple[str, int], AddressZone] = {}
        self._live = _Live()

    def close(self) -> None:
        """Cut all connections, also those that other threads wait on."""
        self.closing.set()
        self._live.cut()
        with self._lock:
            for manager in self._managers.values():
                manager.clear()

    def send(
        self,
        method: str,
        url: Url,
        *,
        headers: Mapping[str, str],
        secret: str = "",
        body: bytes | None = None,
        ca: str = "",
        nearest: AddressZone = AddressZone.LOOPBACK,
    ) -> tuple[BaseHTTPResponse, Url]:
        """Send one request; return the response with its body unread, and its URL. GET and HEAD follow redirects.

        ``secret`` is the Authorization header; it is left out as soon as a redirect leads to another origin. Nothing
        is sent to an address that lies nearer than ``nearest``, whatever names resolve to it: behind a proxy, which
        resolves them itself, only addresses that stand in the URL are judged.

        Raises Transient for what may pass, Unreachable or RegistryError (TooNear) for what will not.
        """
        secret_origin = origin(url)
        for _ in range(_MOST_REDIRECTS + 1):
            own = {"User-Agent": f"parbake/{__version__}", "Accept-Encoding": "identity", **headers}
            if secret and origin(url) == secret_origin:
                own["Authorization"] = secret
            response = self._exchange(method, url, own, body, ca, nearest)
            place = response.headers.get("Location")
            if response.status not in _REDIRECTS or method not in {"GET", "HEAD"} or not place:
                return response, url
            self.discard(response)
            url = self._follow(url, place)
        raise RegistryError(f"{shown(url)}: more than {_MOST_REDIRECTS} redirects in a row")

    def read(self, response: BaseHTTPResponse, limit: int, what: str) -> bytes:
        """Read a body whole and give the connection back; raises BadContent beyond ``limit`` bytes, Transient."""
        meter = Meter(self.patience, what)
        body = bytearray()
        try:
            while True:
                started = time.monotonic()
                piece = response.read1(limit + 1 - len(body), decode_content=False)
                body += piece
                meter.add(len(piece), time.monotonic() - started)
                if not piece:
                    return bytes(body)
                if len(body) > limit:
                    raise BadContent(f"{what}: the answer is larger than {limit} bytes, more than any valid one")
        except (HTTPError, OSError) as error:
            raise translate(error, what) from error
        finally:
            # Read to its end the connection is back in its pool already, and this does nothing to it.
            response.close()

    def discard(self, response: BaseHTTPResponse) -> None:
        """Be done with a response whose body does not matter, and keep the connection when that is cheap."""
        if response.headers.get("Content-Length", "").isdecimal():
            with suppress(Transient, RegistryError):
                self.read(response, _SMALL, "an answer")
        response.close()

    def scheme(self, host: str, *, plain_http: bool) -> str:
        """Return how to speak to a registry: a loopback host is asked once whether it speaks TLS."""
        if plain_http:
            return "http"
        if not is_loopback(host):
            return "https"
        with self._lock:
            known = self._schemes.get(host)
        if known is None:
            known = "https" if _speaks_tls(host) else "http"
            with self._lock:
                self._schemes[host] = known
        return known

    def zone(self, url: Url) -> AddressZone:
        """Return how near the server of a URL lies that a request was sent to: the farthest address that answered.

        PUBLIC when that is not known, as behind a proxy.
        """
        _, host, port = origin(url)
        known = self._zones.get((host.strip("[]"), port))
        return AddressZone.PUBLIC if known is None else known

    def _follow(self, url: Url, place: str) -> Url:
        try:
            target = join(url, place)
        except RegistryError as error:
            raise RegistryError(f"{shown(url)} redirects: {error.message}", hint=error.hint) from error
        if url.scheme == "https" and target.scheme == "http" and not is_loopback(url.netloc or ""):
            raise RegistryError(
                f"{shown(url)} redirects from TLS to plain HTTP ({shown(target)})",
                hint="the registry's storage or proxy must be configured to redirect to https",
            )
        return target

    def _exchange(
        self, method: str, url: Url, headers: Mapping[str, str], body: bytes | None, ca: str, nearest: AddressZone
    ) -> BaseHTTPResponse:
        if self.closing.is_set():
            raise Unreachable("the registry's connections were closed")
        timeout = urllib3.Timeout(connect=self.patience.connect, read=self.patience.stall)
        try:
            return self._manager(url, ca, nearest).request(
                method, url.url, headers=headers, body=body, redirect=False, retries=False, timeout=timeout,
                preload_content=False, decode_content=False,
            )  # fmt: skip
        except LocationParseError as error:
            raise RegistryError(f"{shown(url)}: not a URL") from error
        except (HTTPError, OSError) as error:
            raise translate(error, url.netloc or "") from error

    def _manager(self, url: Url, ca: str, nearest: AddressZone) -> urllib3.PoolManager:
        scheme, host, _ = origin(url)
        proxy = ""
        if not is_loopback(url.netloc or "") and not urllib.request.proxy_bypass(host.strip("[]")):
            proxy = urllib.request.getproxies().get(scheme, "")
        if proxy and (zone := zone_of_literal(host)) is not None and zone < nearest:
            raise TooNear(f"{url.netloc} is a {zone} address")
        key = (scheme, proxy, ca, nearest)
        with self._lock:
            manager = self._managers.get(key)
            if manager is None:
                manager = self._managers[key] = self._new_manager(*key)
        return manager

    def _new_manager(self, scheme: str, proxy: str, ca: str, nearest: AddressZone) -> urllib3.PoolManager:
        choices: dict[str, Any] = {"maxsize": _POOL_SIZE, "num_pools": 32}
        if ca or "https" in {scheme, urlsplit(proxy).scheme}:  # plain HTTP need not wait until all authorities are read
            choices["ssl_context"] = self._context(ca)
        manager: urllib3.PoolManager
        if proxy:
            parts = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
            login = f"{parts.username}:{parts.password or ''}" if parts.username else None
            address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
            proxy_headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
            manager = urllib3.ProxyManager(address, proxy_headers=proxy_headers, **choices)
        else:
            manager = urllib3.PoolManager(**choices)
        manager.pool_classes_by_scheme = self._pool_classes(None if proxy else self._judge(nearest))
        return manager

    def _judge(self, nearest: AddressZone) -> Callable[[HTTPConnection, str], None]:
        """Return what looks at the address that a connection has reached; it raises TooNear before anything is sent."""

        def judge(connection: HTTPConnection, address: str) -> None:
            zone = zone_of(address)
            if zone < nearest:
                raise TooNear(f"{connection.host} is at {address}, a {zone} address")
            # The farthest counts: a name that leads to other addresses later brings nothing nearer.
            server = connection.host, connection.port
            with self._lock:
                self._zones[server] = max(zone, self._zones.get(server, zone))

        return judge

    def _pool_classes(self, judge: Callable[[HTTPConnection, str], None] | None) -> dict[str, type[HTTPConnectionPool]]:
        own_live, own_limit = self._live, self.patience.stall

        class Plain(_Watched, HTTPConnection):
            live, limit, judged = own_live, own_limit, staticmethod(judge) if judge else None

        class Secure(_Watched, HTTPSConnection):
            live, limit, judged = own_live, own_limit, staticmethod(judge) if judge else None

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure

        return {"http": PlainPool, "https": SecurePool}

    def _context(self, ca: str) -> ssl.SSLContext:
        context = self._contexts.get(ca)
        if context is None:
            context = ssl.create_default_context()
            # Python 3.13 began to refuse authorities that other registry clients take (no key identifier, say).
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            if ca:
                try:
                    context.load_verify_locations(cafile=ca)
                except OSError as error:
                    raise EnvironmentProblem(
                        f"{ca}: no certificates can be read from it ({error.strerror or error})",
                        hint="registries.HOST.ca is the path of a PEM file",
                    ) from error
            self._contexts[ca] = context
        return context


class _Live:
    """The connections that exist, so that all can be cut at once; whoever comes after that is cut off, too.

    A thread may be making one meanwhile: its server could be silent, and somebody waits for the thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = False
        self._connections: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()

    def add(self, connection: HTTPConnection) -> None:
        with self._lock:
            self._connections.add(connection)
            if self._over:
                _cut(connection)

    def cut(self) -> None:
        with self._lock:
            self._over = True
            for connection in list(self._connections):
                _cut(connection)


class _Answer(http.client.HTTPResponse):
    """An answer whose body can be read without a copy."""

    def receive_into(self, buffer: memoryview) -> int:
        """Let one read of the socket fill the start of ``buffer``; return the count, 0 when nothing comes any more."""
        count = self.fp.readinto1(buffer)
        if self.length is not None:
            self.length -= count
        return count


class _Watched(HTTPConnection):
    """A connection that can be cut from another thread, and whose server must answer in time.

    A socket's time-out bounds each read, and a server that sends its header byte by byte never exceeds it.
    """

    live: _Live
    limit: float
    judged: Callable[[HTTPConnection, str], None] | None = None
    """Looks at the address that was reached (None: it is a proxy's)."""
    answer: _Answer | None = None
    """What came last."""

    def response_class(self, *arguments: Any, **choices: Any) -> _Answer:  # type: ignore[override]
        """Make the object for an answer (``http.client`` calls this where its own class is by default)."""
        self.answer = _Answer(*arguments, **choices)
        return self.answer

    def connect(self) -> None:
        super().connect()
        self.live.add(self)

    def _new_conn(self) -> socket.socket:
        reached = super()._new_conn()
        if self.judged is not None:
            try:
                self.judged(self, reached.getpeername()[0])
            except BaseException:
                reached.close()
                raise
        return reached

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        timer = threading.Timer(self.limit, _cut, [self])
        timer.daemon = True
        timer.start()
        try:
            return super().getresponse()
        finally:
            timer.cancel()


def receive(response: BaseHTTPResponse, buffer: memoryview) -> int:
    """Read what the socket has into ``buffer``: at least one byte, 0 at the end. Raises HTTPError, OSError.

    A body of a stated length goes straight from the socket (or out of TLS) into the buffer. Its last byte goes through
    urllib3, which then sees the end and keeps the connection.
    """
    connection, left = response.connection, response.length_remaining
    answer = connection.answer if isinstance(connection, _Watched) else None
    if answer is not None and answer.length == left and left is not None and left > 1:
        try:
            count = answer.receive_into(buffer[: left - 1])
        except ssl.SSLError as error:
            raise SSLError(error) from error
        if count:
            response.length_remaining = left - count
            return count
    data = response.read1(len(buffer), decode_content=False)
    buffer[: len(data)] = data
    return len(data)


def whole_number(text: str) -> int | None:
    """Return the number that a header states; None for anything else, and for more digits than any size has."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS else None


def _cut(connection: HTTPConnection) -> None:
    if connection.sock is not None:
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)


def _speaks_tls(host: str) -> bool:
    """Ask a loopback server; says nothing and trusts nothing, so the certificate does not matter here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    address = bare_host(host), parse_url(f"//{host}").port or PORTS["https"]
    try:
        with (
            socket.create_connection(address, timeout=_PROBE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=address[0]),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # an alert is TLS, even when it says no
    except OSError:
        return False


def translate(error: Exception, where: str) -> Exception:
    """Return the error of ours for one of urllib3's or the system's: Transient when it may pass.

    ``where`` is a host, or names what was read from one.
    """
    hint = f"is {where} right and reachable from here? proxies are taken from HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
    cause = error.original_error if isinstance(error, ProxyError) else error
    if isinstance(cause, SSLError) or isinstance(cause.__cause__, ssl.SSLError):
        return _tls_error(cause, where)
    if isinstance(error, ProxyError):
        return Transient(Unreachable(f"{where}: the proxy refuses the connection: {_reason(cause)}", hint=hint))
    if isinstance(cause, NameResolutionError):
        return Transient(Unreachable(f"{where}: the host name does not resolve", hint=hint), hopeless=True)
    if isinstance(cause, ConnectTimeoutError) and not isinstance(cause, NewConnectionError):
        return Transient(Unreachable(f"{where}: no connection in time", hint=hint), hopeless=True)
    if isinstance(cause, NewConnectionError):
        return Transient(Unreachable(f"{where}: no connection: {_reason(cause)}", hint=hint), hopeless=True)
    return Transient(Unreachable(f"{where}: the connection broke: {_reason(cause)}", hint=hint))


def _tls_error(error: Exception, where: str) -> Exception:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text or "doesn't match" in text:
        reason = text.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or text
        return Unreachable(
            f"{where}: its certificate is not trusted: {reason}",
            hint=f"set registries.{where}.ca to the PEM file of the authority that signed it, "
            "or install the authority with update-ca-certificates",
        )
    if any(sign in text.upper().replace(" ", "_") for sign in _NOT_TLS):
        return Unreachable(f"{where} speaks plain HTTP, not TLS", hint=f"set registries.{where}.plain_http: true")
    return Transient(Unreachable(f"{where}: TLS failed: {_reason(error)}"))


def _reason(error: BaseException) -> str:
    """Return the innermost reason: what the system said, not how the library wrapped it."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("(")[0].strip() or type(error).__name__
