"""Who somebody is in AWS, so that others can check it: a call of GetCallerIdentity that is signed, and sent by them.

Who gets it learns whose signature it is, and can do nothing else with it. What it is for is signed along, in a header
of its own: one for something else is refused. Facts: STS API reference, GetCallerIdentity (it needs no rights); IAM
user guide, "Create a signed AWS API request" (signatures in the query, X-Amz-Expires).
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

from parbake.aws.clients import client
from parbake.aws.errors import translate
from parbake.core.errors import AwsNoAccess

HEADER = "x-parbake-purpose"
LIFE = 300
"""Seconds that a proof is good for: it is checked at once."""
_CALL = {"Action": "GetCallerIdentity", "Version": "2011-06-15"}
_GLOBAL = "sts.amazonaws.com"
_SCOPE = re.compile(r"[^/]+/[0-9]{8}/(?P<region>[a-z]{2,}(-[a-z]+)+-[0-9])/sts/aws4_request")
_HINT = "approve again, with AWS credentials of your own: `aws sts get-caller-identity` shows whose they are"


def proof(purpose: str, region: str = "") -> str:
    """Return the address of a call that proves who the caller is, for one purpose. Raises AwsNoAccess."""
    from botocore.auth import SigV4QueryAuth
    from botocore.awsrequest import AWSRequest

    sts = client("sts", region)
    with translate("sts", "get_caller_identity", sts.region):
        held = sts.raw._request_signer._credentials  # noqa: SLF001 (botocore shows them in no other way)
        if held is None:
            raise AwsNoAccess("there are no AWS credentials to prove who approves", hint=_HINT)
        query = "&".join(f"{name}={value}" for name, value in _CALL.items())
        request = AWSRequest("GET", f"{sts.raw.meta.endpoint_url.rstrip('/')}/?{query}", headers={HEADER: purpose})
        SigV4QueryAuth(held.get_frozen_credentials(), "sts", sts.region, expires=LIFE).add_auth(request)
    return str(request.url)


def caller(proven: str, purpose: str) -> str:
    """Return the ARN of whoever has made a proof for a purpose, as STS says.

    Raises AwsNoAccess for anything else than such a proof, and for one that STS rejects; what asking STS raises.
    """
    from botocore.awsrequest import AWSRequest

    address = urlsplit(proven)
    said = dict(parse_qsl(address.query))
    scope = _SCOPE.fullmatch(said.get("X-Amz-Credential", ""))
    if scope is None:
        raise _no("it is not signed for STS")
    sts = client("sts", scope["region"])
    known = urlsplit(sts.raw.meta.endpoint_url)
    if (address.scheme, address.path) != (known.scheme, "/") or address.netloc not in {known.netloc, _GLOBAL}:
        raise _no("it does not lead to STS")
    if any(said.get(name) != value for name, value in _CALL.items()):
        raise _no("it is another call")
    if HEADER not in said.get("X-Amz-SignedHeaders", "").split(";") or not said.get("X-Amz-Expires", "").isdigit():
        raise _no("it does not say what it is for")
    if int(said["X-Amz-Expires"]) > LIFE:
        raise _no("it is good for too long")
    with translate("sts", "get_caller_identity", sts.region):
        request = AWSRequest("GET", proven, headers={HEADER: purpose})
        answer = sts.raw._endpoint.http_session.send(request.prepare())  # noqa: SLF001 (with the client's authorities)
    found = re.search(r"<Arn>([^<>]{20,2048})</Arn>", answer.content.decode(errors="replace"))
    if answer.status_code != 200 or not found:
        raise _no("STS does not know the signature")
    return found[1]


def _no(why: str) -> AwsNoAccess:
    return AwsNoAccess(f"the approver's proof was rejected: {why}", hint=_HINT)
