"""EBS's direct API and EC2's part with snapshots, answered in this process: ``standins/ebs_direct_server`` without
HTTP.

Everything above the socket is real: botocore serialises, signs and parses; ``Rest`` signs and sends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse, HeadersDict
from botocore.exceptions import ConnectionClosedError
from botocore.httpsession import URLLib3Session

from parbake.aws import Rest
from parbake.aws.errors import translate
from standins.aws.interceptor import Between
from standins.ebs_direct_server import Cloud
from standins.policies import Tags


@dataclass
class Direct(Between):
    """A stand-in's world, and what stands before it."""

    world: Cloud = field(default_factory=Cloud)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer every client of botocore's, and the calls that go past it."""
        super().install(monkeypatch)
        here, put = self, Rest.put

        def send(_session: URLLib3Session, request: AWSPreparedRequest) -> AWSResponse:
            return here.send(request)

        def noted_put(rest: Rest, operation: str, path: str, *more: Any) -> None:
            assert operation == "put_snapshot_block"
            client = rest._client
            asked = {"SnapshotId": path.split("/")[2]}
            with translate(client.service, operation, client.region):
                here.passing("ebs", "PutSnapshotBlock", asked, client.region, lambda: put(rest, operation, path, *more))

        monkeypatch.setattr(URLLib3Session, "send", send)
        monkeypatch.setattr(Rest, "put", noted_put)

    def send(self, request: AWSPreparedRequest) -> AWSResponse:
        """Answer a request."""
        place = urlsplit(request.url)
        body = request.body if isinstance(request.body, bytes | bytearray) else (request.body or "").encode()
        headers = HeadersDict(
            {name: value.decode() if isinstance(value, bytes) else value for name, value in request.headers.items()}
        )
        reply = self.world.handle(request.method, f"{place.path}?{place.query}", headers, bytes(body))
        if reply is None:
            raise ConnectionClosedError(endpoint_url=request.url)
        length = {"Content-Length": str(len(reply.body))}
        return AWSResponse(request.url, reply.status, HeadersDict({**reply.headers, **length}), Raw(reply.body))

    def tags_of(self, resource: str) -> Tags:
        """Return the tags of a snapshot or image."""
        with self.world.lock:
            found = self.world.snapshots.get(resource)
            return dict(found.tags if found else self.world.images.get(resource, {}).get("tags", {}))


class Raw(BytesIO):
    """A body as urllib3 hands it on."""

    def stream(self, **_: object) -> Any:
        yield self.read()
