"""How a registry is convinced: challenges are read, answered with Basic or a bearer token, and tokens are kept.

Nothing is sent before it is asked for. Sources: RFC 9110 section 11 (challenges), RFC 7617 (Basic), RFC 6750 (Bearer),
distribution's token authentication and OAuth2 specifications.
"""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from urllib3.util import Url

from parbake.core.errors import Denied, EnvironmentProblem, RegistryError
from parbake.core.model import RegistryOptions
from parbake.core.reference import DOCKER_HUB
from parbake.core.roles import Role
from parbake.images.registry.addresses import AddressZone, is_loopback, join
from parbake.images.registry.credentials import Credentials, files, find_credentials, from_aws
from parbake.images.registry.retry import Transient
from parbake.images.registry.transport import TooNear, Transport

_TOKEN_LIMIT = 1 << 20
_CLIENT_ID = "parbake"
# The specification's default, and how long before its end a token is no longer used (clocks and slow requests).
_DEFAULT_SECONDS = 60.0
_MARGIN = 0.1
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - a grammar's word
_SCHEME = re.compile(rf"\s*,?\s*({_TOKEN})(?:\s+|(?=,)|$)")
_PARAMETER = re.compile(rf'\s*,?\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))\s*(?=,|$)')
_TOKEN68 = re.compile(r"\s*[A-Za-z0-9._~+/-]+=*\s*(?=,|$)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a server asks for: a scheme (lower case) and its parameters (keys in lower case)."""

    scheme: str
    parameters: dict[str, str]


def read_challenges(headers: list[str]) -> list[Challenge]:
    """Read WWW-Authenticate headers; one header may hold several challenges. What cannot be read ends its header."""
    found: list[Challenge] = []
    for header in headers:
        at = 0
        while scheme := _SCHEME.match(header, at):
            at = scheme.end()
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(header, at):
                key, quoted, plain = parameter.groups()
                parameters[key.lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
                at = parameter.end()
            if not parameters and (packed := _TOKEN68.match(header, at)) and packed.group().strip():
                at = packed.end()  # such as Negotiate's: a scheme that is not spoken here
            found.append(Challenge(scheme[1].lower(), parameters))
    return found


@dataclass(frozen=True, slots=True)
class _Token:
    header: str
    expires: float


class Authorizer:
    """Authorization headers for one registry host, by repository; thread-safe. AWS is asked in ``role``."""

    def __init__(self, host: str, options: RegistryOptions, transport: Transport, role: Role | None = None) -> None:
        self.host = host
        self._options, self._role = options, role
        self._transport = transport
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._tokens: dict[str, _Token] = {}
        self._secrets: set[str] = set()
        self._login = ""  # where the credentials come from that were last sent

    def header(self, repository: str) -> str:
        """Return the header that is known to be wanted; empty before the first challenge and after expiry."""
        with self._lock:
            token = self._tokens.get(repository)
        return token.header if token and token.expires > time.monotonic() else ""

    def answer(self, base: Url, challenges: list[Challenge], repository: str, rejected: str) -> str:
        """Return the header that answers a 401 from ``base``; ``rejected`` is what was sent and refused.

        Raises Denied, EnvironmentProblem (credentials cannot be looked up), Transient (a token server's bad moment).
        """
        with self._lock:
            lock = self._locks.setdefault(repository, threading.Lock())
        with lock:  # one thread fetches a token, those that wait for the same one find it here
            known = self.header(repository)
            if known and known != rejected:
                return known
            token = self._new_token(base, challenges, repository, rejected)
            with self._lock:
                self._tokens[repository] = token
                self._secrets.add(token.header.partition(" ")[2])
            return token.header

    def renewed(self, repository: str, refused: str) -> str:
        """Return the header of a new login in place of one that ECR refuses; empty where there is none."""
        with self._lock:
            lock = self._locks.setdefault(repository, threading.Lock())
        with lock:
            known = self.header(repository)
            if known and known != refused:
                return known
            credentials = self._of_aws(refused)
            if credentials is None:
                return ""
            with self._lock:
                self._tokens[repository] = _Token(credentials.basic, float("inf"))
            return credentials.basic

    def scrub(self, text: str) -> str:
        """Return ``text`` (something a server said) without any secret that was ever sent."""
        with self._lock:
            secrets = sorted(self._secrets, key=len, reverse=True)
        for secret in secrets:
            text = text.replace(secret, "***")
        return text

    def denied(self, repository: str, reason: str) -> Denied:
        """Return the error for a registry that still says no, to a login that it names or to nobody in particular."""
        hint = f"log in with `docker login {self.host}` (or podman, skopeo), or set registries.{self.host}.credentials"
        if self.host == DOCKER_HUB:
            hint += "; Docker Hub also answers this way when the repository does not exist"
        whom = f" to the login from {self._login}" if self._login else ""
        if self._login:
            hint = f"that login is wrong or over, or has no right to this repository: {hint}"
        return Denied(self.scrub(f"{self.host}/{repository}: access denied{whom}: {reason}"), hint=hint)

    def _new_token(self, base: Url, challenges: list[Challenge], repository: str, rejected: str) -> _Token:
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
        if not by_scheme.keys() & {"bearer", "basic"}:
            asked = ", ".join(sorted(by_scheme)) or "nothing"
            raise self.denied(repository, f"the registry asks for {asked}, not for Basic or Bearer authentication")
        credentials = find_credentials(self.host, repository, self._options, self._role)
        self._login = credentials.source if credentials else ""
        if credentials:
            with self._lock:
                self._secrets.update(credentials.secrets)
        if "bearer" in by_scheme:
            return self._bearer_token(base, by_scheme["bearer"], repository, credentials)
        if credentials is None or not credentials.username:
            places = "" if self._options.credentials == "none" else f" in {', '.join(map(str, files()))}"
            raise self.denied(repository, f"it asks for a user name and a password, and there are none{places}")
        if credentials.basic == rejected:
            renewed = self._of_aws(rejected)
            if renewed is None:
                raise self.denied(repository, "it refuses them")
            credentials = renewed
        return _Token(credentials.basic, float("inf"))

    def _of_aws(self, refused: str) -> Credentials | None:
        """Return a new login for ECR in place of one that is refused: those that files hold end after 12 hours."""
        if self._options.credentials not in {"auto", "ecr"}:
            return None
        try:
            credentials = from_aws(self.host, self._role)
        except (Denied, EnvironmentProblem):
            return None  # the refusal itself says more
        if credentials is None or credentials.basic == refused:
            return None
        with self._lock:
            self._secrets.update(credentials.secrets)
        self._login = credentials.source
        return credentials

    def _bearer_token(
        self, base: Url, challenge: Challenge, repository: str, credentials: Credentials | None
    ) -> _Token:
        if credentials and credentials.bearer:
            return _Token(f"Bearer {credentials.bearer}", float("inf"))
        realm = self._realm(base, challenge.parameters.get("realm", ""))
        # One that is called insecure in the Bakefile may name any token server. By the registry's own name, TLS says
        # that it is the same party, whatever addresses (IPv4, IPv6) the name has.
        free = self._options.plain_http or realm.host == base.host
        nearest = AddressZone.LOOPBACK if free else self._transport.zone(base)
        query = {"service": challenge.parameters.get("service", "")}
        query["scope"] = challenge.parameters.get("scope") or f"repository:{repository}:pull"
        if credentials and credentials.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token, **query}
            body = urlencode({**form, "client_id": _CLIENT_ID}).encode()
            answer = self._ask("POST", realm, repository, nearest, body=body)
        else:
            secret = credentials.basic if credentials else ""
            answer = self._ask("GET", _with_query(realm, query), repository, nearest, secret=secret)
        token = str(answer.get("token") or answer.get("access_token") or "")
        if not token or not (token.isascii() and token.isprintable()):
            raise RegistryError(f"{realm.netloc}: the token server's answer contains no token")
        try:
            lifetime = float(answer.get("expires_in") or _DEFAULT_SECONDS)
        except (TypeError, ValueError):
            lifetime = _DEFAULT_SECONDS
        return _Token(f"Bearer {token}", time.monotonic() + lifetime * (1 - _MARGIN))

    def _realm(self, base: Url, text: str) -> Url:
        """Return the URL of the token server that a challenge names; raises RegistryError, Denied.

        Plain HTTP is for a registry that is called so in the Bakefile, and for one on this machine that has its token
        server here as well: tokens are as good as passwords for as long as they live.
        """
        if not text:
            raise RegistryError(f"{self.host}: the token challenge names no realm")
        try:
            realm = join(base, text)
        except RegistryError as error:
            raise RegistryError(
                f"{self.host}: the token challenge names no usable realm: {error.message}", hint=error.hint
            ) from error
        both_here = is_loopback(self.host) and is_loopback(realm.netloc or "")
        if realm.scheme == "http" and not (both_here or self._options.plain_http):
            raise Denied(
                f"{self.host}: its token server {realm.netloc} speaks plain HTTP, so parbake does not ask it",
                hint=f"the registry must name an https realm; registries.{self.host}.plain_http: true overrides",
            )
        return realm

    def _ask(
        self,
        method: str,
        url: Url,
        repository: str,
        nearest: AddressZone,
        *,
        secret: str = "",
        body: bytes | None = None,
    ) -> dict[str, Any]:
        where = url.netloc or ""
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if body is not None else {}
        try:
            response, _ = self._transport.send(
                method, url, headers=headers, secret=secret, body=body, ca=self._options.ca, nearest=nearest
            )
        except TooNear as error:
            raise Denied(
                f"{self.host}: its token server is refused: {error.message}, and the registry's address is {nearest}",
                hint="a registry may not point to a more private network than its own: contact its operators",
            ) from error
        content = self._transport.read(response, _TOKEN_LIMIT, f"{where}: a token")
        if response.status in _RETRIED:
            raise Transient(RegistryError(f"{where}: the token server answers {response.status}"))
        if response.status in {400, 401, 403}:
            raise self.denied(repository, f"the token server {where} refuses ({response.status})")
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RegistryError(f"{where}: the token server answers {response.status} without JSON") from error
        if response.status != 200 or not isinstance(answer, dict):
            raise RegistryError(f"{where}: the token server answers {response.status}")
        return answer


def _with_query(url: Url, more: dict[str, str]) -> Url:
    pairs = [*parse_qsl(url.query or "", keep_blank_values=True)]
    for key, value in more.items():
        # Several scopes are several parameters (token authentication specification, "Requesting a Token").
        pairs += [(key, word) for word in value.split()] if key == "scope" else [(key, value)] if value else []
    return url._replace(query=urlencode(pairs))
