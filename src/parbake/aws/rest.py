"""Calls of a REST API that are made ten thousand times in a row: signed and sent, and no more.

boto3 validates, serialises, resolves and parses for each call, which costs half a millisecond under the interpreter's
lock, as much as hashing and sending 512 KiB. Here the same parts of botocore do what is left: its signer with the
client's credentials, and the client's HTTP session with its proxies, authorities, time limits and connections.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from parbake.aws.clients import Client
from parbake.aws.errors import fault, name_of, translate

# What boto3 sends where the API says `v4-unsigned-body`: TLS keeps the body as it is.
_UNSIGNED = {"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}


class Rest:
    """Makes calls with a client's credentials and connections. Thread-safe. Nothing is repeated here."""

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
