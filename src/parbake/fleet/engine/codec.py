"""Lets the engine's pages and its own program show what is sealed, to whoever has the fleet's key on this machine.

It speaks Temporal's protocol of remote codecs ("Codec Server": POST to /decode, payloads as JSON), and opens only. What
it opens was sealed with the fleet's key for the place that it names itself; pages do not say for which place they ask,
and may show it in another. So it is for people to look at, and no worker goes by it.

It listens on the loopback alone. Its path has a word that only the key gives, so that others on this machine cannot
ask; browsers may ask for pages of the given origins alone, and by no other name than the loopback's (DNS rebinding).
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Collection, Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, override

from google.protobuf.json_format import MessageToDict, Parse, ParseError
from temporalio.api.common.v1 import Payloads

from parbake.core.errors import EnvironmentProblem
from parbake.fleet.engine.sealing import opened_for_view

_MOST: Final = 8 << 20
"""Bytes of a request: the engine takes 4 MB in one."""
_SILENCE: Final = 10.0  # seconds that a caller may be silent


def word(key: bytes) -> str:
    """Return the part of the path that only the key gives."""
    return hmac.digest(key, b"parbake fleet codec", "sha256").hex()[:32]


def serve(keys: Sequence[bytes], port: int, origins: Collection[str]) -> None:
    """Open what is asked for until somebody ends us. Raises EnvironmentProblem where the port is in use."""
    with server(keys, port, origins) as listening:
        listening.serve_forever()


def server(keys: Sequence[bytes], port: int, origins: Collection[str]) -> ThreadingHTTPServer:
    """Return what listens on a port of the loopback (0: any). Raises EnvironmentProblem where it is in use."""
    try:
        made = ThreadingHTTPServer(("127.0.0.1", port), partial(_Asked, tuple(keys), frozenset(origins)))
    except OSError as error:
        raise EnvironmentProblem(
            f"port {port} cannot be listened on: {error.strerror}", hint="--port names another"
        ) from error
    made.daemon_threads = True
    return made


class _Asked(BaseHTTPRequestHandler):
    timeout = _SILENCE
    server: ThreadingHTTPServer

    def __init__(self, keys: tuple[bytes, ...], origins: frozenset[str], *more: object) -> None:
        self._keys, self._origins = keys, origins
        super().__init__(*more)  # type: ignore[arg-type]  # as the server calls it

    def do_OPTIONS(self) -> None:
        """Tell a browser whether a page may ask."""
        self._answer(HTTPStatus.NO_CONTENT if self._may_ask() else HTTPStatus.FORBIDDEN)

    def do_POST(self) -> None:
        """Open payloads; what is not sealed with the fleet's key comes back as it is."""
        if not self._may_ask():
            self._answer(HTTPStatus.FORBIDDEN)
        elif not any(hmac.compare_digest(self.path, f"/{word(key)}/decode") for key in self._keys):
            self._answer(HTTPStatus.NOT_FOUND)
        elif not 0 < (size := self._size()) <= _MOST:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            self._decode(self.rfile.read(size))

    def _decode(self, body: bytes) -> None:
        try:
            asked = Parse(body, Payloads())
        except (ParseError, UnicodeDecodeError, RecursionError):
            self._answer(HTTPStatus.BAD_REQUEST)
            return
        opened = Payloads(payloads=[opened_for_view(each, self._keys) or each for each in asked.payloads])
        self._answer(HTTPStatus.OK, json.dumps(MessageToDict(opened)).encode())

    def _may_ask(self) -> bool:
        """Whether it was asked by the loopback's name, and by a page that may; programs name no page."""
        port = self.server.server_address[1]
        origin = self.headers.get("Origin")
        here = self.headers.get("Host") in {f"127.0.0.1:{port}", f"localhost:{port}"}
        return here and (origin is None or origin in self._origins)

    def _size(self) -> int:
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0

    def _answer(self, status: HTTPStatus, body: bytes = b"") -> None:
        self.send_response(status)
        if self._may_ask() and (origin := self.headers.get("Origin")):
            self.send_header("Access-Control-Allow-Origin", origin)
            self.send_header("Access-Control-Allow-Methods", "POST")
            self.send_header("Access-Control-Allow-Headers", "Content-Type, X-Namespace, Authorization")
            self.send_header("Vary", "Origin")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, *_: object) -> None:
        """Say nothing: what is asked for is sealed for a reason."""
