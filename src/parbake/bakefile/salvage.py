"""What a Bakefile with mistakes elsewhere still says about proofs: loads only where there are such mistakes."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from parbake.bakefile.aws import AwsSection
from parbake.bakefile.format import Format
from parbake.bakefile.loader import BAKEFILE
from parbake.bakefile.proof import SignSection, VerifySection
from parbake.bakefile.sections import Section
from parbake.bakefile.values import PublicKeyFile
from parbake.core.errors import BakefileError, InputError

_NAMES_KEYS = re.compile(rb"""^[{ \t]*["']?trust["']?[ \t]*:""", re.MULTILINE)


class ProofSettings(Section):
    """The keys of a Bakefile that decide which records are believed, who signs them, and where they are verified."""

    model_config = ConfigDict(extra="ignore")

    trust: tuple[PublicKeyFile, ...] = ()
    sign: SignSection | None = None
    verify: VerifySection = VerifySection()
    aws: AwsSection = AwsSection()  # `sign` may be a key in KMS, which a role may use


def load_proof_settings(path: Path) -> ProofSettings | None:
    """Return what a Bakefile says about proofs, whatever is wrong with its other keys; None where that is illegible.

    Raises BakefileError for an illegible one that has `trust`: not to check signatures would be a silent change.
    """
    usual: Format[Any] = BAKEFILE
    settings: Format[ProofSettings] = replace(usual, model=ProofSettings)
    try:
        return settings.load(path)
    except BakefileError as error:
        if not _NAMES_KEYS.search(path.read_bytes()):
            return None
        hint = "its `trust` says which records to believe: correct the file, or run this where no parbake.yaml is"
        raise BakefileError(error.source, error.problems, hint=hint) from None
    except InputError:
        return None
