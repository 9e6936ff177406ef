"""What is attached to an image in its registry: signatures, attestations, SBOMs; and whether a key signed it.

Places: cosign's tags (``sha256-HEX.sig``, ``.att``, ``.sbom``), referrers (the API of the OCI distribution
specification 1.1, or its fallback tag ``sha256-HEX``), and the attestation manifests that buildkit lists in an index.
Sources: sigstore/cosign, specs/SIGNATURE_SPEC.md (the tag, the annotation, the payload "simple signing") and
pkg/types/media.go; sigstore/protobuf-specs, sigstore_bundle.proto (a bundle that holds a DSSE envelope); OCI
distribution specification, "Listing Referrers"; buildkit, docs/attestations/attestation-storage.md.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol

from parbake.core.errors import BadContent, NoSuchImage, ParbakeError, VerificationFailed
from parbake.core.model import MIB, Descriptor, Image
from parbake.core.reference import Reference
from parbake.core.signing import Attached, NotSigned, PublicKey, opened
from parbake.images.registry.documents import FetchedDocument, Index, IndexEntry, Manifest

_TAGS = {".sig": "signature", ".att": "attestation", ".sbom": "sbom"}
_SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE = "dev.cosignproject.cosign/signature"
_EMPTY = "application/vnd.oci.empty.v1+json"
_BUNDLE = "application/vnd.dev.sigstore.bundle"  # what follows is its version
_PAYLOAD_TYPE = "cosign container image signature"
_SIGN_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
_REFERENCE_TYPE, _REFERENCE_DIGEST = "vnd.docker.reference.type", "vnd.docker.reference.digest"
_LARGEST = MIB  # a signature's payload has some hundred bytes, a bundle some thousand
_PATIENCE = 10.0  # seconds that a finished bake waits for what is of its record alone
_MOST = 100  # whoever may push can attach without end


class ReferrerStore(Protocol):
    """A repository."""

    def maybe(self, name: str) -> FetchedDocument | None:
        """Return the document of a tag or digest; None where there is none."""
        ...

    def referrers(self, digest: str) -> Index | None:
        """Return the index of what refers to a digest; None where nothing does, or the registry cannot say."""
        ...

    def small(self, descriptor: Descriptor, limit: int) -> bytes:
        """Return a document or a small blob, verified; raises BadContent above ``limit`` bytes."""
        ...


def need_signature(store: ReferrerStore, image: Image, key: PublicKey) -> Attached:
    """Return the signature of an image by a key; of what its name points to, or of the platform's manifest.

    Raises VerificationFailed when there is none, and what the registry's client raises.
    """
    reasons: list[str] = []
    for digest in _digests(image):
        for document, kind in _signatures(store, digest, reasons):
            assert isinstance(document.content, Manifest)
            for layer in filter(_signs, document.content.layers[:_MOST]):
                try:
                    _check(store, layer, digest, key)
                except (NotSigned, BadContent) as reason:
                    reasons.append(str(reason))
                else:
                    return Attached(
                        kind=kind,
                        media_type=document.descriptor.media_type,
                        digest=document.descriptor.digest,
                        of=digest,
                        signer=key.fingerprint,
                    )
    why = "; ".join(dict.fromkeys(reasons)) or "it has no signature"
    digests = " or ".join(_digests(image))
    raise VerificationFailed(
        f"{image.reference} is not signed by {key.name}: {why}",
        hint=f"sign it (cosign sign --key KEY {image.reference}), or name another image or key; looked for: {digests}",
    )


def find(store: ReferrerStore, image: Image) -> tuple[Attached, ...]:
    """Return what is attached to an image, without opening it; raises what the registry's client raises."""
    found: dict[str, Attached] = {}

    def add(kind: str, descriptor: Descriptor, of: str) -> None:
        said = Attached(kind=kind[:200], media_type=descriptor.media_type[:200], digest=descriptor.digest, of=of)
        found.setdefault(descriptor.digest, said)

    for digest in _digests(image):
        for suffix, kind in _TAGS.items():
            if document := store.maybe(_tag(digest) + suffix):
                add(kind, document.descriptor, digest)
        listed = store.referrers(digest)
        for entry in listed.manifests[:_MOST] if listed else ():
            add(_kind(store, entry), entry.descriptor, digest)
    if image.target.digest != image.manifest.digest and (top := store.maybe(image.target.digest)):
        for entry in top.content.manifests[:_MOST] if isinstance(top.content, Index) else ():
            notes = entry.annotations or {}
            if _REFERENCE_TYPE in notes and notes.get(_REFERENCE_DIGEST) == image.manifest.digest:
                add("attestation", entry.descriptor, image.manifest.digest)
    return tuple(found.values())


def collect(
    asked: Mapping[Reference, Future[tuple[Attached, ...]]], note: Callable[[str], None]
) -> dict[Reference, tuple[Attached, ...]]:
    """Return what is attached to images, without those that have nothing; what is not known in time is noted."""
    found: dict[Reference, tuple[Attached, ...]] = {}
    end = time.monotonic() + _PATIENCE
    for reference, future in asked.items():
        try:
            found[reference] = future.result(timeout=max(0.0, end - time.monotonic()))
        except (ParbakeError, TimeoutError, CancelledError) as error:
            said = getattr(error, "message", "") or "the registry takes too long"
            note(f"{reference}: its signatures and attestations could not be listed: {said}")
    return {reference: each for reference, each in found.items() if each}


def _digests(image: Image) -> tuple[str, ...]:
    return tuple(dict.fromkeys((image.target.digest, image.manifest.digest)))


def _tag(digest: str) -> str:
    return digest.replace(":", "-")


def _kind(store: ReferrerStore, entry: IndexEntry) -> str:
    """Return a referrer's artifact type; clients that write the fallback tag themselves put the config's there."""
    if entry.artifact_type and entry.artifact_type != _EMPTY:
        return entry.artifact_type
    document = store.maybe(entry.digest)
    return _artifact_type(document) if document else "referrer"


def _artifact_type(document: FetchedDocument) -> str:
    """Return what a manifest says to be; without an artifact type, its config's media type says it."""
    config = document.content.config.media_type if isinstance(document.content, Manifest) else ""
    return str(json.loads(document.body).get("artifactType") or config or "referrer")


def _signatures(store: ReferrerStore, digest: str, reasons: list[str]) -> Iterator[tuple[FetchedDocument, str]]:
    """Yield the manifests that hold signatures, perhaps of a digest, and of what kind each is."""
    names = [_tag(digest) + ".sig"]
    listed = store.referrers(digest)
    names += [entry.digest for entry in listed.manifests[:_MOST]] if listed else []
    for name in names:
        try:
            document = store.maybe(name)
        except (NoSuchImage, BadContent) as error:
            reasons.append(error.message)
            continue
        if document and isinstance(document.content, Manifest) and any(map(_signs, document.content.layers)):
            yield document, _artifact_type(document) if ":" in name else "signature"


def _signs(layer: IndexEntry) -> bool:
    return layer.media_type == _SIMPLE_SIGNING or layer.media_type.startswith(_BUNDLE)


def _check(store: ReferrerStore, layer: IndexEntry, digest: str, key: PublicKey) -> None:
    """Raise NotSigned unless a layer holds a signature of ``digest`` by the key."""
    if layer.media_type == _SIMPLE_SIGNING:
        _check_simple(store.small(layer.descriptor, _LARGEST), layer, digest, key)
    else:
        _check_bundle(store.small(layer.descriptor, _LARGEST), digest, key)


def _check_simple(payload: bytes, layer: IndexEntry, digest: str, key: PublicKey) -> None:
    try:
        signature = base64.b64decode((layer.annotations or {}).get(_SIGNATURE, ""), validate=True)
    except binascii.Error:
        raise NotSigned("a signature is not base64") from None
    if not key.verifies(signature, payload):
        raise NotSigned("a signature is by another key")
    critical = _json(payload).get("critical")
    critical = critical if isinstance(critical, dict) else {}
    said = critical.get("image")
    if not isinstance(said, dict) or critical.get("type") != _PAYLOAD_TYPE:
        raise NotSigned("the key has signed something other than an image")
    if said.get("docker-manifest-digest") != digest:
        raise NotSigned(f"a signature is for {str(said.get('docker-manifest-digest'))[:80]}, not for {digest}")


def _check_bundle(text: bytes, digest: str, key: PublicKey) -> None:
    try:
        payload, _ = opened(_json(text).get("dsseEnvelope"), [key])
    except NotSigned as reason:
        raise NotSigned(f"a bundle {reason}") from None
    statement = _json(payload)
    if statement.get("predicateType") != _SIGN_PREDICATE:
        kind = str(statement.get("predicateType"))[:80]
        raise NotSigned(f"the key has attested {kind} of it, which is not a signature")
    subjects = statement.get("subject")
    digests = [each.get("digest") for each in subjects if isinstance(each, dict)] if isinstance(subjects, list) else []
    if not any(isinstance(each, dict) and each.get("sha256") == digest.removeprefix("sha256:") for each in digests):
        raise NotSigned(f"a bundle is for another image, not for {digest}")


def _json(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise NotSigned("a signature's payload is not a JSON object")
    return found
