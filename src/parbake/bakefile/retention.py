"""How long artefacts are kept."""

from typing import Annotated

from pydantic import Field

from parbake.bakefile.sections import Section
from parbake.bakefile.values import MaybeDays


class RetentionSection(Section):
    """What `parbake prune` keeps: of artefacts here and in EC2. What something refers to stays in any case."""

    keep: Annotated[int, Field(ge=0)] = 3
    """How many artefacts of each name to keep; in EC2, of each name, architecture and region."""
    younger: MaybeDays = Field(default=0, json_schema_extra={"default": "0d"})
    """Keep artefacts younger than this, such as 14d."""
    grace: MaybeDays = Field(default=7, json_schema_extra={"default": "7d"})
    """How long after its deprecation an artefact in EC2 is removed; 0d removes it at once."""
