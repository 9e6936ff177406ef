"""A proof of who somebody is in AWS: made with their credentials, for one purpose, and checked by STS's stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qsl, urlsplit

import pytest
from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from parbake.aws import clients
from parbake.aws.caller import HEADER, caller, proof
from parbake.core.errors import AwsNoAccess

ARN = "arn:aws:sts::222222222222:assumed-role/release/eve"


class Sts(BaseHTTPRequestHandler):
    """Knows one secret, and signs what it is asked once more to compare, as STS does."""

    def do_GET(self) -> None:
        address = f"http://{self.headers['Host']}{self.path.partition('&X-Amz-Algorithm')[0]}"
        said = dict(parse_qsl(urlsplit(self.path).query))
        request = AWSRequest("GET", address, headers={HEADER: self.headers.get(HEADER, "")})
        signer = SigV4QueryAuth(
            Credentials("testing", "testing", "token"), "sts", "eu-west-1", int(said["X-Amz-Expires"])
        )
        request.context["timestamp"] = said["X-Amz-Date"]
        request.headers["host"] = self.headers["Host"]
        signer._modify_request_before_signing(request)
        text = signer.string_to_sign(request, signer.canonical_request(request))
        good = signer.signature(text, request) == said["X-Amz-Signature"]
        body = f"<GetCallerIdentityResult><Arn>{ARN}</Arn></GetCallerIdentityResult>" if good else "<Error/>"
        self.send_response(200 if good else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sts)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", address)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    clients.forget()
    yield address
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("sts")
def test_sts_says_whose_proof_it_is_for_what_it_was_made_for() -> None:
    made = proof("approve shop/6c75bf45712e/canary")
    assert caller(made, "approve shop/6c75bf45712e/canary") == ARN
    with pytest.raises(AwsNoAccess, match="STS does not know the signature"):
        caller(made, "approve shop/6c75bf45712e/world")


def test_what_is_no_such_proof_is_sent_to_nobody(sts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = proof("approve")
    for wrong, says in (
        (made.replace(sts, "http://127.0.0.1:1"), "it does not lead to STS"),
        (made.replace("/?", "/elsewhere?"), "it does not lead to STS"),
        (made.replace("GetCallerIdentity", "GetSessionToken"), "it is another call"),
        (made.replace("x-parbake-purpose", "x-other"), "it does not say what it is for"),
        (made.replace("Expires=300", "Expires=86400"), "it is good for too long"),
        (made.replace("%2Fsts%2F", "%2Fec2%2F"), "it is not signed for STS"),
        ("https://sts.amazonaws.com/", "it is not signed for STS"),
        ("", "it is not signed for STS"),
    ):
        with pytest.raises(AwsNoAccess, match=says):
            caller(wrong, "approve")
    with pytest.raises(AwsNoAccess, match="STS does not know the signature"):
        caller(made[:-1] + ("0" if made[-1] != "0" else "1"), "approve")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    clients.forget()
    with pytest.raises(AwsNoAccess, match="there are no AWS credentials"):
        proof("approve")
