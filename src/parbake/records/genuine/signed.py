"""Signed records: which key signs, and whether a trusted one has signed.

The envelope beside a record holds all of it, and counts: the record's own file must be its payload, byte for byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, override

from parbake.core.errors import InputError, VerificationFailed
from parbake.core.events import Events
from parbake.core.signing import FileSigner, NotSigned, PublicKey, Signer, opened, public_key, read_public_key
from parbake.core.workspace import publish, work_folder
from parbake.records import folder
from parbake.records.genuine.claims import contradiction, of_file
from parbake.records.record import SUFFIX, Record

if TYPE_CHECKING:
    from parbake.bakefile import Bakefile
    from parbake.bakefile.salvage import ProofSettings


_TEST = b"parbake: a test of the key before anything is made"


def open_signer(bakefile: Bakefile | ProofSettings) -> Signer | None:
    """Return what signs a Bakefile's records, tried out, in its role; None where it says nothing of that.

    Raises InputError when there is no such key, or its public half is not trusted; what KMS answers as AwsError.
    """
    section = bakefile.sign
    if section is None:
        return None
    signer: Signer
    if section.kms:
        from parbake.aws import acting_as

        with acting_as(bakefile.aws.role, bakefile.aws.external_id, places={}):
            signer = KmsSigner(section.kms)
    else:
        assert section.key
        signer = FileSigner(section.key)
    name = signer.public.name
    if not signer.public.verifies(signer.sign(_TEST), _TEST):
        raise InputError(f"{name} makes signatures that its own public key does not verify", hint="use another key")
    if signer.public.fingerprint not in {public_key(path).fingerprint for path in bakefile.trust}:
        raise InputError(
            f"the public half of {name} is not among `trust`, so its signatures would be refused",
            hint="add it to `trust`: openssl pkey -in KEY -pubout -out FILE; of a key in KMS: "
            "cosign public-key --key awskms:///ARN > FILE",
        )
    return signer


def read_signed(artefact: Path, trust: Sequence[Path]) -> Record:
    """Return the record of an artefact as it was signed by one of the keys in ``trust`` (PEM files).

    Raises VerificationFailed when none has signed it, or when it was changed since; InputError for no record.
    """
    path = artefact.with_name(artefact.name + SUFFIX)
    hint = f"roll out records signed by {_names(trust)}; `sign` in the Bakefile signs new records"
    try:
        payload = _payload(artefact, trust)
    except NotSigned as reason:
        raise VerificationFailed(f"the record of {artefact.name} {reason}", hint=hint) from None
    if _text(path) != payload:
        raise VerificationFailed(
            f"the record of {artefact.name} was changed after it was signed",
            hint=f"find out who changed it: {artefact.name}{folder.ENVELOPE_SUFFIX} holds what was signed, and "
            "`parbake bake` on a machine with the key restores it",
        )
    return folder.parse(payload, path)


def need(artefact: Path, trust: Sequence[Path]) -> Record:
    """Return the record of an artefact that is to be believed: as it was signed, where the Bakefile trusts keys.

    Raises VerificationFailed when it is not, or when it contradicts itself; InputError when there is none.
    """
    path = artefact.with_name(artefact.name + SUFFIX)
    if trust:
        record = read_signed(artefact, trust)
        other = record.artefact != artefact.name
        problem = f"it is the record of {record.artefact}" if other else contradiction(_text(path), record)
    else:
        record, problem = of_file(path)
    if problem:
        raise VerificationFailed(
            f"the record of {artefact.name} cannot be trusted: {problem}",
            hint="somebody has changed it, or it belongs to another artefact: `parbake bake` writes a correct one",
        )
    return record


def mend(artefact: Path, trust: Sequence[Path], events: Events) -> bool:
    """Whether a trusted key has signed an artefact's record; one that differs from what was signed is written back.

    That happens when a run is killed between the two files; or when somebody has edited the record. Hold
    ``records.in_use``.
    """
    path = artefact.with_name(artefact.name + SUFFIX)
    try:
        payload = _payload(artefact, trust)
    except NotSigned as reason:
        events.warn(f"the record of {artefact.name} {reason}: baking again")
        return False
    record = folder.parse(payload, path)
    if record.artefact != artefact.name or contradiction(payload, record):
        events.warn(f"the record of {artefact.name} is signed and contradicts itself: baking again")
        return False
    if _text(path) != payload:
        events.warn(f"the record of {artefact.name} differs from the signed one, which is being restored")
        with work_folder(artefact.parent, "record") as work:
            (work / path.name).write_bytes(payload)
            publish(work / path.name, path)
    return True


def _text(path: Path) -> bytes:
    """Return the bytes of a record's file; none of another kind of file, which no record equals."""
    try:
        return folder.text_of(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", hint="`parbake list` shows all records") from None
    except OSError:
        return b""


def _payload(artefact: Path, trust: Sequence[Path]) -> bytes:
    """Return what a trusted key has signed of an artefact; raises NotSigned, InputError for a key that is none."""
    keys = [public_key(path) for path in trust]
    path = artefact.with_name(artefact.name + folder.ENVELOPE_SUFFIX)
    try:
        text = folder.text_of(path)
    except FileNotFoundError:
        raise NotSigned("is not signed") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", hint="correct its mode or its owner") from None
    payload, _ = opened(text, keys)
    return payload


def _names(trust: Sequence[Path]) -> str:
    return " or ".join(path.name for path in trust)


class KmsSigner(Signer):
    """Signs with the asymmetric key of an ARN (a key's or an alias's), which must be ECC_NIST_P256 and for signing.

    The key never leaves AWS KMS. Sources: KMS API reference, Sign (with MessageType DIGEST the caller hashes;
    ECDSA_SHA_256 answers ASN.1 DER) and GetPublicKey (SubjectPublicKeyInfo as DER).
    Raises InputError for a key of another kind, AwsNotFound, AwsNoAccess, AwsError.
    """

    def __init__(self, arn: str) -> None:
        from parbake import aws  # loads only where AWS is asked

        self._arn = arn
        self._kms = aws.client("kms", arn.split(":")[3])
        found: dict[str, Any] = self._kms.get_public_key(KeyId=arn)
        kind = str(found.get("KeySpec") or found.get("CustomerMasterKeySpec"))
        if kind != "ECC_NIST_P256" or found.get("KeyUsage") != "SIGN_VERIFY":
            raise InputError(
                f"{arn} is {kind} for {found.get('KeyUsage')}",
                hint="name a key of the kind ECC_NIST_P256 for SIGN_VERIFY: aws kms create-key --key-spec ECC_NIST_P256"
                " --key-usage SIGN_VERIFY",
            )
        self.public: PublicKey = read_public_key(found["PublicKey"], arn)

    @override
    def sign(self, message: bytes) -> bytes:
        """Return the signature over a message; only its SHA-256 is sent."""
        digest = hashlib.sha256(message).digest()
        answer = self._kms.sign(KeyId=self._arn, Message=digest, MessageType="DIGEST", SigningAlgorithm="ECDSA_SHA_256")
        return bytes(answer["Signature"])
