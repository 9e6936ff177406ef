"""Signatures: keys in PEM files, Ed25519 and ECDSA on P-256, as openssl and cosign write them; DSSE envelopes.

Signatures are what cosign makes and takes: Ed25519 as it is (RFC 8032), ECDSA over SHA-256, in ASN.1 DER. A private
key stays in this process: its text is in no error, no log, no argument of a program. Whoever signs or checks nothing
pays nothing: the ``cryptography`` package loads with the first key.
Sources: secure-systems-lab/dsse, protocol.md (PAE, what a verifier must do) and envelope.md (the JSON); in-toto
attestation spec/v1/envelope.md (the payload type).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, override

from parbake.core.errors import InputError
from parbake.core.model import Digest, Frozen

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

IN_TOTO = "application/vnd.in-toto+json"
"""The payload type of an in-toto statement."""
_MOST_SIGNATURES = 64
_LARGEST = 64 << 10  # a key in PEM has less than 1 KiB
_MAKE = "openssl genpkey -algorithm ed25519 -out parbake.key; openssl pkey -in parbake.key -pubout -out parbake.pub"
# Others may not read it, nor the group change it. The group may read it: so Kubernetes mounts a secret for a pod.
_TOO_WIDE = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key; ``name`` says in errors where it came from."""

    name: str
    key: Ed25519PublicKey | EllipticCurvePublicKey

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether this key's owner has signed the message."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
        from cryptography.hazmat.primitives.hashes import SHA256

        try:
            if isinstance(self.key, EllipticCurvePublicKey):
                self.key.verify(signature, message, ECDSA(SHA256()))
            else:
                self.key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the key as DER (SubjectPublicKeyInfo): ``openssl pkey -pubin -outform DER | sha256sum``."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        der = self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"sha256:{hashlib.sha256(der).hexdigest()}"


class Signer(Protocol):
    """Something that signs: a key file, or a key in AWS KMS."""

    public: PublicKey
    """The key that its signatures are checked with."""

    def sign(self, message: bytes) -> bytes:
        """Return the signature over a message; raises ParbakeError when the key cannot be used."""
        ...


class FileSigner(Signer):
    """Signs with a private key in a PEM file; raises InputError when it holds none, or when others may read it."""

    def __init__(self, path: Path) -> None:
        self._key = _private_key(path)
        self.public = PublicKey(str(path), self._key.public_key())

    @override
    def sign(self, message: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.hashes import SHA256

        if isinstance(self._key, EllipticCurvePrivateKey):
            return self._key.sign(message, ECDSA(SHA256()))
        return self._key.sign(message)


def public_key(path: Path) -> PublicKey:
    """Read a public key from a PEM file; raises InputError when there is none that parbake knows."""
    return read_public_key(_read(path), str(path))


def read_public_key(data: bytes, name: str) -> PublicKey:
    """Read a public key from PEM or DER (SubjectPublicKeyInfo); raises InputError, which names ``name``."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    if b"PRIVATE KEY-----" in data:
        raise InputError(
            f"{name} holds a private key, which nobody else should have",
            hint=f"name its public half: openssl pkey -in {name} -pubout -out FILE (of cosign's: cosign.pub)",
        )
    load = serialization.load_pem_public_key if b"-----BEGIN" in data else serialization.load_der_public_key
    try:
        key = load(data)
    except (ValueError, UnsupportedAlgorithm):
        hint = f"make a pair of keys: {_MAKE}"
        raise InputError(f"{name} holds no public key in PEM", hint=hint) from None
    return PublicKey(name, _usable_public(key, name))


def _usable_public(key: object, name: str) -> Ed25519PublicKey | EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if isinstance(key, Ed25519PublicKey) or (isinstance(key, EllipticCurvePublicKey) and _is_p256(key)):
        return key
    raise _unknown_kind(name, key)


def _private_key(path: Path) -> Ed25519PrivateKey | EllipticCurvePrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(path, secret=True)
    if b"BEGIN ENCRYPTED SIGSTORE" in data or b"BEGIN ENCRYPTED COSIGN" in data:
        raise InputError(
            f"{path} is cosign's own kind of key, which only cosign opens",
            hint=f"sign with a key in plain PEM, which cosign verifies as well: {_MAKE}; or with one in AWS KMS",
        )
    if b"ENCRYPTED" in data:
        raise InputError(
            f"{path} is encrypted, and parbake cannot ask for its password",
            hint=f"openssl pkey -in {path} -out FILE decrypts it; keep FILE as a secret (chmod 600), or use AWS KMS",
        )
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # What the library says of it may quote the text: it stays here.
        raise InputError(f"{path} holds no private key in PEM", hint=f"make a pair of keys: {_MAKE}") from None
    if isinstance(key, Ed25519PrivateKey):
        return key
    if isinstance(key, EllipticCurvePrivateKey) and _is_p256(key.public_key()):
        return key
    raise _unknown_kind(str(path), key)


def _is_p256(key: EllipticCurvePublicKey) -> bool:
    return key.curve.name == "secp256r1"


def _unknown_kind(name: str, key: object) -> InputError:
    curve = getattr(key, "curve", None)
    kind = f"on the curve {curve.name}" if curve else "of another kind (RSA, perhaps)"
    return InputError(f"{name} is a key {kind}", hint=f"use Ed25519, or ECDSA on P-256: {_MAKE}")


def _read(path: Path, *, secret: bool = False) -> bytes:
    """Read a small regular file; a secret one must be closed to others."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(handle, "rb") as file:  # noqa: PTH123 - from a descriptor
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path} is not a regular file", hint="name the file that holds the key")
            if secret and status.st_mode & _TOO_WIDE:
                raise InputError(
                    f"{path} is a private key, and its mode {stat.S_IMODE(status.st_mode):04o} lets others read it",
                    hint=f"chmod 600 {path}; make a new one if others have been on this machine",
                )
            data = file.read(_LARGEST + 1)
    except OSError as error:
        hint = "relative paths begin at the Bakefile's folder"
        raise InputError(f"cannot read the key {path}: {error.strerror}", hint=hint) from None
    if len(data) > _LARGEST:
        raise InputError(f"{path} has more than {_LARGEST >> 10} KiB: this is not a key", hint="name a key in PEM")
    return data


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

    Raises NotSigned when none has, or when it is not an envelope of this payload type.
    """
    try:
        read = json.loads(document) if isinstance(document, bytes) else document
        payload, signatures = _decoded(read["payload"]), read["signatures"]
        said = read["payloadType"]
        texts = [_decoded(each["sig"]) for each in signatures[:_MOST_SIGNATURES]]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise NotSigned("has a signature that is not a DSSE envelope") from None
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


class Attached(Frozen):
    """What an image carries in its registry besides itself: a signature, an attestation, an SBOM.

    ``kind`` is what it says to be: ``signature``, ``attestation``, ``sbom``, or the artifact type of a referrer.
    ``digest`` is that of its manifest, ``of`` that of what it is about. ``signer`` is the SHA-256 of the public key
    (as DER) that was asked for with ``signed_by`` and has made the signature; empty: nobody looked.
    """

    kind: str
    media_type: str
    digest: Digest
    of: Digest
    signer: str = ""
