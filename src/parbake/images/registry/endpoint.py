"""One registry host: single attempts with authentication, and statuses turned into errors.

Sources: OCI distribution specification (end points, error codes), RFC 9110 section 10.2.3 (Retry-After).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode

from urllib3 import BaseHTTPResponse
from urllib3.util import Url

from parbake.core.errors import BadContent, RegistryError, Unreachable
from parbake.core.model import RegistryOptions
from parbake.core.reference import DOCKER_HUB
from parbake.core.roles import Role
from parbake.images.registry.addresses import origin, read_url
from parbake.images.registry.auth import Authorizer, read_challenges
from parbake.images.registry.retry import Backoff, Transient
from parbake.images.registry.transport import Transport

_HUB_HOST = "registry-1.docker.io"
_ERROR_LIMIT = 64 << 10
_SHOWN = 300
# 408 and 5xx besides 501 and 505 say "not now"; 429 "not so fast".
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})


class Missing(Exception):
    """404: the host has no such thing. Never leaves this package; ``code`` is the specification's error code."""

    def __init__(self, what: str, code: str) -> None:
        super().__init__(what)
        self.what = what
        self.code = code


@dataclass(frozen=True, slots=True)
class Answer:
    """A document that was read whole, and the headers that came with it (keys as the server wrote them)."""

    body: bytes
    headers: Mapping[str, str]

    def header(self, name: str) -> str:
        """Return a header's value, empty when there is none; case does not matter."""
        return next((value for key, value in self.headers.items() if key.lower() == name.lower()), "")


class Endpoint:
    """A host that speaks the distribution API; ``namespace`` is the registry that it mirrors (empty: none).

    ``role`` is what AWS is asked in, where it is a registry of ECR.
    """

    def __init__(
        self,
        host: str,
        options: RegistryOptions,
        transport: Transport,
        *,
        path: str = "",
        namespace: str = "",
        role: Role | None = None,
    ) -> None:
        self.host = host
        self.down = threading.Event()
        self._options = options
        self._transport = transport
        self._path = path
        self._namespace = namespace
        self._authorizer = Authorizer(host, options, transport, role)

    def backoff(self) -> Backoff:
        """Return the count of failures for one undertaking."""
        return Backoff(self._transport.patience, self._transport.closing)

    def fetch(
        self,
        repository: str,
        path: str,
        *,
        method: str = "GET",
        accept: str = "",
        limit: int,
        what: str,
        part: str = "",
    ) -> Answer:
        """Read a document whole, with retries. ``path`` is what follows the repository; ``part`` a Range header.

        Raises Missing, Denied, Unreachable, RegistryError, and BadContent for more than ``limit`` bytes.
        """
        headers = {key: value for key, value in (("Accept", accept), ("Range", part)) if value}

        def once() -> Answer:
            response = self.attempt(repository, path, method=method, headers=headers, what=what)
            if part and response.status != 206:
                response.close()  # the server ignores ranges: the whole blob is not wanted
                return Answer(b"", response.headers)
            return Answer(self._transport.read(response, limit, what), response.headers)

        return self._retry(once)

    def attempt(
        self, repository: str, path: str, *, method: str = "GET", headers: Mapping[str, str], what: str
    ) -> BaseHTTPResponse:
        """Send one request and return a good answer with its body unread; raises as ``fetch`` does, and Transient."""
        repository = f"{self._path}/{repository}" if self._path else repository
        scheme = self._transport.scheme(self.host, plain_http=self._options.plain_http)
        base = read_url(f"{scheme}://{_HUB_HOST if self.host == DOCKER_HUB else self.host}/v2/")
        if self._namespace:  # tells a mirror of several registries which one is meant, as containerd does
            path += f"{'&' if '?' in path else '?'}{urlencode({'ns': self._namespace})}"
        url = read_url(f"{base}{repository}/{path}")
        secret = self._authorizer.header(repository)
        response, place = self._send(method, url, headers, secret)
        # Only the registry itself may ask for its credentials, not a storage that it redirects to.
        if response.status == 401 and origin(place) == origin(url):
            challenges = read_challenges(response.headers.getlist("WWW-Authenticate"))
            self._transport.discard(response)
            secret = self._authorizer.answer(base, challenges, repository, secret)
            response, place = self._send(method, url, headers, secret)
        # ECR says 403 of a login that is over.
        refused = response.status in {401, 403} and secret and origin(place) == origin(url)
        if refused and (again := self._authorizer.renewed(repository, secret)):
            self._transport.discard(response)
            response, place = self._send(method, url, headers, again)
        if response.status in {200, 206}:
            return response
        raise self._failure(response, place.netloc or "", repository, what)

    def _send(self, method: str, url: Url, headers: Mapping[str, str], secret: str) -> tuple[BaseHTTPResponse, Url]:
        return self._transport.send(method, url, headers=headers, secret=secret, ca=self._options.ca)

    def _retry[T](self, once: Callable[[], T]) -> T:
        backoff = self.backoff()
        while True:
            try:
                return once()
            except Transient as failure:
                backoff.wait(failure)

    def _failure(self, response: BaseHTTPResponse, where: str, repository: str, what: str) -> Exception:
        status = response.status
        code, said = self._said(response)
        text = f"{what}: {where} answers {status}{f' ({said})' if said else ''}"
        if status == 404:
            return Missing(what, code)
        if status in {401, 403}:
            return self._authorizer.denied(repository, said or f"{where} answers {status}")
        if status == 400 and "HTTPS server" in said:
            return Unreachable(
                f"{self.host} speaks TLS, not plain HTTP", hint=f"remove registries.{self.host}.plain_http"
            )
        if status == 416:
            return BadContent(f"{text}: the registry has less of it than the manifest says")
        if status in _RETRIED:
            hint = "the registry itself has a problem: try again later"
            if status == 429:
                hint = "wait, log in (most registries allow more then), or set registries.HOST.mirrors"
            return Transient(RegistryError(text, hint=hint), after=_retry_after(response))
        return RegistryError(text, hint="is this host a registry (does it speak the OCI distribution API)?")

    def _said(self, response: BaseHTTPResponse) -> tuple[str, str]:
        """Return the error code and the message of an answer: bounded, printable, without secrets."""
        try:
            body = self._transport.read(response, _ERROR_LIMIT, "an error")
        except (Transient, RegistryError):
            return "", ""
        code, text = "", body.decode(errors="replace")
        try:
            first: Any = json.loads(body)["errors"][0]
            code, text = str(first.get("code") or ""), str(first.get("message") or first.get("code") or "")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            if response.headers.get("Content-Type", "").startswith("text/html"):
                text = ""
        text = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
        return code, self._authorizer.scrub(text)[:_SHOWN]


def _retry_after(response: BaseHTTPResponse) -> float | None:
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(min(int(value), 3600)) if len(value) < 9 else None
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    # A date is wall-clock time by definition; this is not a measurement.
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
