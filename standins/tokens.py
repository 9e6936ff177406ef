"""A token server for docker-registry's ``auth.token``: signs real JSON web tokens with a key of its own.

    with TokenServer(tmp_path, users={"ann": "secret"}, refresh={"refresh-word"}) as tokens:
        with DockerRegistry(tmp_path, token=tokens.settings) as registry:
            ...                          # the registry sends clients to tokens.url and checks the signatures itself
        tokens.requests                  # what came in: ("GET", {"service": …, "scope": …}, "Basic …")

``lifetime`` is a token's in seconds; with ``anonymous`` anybody may pull; ``faults`` are statuses to answer first.
"""

from __future__ import annotations

import base64
import http.server
import json
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from parbake.core.run import run

_ISSUER, _SERVICE = "parbake-test", "registry.test"


class TokenServer:
    """The server; see the top of this file."""

    def __init__(
        self,
        folder: Path,
        *,
        users: Mapping[str, str] | None = None,
        refresh: Collection[str] = (),
        anonymous: bool = False,
        lifetime: int = 300,
    ) -> None:
        self.users = dict(users or {})
        self.refresh = set(refresh)
        self.anonymous = anonymous
        self.lifetime = lifetime
        self.faults: list[int] = []
        self.requests: list[tuple[str, dict[str, str], str]] = []
        self._key, self._certificate = folder / "token.key", folder / "token.pem"
        run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens",
             "-keyout", str(self._key), "-out", str(self._certificate)]
        )  # fmt: skip

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/token"

    @property
    def settings(self) -> dict[str, str]:
        """What docker-registry's ``auth.token`` wants."""
        bundle = str(self._certificate)
        return {"realm": self.url, "service": _SERVICE, "issuer": _ISSUER, "rootcertbundle": bundle}

    def token(self, scope: str) -> str:
        """Return a token that allows all that ``scope`` asks for."""
        pem = self._certificate.read_text()
        der = "".join(pem.partition("CERTIFICATE-----")[2].partition("-----END")[0].split())
        access = []
        for word in scope.split():
            kind, name, actions = word.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())  # the token's own times are wall-clock times
        header = {"typ": "JWT", "alg": "RS256", "x5c": [der]}
        claims = {
            "iss": _ISSUER,
            "aud": _SERVICE,
            "sub": "ann",
            "iat": now,
            "nbf": now - 10,
            "exp": now + self.lifetime,
        }
        parts = [_packed(json.dumps(part).encode()) for part in (header, {**claims, "access": access})]
        text = ".".join(parts)
        signed = run(["openssl", "dgst", "-sha256", "-sign", str(self._key)], stdin=text.encode())
        return f"{text}.{_packed(signed.stdout)}"


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: TokenServer

    def do_GET(self) -> None:
        query = dict(parse_qsl(urlsplit(self.path).query))
        scheme, _, packed = self.headers.get("Authorization", "").partition(" ")
        self.owner.requests.append(("GET", query, scheme))
        user, _, word = base64.b64decode(packed).decode().partition(":")
        known = self.owner.users.get(user) == word if scheme else self.owner.anonymous
        self._grant(query, "token", known=known)

    def do_POST(self) -> None:
        form = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
        self.owner.requests.append(("POST", form, ""))
        known = form.get("grant_type") == "refresh_token" and form.get("refresh_token") in self.owner.refresh
        self._grant(form, "access_token", known=known)

    def _grant(self, query: dict[str, str], key: str, *, known: bool) -> None:
        if self.owner.faults:
            self._answer(self.owner.faults.pop(0), {"details": "made up"})
        elif not known:
            self._answer(401, {"details": "who are you?"})
        else:
            self._answer(200, {key: self.owner.token(query["scope"]), "expires_in": self.owner.lifetime})

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
