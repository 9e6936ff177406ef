"""Sign with a key in AWS KMS, which never leaves it.

Sources: KMS API reference, Sign (with MessageType DIGEST the caller hashes; ECDSA_SHA_256 answers ASN.1 DER) and
GetPublicKey (SubjectPublicKeyInfo as DER).
"""

from __future__ import annotations

import hashlib
from typing import Any

from parbake.aws.clients import client
from parbake.core.errors import InputError
from parbake.core.signing import PublicKey, read_public_key

_ALGORITHM = "ECDSA_SHA_256"


class KmsSigner:
    """Signs with the asymmetric key of an ARN (a key's or an alias's), which must be ECC_NIST_P256 and for signing.

    Raises InputError for a key of another kind, AwsNotFound, AwsNoAccess, AwsError.
    """

    def __init__(self, arn: str) -> None:
        self._arn = arn
        self._kms = client("kms", arn.split(":")[3])
        found: dict[str, Any] = self._kms.get_public_key(KeyId=arn)
        kind = str(found.get("KeySpec") or found.get("CustomerMasterKeySpec"))
        if kind != "ECC_NIST_P256" or found.get("KeyUsage") != "SIGN_VERIFY":
            raise InputError(
                f"{arn} is {kind} for {found.get('KeyUsage')}",
                hint="name a key of the kind ECC_NIST_P256 for SIGN_VERIFY: aws kms create-key --key-spec ECC_NIST_P256"
                " --key-usage SIGN_VERIFY",
            )
        self.public: PublicKey = read_public_key(found["PublicKey"], arn)

    def sign(self, message: bytes) -> bytes:
        """Return the signature over a message; only its SHA-256 is sent."""
        digest = hashlib.sha256(message).digest()
        answer = self._kms.sign(KeyId=self._arn, Message=digest, MessageType="DIGEST", SigningAlgorithm=_ALGORITHM)
        return bytes(answer["Signature"])
