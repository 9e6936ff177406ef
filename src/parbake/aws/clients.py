"""boto3 clients: made once for each service, region and role, with one policy of retries and errors in plain words.

Retries happen here and nowhere above: botocore's *adaptive* mode backs off with jitter and slows down by itself when
AWS throttles (botocore documentation, "Retries"). Whoever calls a client never retries the same call again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from types import MappingProxyType
from typing import Any

from parbake.aws.errors import fault, name_of, translate
from parbake.core.errors import AwsNoAccess, EnvironmentProblem
from parbake.core.extras import how_to_add
from parbake.core.roles import Role, session

_TRIES = 8
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
# The EBS direct API keeps 64 requests in flight; fewer connections would make them wait for each other.
_CONNECTIONS = 96

_acting: ContextVar[Role | None] = ContextVar("acting", default=None)
_places: ContextVar[Mapping[str, Role]] = ContextVar("places", default=MappingProxyType({}))
_need: ContextVar[Callable[[], object] | None] = ContextVar("need", default=None)
# What makes and changes artefacts; other services' calls (the store's own) are nobody's to guard.
_GUARDED = {"ec2", "ebs"}
_READING = ("describe_", "get_", "list_")
_made: dict[tuple[str, str, int, Role | None], Client] = {}
_making = threading.Lock()


@contextmanager
def acting_as(
    arn: str | None, external_id: str | None = None, *, places: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Let clients that are made inside act in a role, which the caller's own credentials assume; without: as before.

    ``places`` are roles of regions, where another one is acted in; a new role has none. A client keeps the role that it
    was made with, also where it is used later, and its credentials are renewed.
    """
    if not arn and places is None:
        yield
        return
    before = _acting.get(), _places.get()
    _acting.set(Role(arn, external_id or "") if arn else before[0])
    _places.set({region: Role(each, external_id or "") for region, each in (places or {}).items()})
    try:
        yield
    finally:
        _acting.set(before[0])
        _places.set(before[1])


def role_in(region: str) -> Role | None:
    """Return the role that clients of a region act in; None: the caller's own rights."""
    return _places.get().get(region, _acting.get())


def stranger(region: str, home: str) -> str:
    """Return the account that clients of a region act in, where it is another than that of the home region.

    Empty where it is the same one, which takes no question where both have the same role.
    """
    there, here = role_in(region), role_in(home)
    if there is None or there == here:
        return ""
    return there.account if there.account != (here.account if here else account(home)) else ""


@contextmanager
def guarded(need: Callable[[], object]) -> Iterator[None]:
    """Let clients of EC2 and EBS that are made inside call ``need`` before each call that changes something.

    It raises where the work belongs to another machine by now: then nothing is changed any more, and nothing removed.
    """
    token = _need.set(need)
    try:
        yield
    finally:
        _need.reset(token)


# What boto3 sends where the API says `v4-unsigned-body`: TLS keeps the body as it is.
_UNSIGNED = {"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}


class Client:
    """A boto3 client whose calls raise AwsError. Calls have boto3's names and arguments; thread-safe.

    ``raw`` is the boto3 client itself, for what is not a call (``meta``, ``generate_presigned_url``); ``need`` is
    called before each call that changes something.
    """

    def __init__(self, raw: Any, service: str, region: str, need: Callable[[], object] | None = None) -> None:
        self.raw = raw
        self.service = service
        self.region = region
        self.need = need or (lambda: None)

    def __getattr__(self, name: str) -> Callable[..., dict[str, Any]]:
        if name.startswith("__"):
            raise AttributeError(name)
        getattr(self.raw, name)  # a call that boto3 does not have is a mistake of ours: AttributeError
        return partial(self._call, name)

    def _call(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        if not name.startswith(_READING):
            self.need()
        with translate(self.service, name, self.region):
            answer: dict[str, Any] = getattr(self.raw, name)(**arguments)
            return answer

    def pages(self, name: str, key: str, /, **arguments: Any) -> Iterator[Any]:
        """Yield every item under ``key`` of a call that answers in pages, all of them."""
        with translate(self.service, name, self.region):
            if not self.raw.can_paginate(name):
                yield from getattr(self.raw, name)(**arguments).get(key, [])
                return
            for page in self.raw.get_paginator(name).paginate(**arguments):
                yield from page.get(key, [])


def client(service: str, region: str = "", *, tries: int = 0) -> Client:
    """Return the client of a service (``ec2``, ``ebs``, ``ssm``, …) in a region; empty: the user's default region.

    ``tries`` is how often a call is made at most (0: the usual): 1 for callers that have a policy of their own.

    Credentials, endpoint and region come from where every AWS tool takes them (environment, profile, instance role).
    Raises EnvironmentProblem (no boto3), AwsNoAccess (no credentials, no region).
    """
    region, tries = region or default_region(), tries or _TRIES
    role = role_in(region)
    with _making:
        if (service, region, tries, role) not in _made:
            _made[service, region, tries, role] = Client(_make(service, region, tries), service, region)
        made, need = _made[service, region, tries, role], _need.get()
    return Client(made.raw, service, region, need) if need and service in _GUARDED else made


def _make(service: str, region: str, tries: int) -> Any:
    _boto3()
    from botocore.config import Config

    config = Config(
        region_name=region,
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"mode": "adaptive" if tries > 1 else "standard", "total_max_attempts": tries},
        max_pool_connections=_CONNECTIONS,
        user_agent_appid="parbake",
    )
    with translate(service, "connect", region):
        return session(role_in(region), region).client(service, config=config)


def default_region() -> str:
    """Return the region of the user's configuration (AWS_REGION, AWS_DEFAULT_REGION, the profile's).

    Raises AwsNoAccess when none says one.
    """
    boto3 = _boto3()
    with translate("configuration", "read", ""):
        region: str | None = os.environ.get("AWS_REGION") or boto3.Session().region_name
    if not region:
        raise AwsNoAccess(
            "no AWS region is set", hint="write `aws: {region: eu-west-1}` in the Bakefile, or set AWS_REGION"
        )
    return region


def account(region: str = "") -> str:
    """Return the number of the account that the credentials belong to (STS, GetCallerIdentity)."""
    return str(client("sts", region).get_caller_identity()["Account"])


def _boto3() -> Any:
    try:
        import boto3
    except ImportError as error:
        raise EnvironmentProblem("boto3 is not installed, so AWS cannot be asked", hint=how_to_add("aws")) from error
    return boto3


def forget() -> None:
    """Drop every client: credentials or endpoints have changed (tests, long-lived library users)."""
    with _making:
        _made.clear()


class Rest:
    """Makes calls of a REST API that are made ten thousand times in a row. Thread-safe. Nothing is repeated here.

    boto3 validates, serialises, resolves and parses for each call, which costs half a millisecond under the
    interpreter's lock, as much as hashing and sending 512 KiB. Here the same parts of botocore do what is left: its
    signer with the client's credentials, and the client's HTTP session with its proxies, authorities and time limits.
    """

    def __init__(self, client: Client) -> None:
        from botocore.awsrequest import AWSRequest

        self._request = AWSRequest
        self._client = client
        # A second signer and session would ask for credentials (a token of MFA) and read the configuration once more.
        self._signer = client.raw._request_signer  # noqa: SLF001 (botocore shows neither of the two)
        self._session = client.raw._endpoint.http_session  # noqa: SLF001
        self._base = client.raw.meta.endpoint_url.rstrip("/")

    def put(self, operation: str, path: str, headers: Mapping[str, str], body: bytes | bytearray) -> None:
        """Make a PUT call, whose answer is of no interest; ``operation`` is its name in errors. Raises AwsError."""
        client, signer = self._client, self._signer
        client.need()
        with translate(client.service, operation, client.region):
            request = self._request("PUT", f"{self._base}{path}", headers={**headers, **_UNSIGNED}, data=body)
            signer.get_auth_instance(signer.signing_name, signer.region_name, "v4").add_auth(request)
            answer = self._session.send(request.prepare())
        if answer.status_code < 300:
            return
        said: dict[str, str] = {}
        with suppress(ValueError):  # whoever answered is not an API
            said = {name.lower(): str(value) for name, value in json.loads(answer.content).items()}
        code = answer.headers.get("x-amzn-ErrorType") or said.get("__type") or said.get("code") or answer.status_code
        where = f"{name_of(operation)} ({client.service} in {client.region})"
        raise fault(str(code).partition(":")[0].rpartition("#")[2], said.get("message", ""), where)
