"""A faulty network: an HTTP proxy in front of a registry that breaks what it is told to break.

    with FaultyProxy(registry.url) as proxy:                  # plain HTTP: use RegistryOptions(plain_http=True)
        proxy.host                                            # "127.0.0.1:40123", in place of registry.host
        proxy.faults.extend([Cut(1000), Status(503)])         # one for each matching request, in order; then none
        proxy.only = "/blobs/"                                # which paths faults are for (a part of the path)
        proxy.requests                                        # what came in: ("GET", "/v2/…", {"range": "bytes=9-"})
    proxy.stalled                                         # an event: it has fallen silent in the middle of a body

Faults:
    Cut(after)                reset the connection after so many bytes of the body (``polite``: close it in order)
    Status(code, headers)     answer with a status and an error body
    Length(by)                state a Content-Length that is wrong by so many bytes
    Flip(at)                  deliver one byte of the body wrong
    Stall(after, seconds)     fall silent in the middle of the body
    Drip(seconds)             send the body a byte at a time
    DripHeader(seconds)       send the header a byte at a time, for ever
    WholeAnswer()             ignore a Range header
    Chunked(extra)            send the body in chunks, without a length, and ``extra`` after it
    Header(name, value)       replace a header of the answer
    Redirect(url)             answer 307 to another place, ``{path}`` in it is the path that was asked for
"""

from __future__ import annotations

import http.server
import json
import re
import socket
import struct
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

import urllib3


@dataclass(frozen=True)
class Cut:
    after: int
    polite: bool = False


@dataclass(frozen=True)
class Status:
    code: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"errors": [{"code": "UNKNOWN", "message": "made up"}]}'


@dataclass(frozen=True)
class Length:
    by: int


@dataclass(frozen=True)
class Flip:
    at: int


@dataclass(frozen=True)
class Stall:
    after: int
    seconds: float


@dataclass(frozen=True)
class Drip:
    seconds: float


@dataclass(frozen=True)
class DripHeader:
    seconds: float


@dataclass(frozen=True)
class WholeAnswer:
    pass


@dataclass(frozen=True)
class Chunked:
    extra: bytes = b""


@dataclass(frozen=True)
class Header:
    name: str
    value: str


@dataclass(frozen=True)
class Redirect:
    url: str


Fault = Cut | Status | Length | Flip | Stall | Drip | DripHeader | WholeAnswer | Chunked | Header | Redirect
_PROBE = 64  # bytes
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_NOT_PASSED_ON = {"host", "connection", "transfer-encoding"}


class FaultyProxy:
    """The proxy; see the top of this file."""

    def __init__(self, upstream: str, *, address: str = "127.0.0.1") -> None:
        self.address = address
        self.faults: deque[Fault] = deque()
        self.only = "/blobs/"
        self.spare_probes = False  # of a layer a few bytes are read before the bake
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.stalled = threading.Event()
        self.upstream = urllib3.PoolManager(retries=False, maxsize=8)
        self.upstream_url = upstream

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = http.server.ThreadingHTTPServer((self.address, 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.upstream.clear()

    @property
    def host(self) -> str:
        return f"{self.address}:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def fault_for(self, path: str, wanted: str = "") -> Fault | None:
        """Return the fault of a request for a path; ``wanted``: its header Range."""
        with self.lock:
            ends = _RANGE.fullmatch(wanted)
            if self.spare_probes and ends and int(ends[2]) - int(ends[1]) < _PROBE:
                return None
            return self.faults.popleft() if self.faults and self.only in path else None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultyProxy

    def handle(self) -> None:
        with suppress(OSError, ValueError, urllib3.exceptions.HTTPError):  # connections end here in every possible way
            super().handle()

    def do_GET(self) -> None:
        sent = {key.lower(): value for key, value in self.headers.items()}
        with self.owner.lock:
            self.owner.requests.append((self.command, self.path, sent))
        fault = self.owner.fault_for(self.path, sent.get("range", ""))
        with suppress(OSError):
            if isinstance(fault, Status):
                self._answer(fault.code, {"Content-Type": "application/json", **fault.headers}, fault.body)
            elif isinstance(fault, Redirect):
                self._answer(307, {"Location": fault.url.format(path=self.path)}, b"")
            elif isinstance(fault, DripHeader):
                self._drip(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 60000, fault.seconds)
            else:
                self._pass_on(sent, fault)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        """Take what is sent and answer with a fault: the registry behind us is only read from."""
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.owner.lock:
            if not self.owner.faults:
                self.owner.faults.append(Status(404))
        self.do_GET()

    def _pass_on(self, sent: dict[str, str], fault: Fault | None) -> None:
        headers = {key: value for key, value in sent.items() if key not in _NOT_PASSED_ON}
        if isinstance(fault, WholeAnswer):
            headers.pop("range", None)
        # A client that takes us for its forward proxy asks for a whole URL.
        path = self.path if self.path.startswith("/") else "/" + self.path.split("/", 3)[3]
        answer = self.owner.upstream.request(
            self.command, self.owner.upstream_url + path, headers=headers, redirect=False
        )
        kept = {key: value for key, value in answer.headers.items() if key.lower() not in _NOT_PASSED_ON}
        body = answer.data
        match fault:
            case Header(name, value):
                kept = {key: old for key, old in kept.items() if key.lower() != name.lower()} | {name: value}
            case Length(by):
                kept["Content-Length"] = str(len(body) + by)
                self.close_connection = True
            case Flip(at):
                body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
            case Chunked(extra):
                kept.pop("Content-Length", None)
                kept["Transfer-Encoding"] = "chunked"
                parts = [body[:1000], body[1000:], extra]
                body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part) + b"0\r\n\r\n"
        self._answer(answer.status, kept, body, fault)

    def _answer(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None) -> None:
        headers = dict(headers)
        if "Transfer-Encoding" not in headers and "Content-Length" not in headers:
            headers["Content-Length"] = str(len(body))
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        match fault:
            case Cut(after, polite):
                self.wfile.write(body[:after])
                self._hang_up(polite=polite)
            case Stall(after, seconds):
                self.wfile.write(body[:after])
                if len(body) > after:  # else it has no middle, and its client asks for more over this connection
                    self.owner.stalled.set()
                    self.owner.ended.wait(seconds)
                    self.wfile.write(body[after:])
            case Drip(seconds):
                self._drip(body, seconds)
            case _:
                self.wfile.write(body)

    def _drip(self, data: bytes, seconds: float) -> None:
        self.close_connection = True
        for at in range(len(data)):
            if self.owner.ended.wait(seconds):
                return
            self.wfile.write(data[at : at + 1])

    def _hang_up(self, *, polite: bool) -> None:
        self.close_connection = True
        if not polite:
            # Give what was written time to leave, then reset: a lingering time of 0 turns close into RST.
            self.owner.ended.wait(0.01)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.wfile.close()
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


def error_body(code: str, message: str) -> bytes:
    """Return an error as the distribution specification writes it."""
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()
