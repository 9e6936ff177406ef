"""What artefacts are verified on, who signs their records, and how long they are kept."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from parbake.bakefile.sections import Section
from parbake.bakefile.values import File, MaybeDays, PathText, matching, text_schema, wrong

_KMS = r"arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:(key|alias)/[A-Za-z0-9/_-]+"
Kms = Annotated[
    str,
    matching(_KMS, "a KMS key ARN", "write arn:aws:kms:REGION:ACCOUNT:key/ID, or …:alias/NAME"),
    text_schema(f"^{_KMS}$"),
]


class VerifySection(Section):
    """What an artefact is proven on before anybody gets it; the bare text `canary` means `by: canary`."""

    by: Literal["machine", "canary"] = "machine"
    """Who proves it: a `machine` that a bake boots, or the `canary` of a rollout's first target. Then a bake boots
    nothing; only a target whose `canary` has a `min_hit_rate` gets what it made, and others once its pods used it."""
    base: File | None = None
    """A disk image (raw or qcow2) of your nodes, relative to the Bakefile, for volumes: they are attached to it, and
    its own container runtime, configured as it is there, starts what was baked. It needs cloud-init. Default: parbake's
    default base."""


def verify_text(text: str) -> object:
    """Read what a bare text after ``verify:`` means."""
    return {"by": text}


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


class RetentionSection(Section):
    """What `parbake prune` keeps: of artefacts here and in EC2. What something refers to stays in any case."""

    keep: Annotated[int, Field(ge=0)] = 3
    """How many artefacts of each name to keep; in EC2, of each name, architecture and region."""
    younger: MaybeDays = Field(default=0, json_schema_extra={"default": "0d"})
    """Keep artefacts younger than this, such as 14d."""
    grace: MaybeDays = Field(default=7, json_schema_extra={"default": "7d"})
    """How long after its deprecation an artefact in EC2 is removed; 0d removes it at once."""
