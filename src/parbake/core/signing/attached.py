"""What images carry in their registries: a noun of records."""

from parbake.core.model import Digest, Frozen


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
