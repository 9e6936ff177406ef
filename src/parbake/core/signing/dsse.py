"""DSSE envelopes: a payload, its type, and signatures over both.

Sources: secure-systems-lab/dsse, protocol.md (PAE, what a verifier must do) and envelope.md (the JSON); in-toto
attestation spec/v1/envelope.md (the payload type).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

from parbake.core.signing.keys import PublicKey, Signer

IN_TOTO = "application/vnd.in-toto+json"
"""The payload type of an in-toto statement."""
_MOST_SIGNATURES = 64


class NotSigned(ValueError):
    """No trusted key has signed something; the text goes on where a name stopped: ``… is not signed``."""


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed (pre-authentication encoding): type and payload, each with its length."""
    name = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


def envelope(payload: bytes, signer: Signer, payload_type: str = IN_TOTO) -> bytes:
    """Return an envelope around a payload with one signature, as one line of JSON."""
    signature = signer.sign(pae(payload_type, payload))
    document = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": "", "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(document).encode() + b"\n"


def opened(document: Any, keys: Sequence[PublicKey], payload_type: str = IN_TOTO) -> tuple[bytes, PublicKey]:
    """Return the payload of an envelope (its JSON, read or as bytes), and which of ``keys`` has signed it.

    Raises NotSigned when none has, or when it is no envelope of this payload type.
    """
    try:
        read = json.loads(document) if isinstance(document, bytes) else document
        payload, signatures = _decoded(read["payload"]), read["signatures"]
        said = read["payloadType"]
        texts = [_decoded(each["sig"]) for each in signatures[:_MOST_SIGNATURES]]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise NotSigned("has a signature that is no DSSE envelope") from None
    if said != payload_type:
        raise NotSigned(f"has a signature over {str(said)[:80]!r}, not over {payload_type}")
    message = pae(payload_type, payload)
    for key in keys:
        if any(key.verifies(signature, message) for signature in texts):
            return payload, key
    raise NotSigned("is signed by none of the keys that are trusted" if texts else "is not signed")


def _decoded(text: str) -> bytes:
    """Decode base64 of either alphabet, as the specification asks of verifiers."""
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, AttributeError) as error:
        raise ValueError("not base64") from error
