"""Who signs records."""

from typing import Annotated, Self

from pydantic import ConfigDict, model_validator

from parbake.bakefile.sections import Section
from parbake.bakefile.values import PathText, matching, text_schema, wrong

_KMS = r"arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:(key|alias)/[A-Za-z0-9/_-]+"


Kms = Annotated[
    str,
    matching(_KMS, "a KMS key ARN", "write arn:aws:kms:REGION:ACCOUNT:key/ID, or …:alias/NAME"),
    text_schema(f"^{_KMS}$"),
]


class SignSection(Section):
    """What signs records: exactly one of these."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    key: PathText | None = None
    """A PEM file with a private key (Ed25519, or ECDSA on P-256), relative to the Bakefile. Only its owner, and at
    most its group, may be able to read it."""
    kms: Kms | None = None
    """The ARN of a key in AWS KMS: ECC_NIST_P256, for SIGN_VERIFY."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.key is None) == (self.kms is None):
            raise wrong("must be exactly one of key, kms", "write sign: {key: FILE}, or sign: {kms: ARN}")
        return self
