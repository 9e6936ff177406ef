"""The record: what it says of an artefact, as JSON and as an in-toto Statement."""

from typing import Literal

from pydantic import Field

from parbake.core.model import EBS_BLOCK, FILE_NAME, Digest, FileName, Frozen, Plan, Published, TraceSummary, Verdict
from parbake.core.reference import Reference
from parbake.core.signing import Attached

SUFFIX = ".json"
BLOCKS_SUFFIX = ".blocks"
TRACE_SUFFIX = ".trace"
"""Of the start-up trace beside an artefact: not one of JSON's, since it is not a record."""
BLOCKS_DIGEST = "parbakeBlocks1"
"""The subject's digest, beside ``sha256``, in the in-toto statement of a raw artefact: that of its list of blocks."""
_HEX = r"^[0-9a-f]{64}$"


class Blocks(Frozen):
    """What names a raw artefact's bytes: the list of its blocks, which lies beside it as ``NAME.blocks``.

    ``count`` blocks of ``block_size`` bytes are not all zeros; each has a line with its digest in the list. The
    artefact's last block counts as filled up with zeros. ``digest`` is the SHA-256 of the list: ``sha256sum
    NAME.blocks`` shows it, and ``dd if=NAME bs=512K skip=INDEX count=1 | b3sum`` (``sha256sum`` where the
    ``algorithm`` is that) the digest of one block.
    """

    algorithm: Literal["sha256", "blake3"] = "sha256"
    block_size: int = EBS_BLOCK
    count: int = Field(ge=0)
    digest: str = Field(pattern=_HEX)


class Record(Frozen):
    """What is known of one artefact. Sizes in bytes, times in seconds, dates as RFC 3339 in UTC.

    ``sha256`` is the digest of the whole file, empty for what exists in a cloud alone; a raw artefact, whose ``blocks``
    name its bytes, gets it when it is verified.
    ``size`` is the file's length, ``allocated`` what it takes on disk; ``seconds`` is how long the bake took and
    ``timings`` by stage, builds of images and of the base included;
    ``base_digest`` is the digest of the base image's bytes, empty without a base; ``sealed`` lists what was cleaned.
    ``published`` says where the artefact is in clouds: by region, such as ``eu-central-1``, the bake's own first.
    ``parent`` names the artefact that the bake started from: what of it is still needed was not fetched again.
    ``attached`` are the signatures and attestations that images carried when they were baked, by reference.
    """

    artefact: FileName
    key: str = Field(pattern=_HEX)
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    blocks: Blocks | None = None
    size: int
    allocated: int
    builder: str
    parbake: str
    started_at: str
    finished_at: str
    seconds: float = 0.0
    plan: Plan
    base_digest: Digest | None = None
    timings: dict[str, float] = Field(default_factory=dict)
    sealed: tuple[str, ...] = ()
    verdict: Verdict | None = None
    published: dict[str, Published] = Field(default_factory=dict)
    trace: TraceSummary | None = None
    parent: str = Field(default="", pattern=f"^({FILE_NAME})?$")
    attached: dict[Reference, tuple[Attached, ...]] = Field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """The record's own file name."""
        return self.artefact + SUFFIX

    @property
    def digests(self) -> dict[str, str]:
        """What names the artefact's bytes, as an in-toto DigestSet."""
        found = {"sha256": self.sha256, BLOCKS_DIGEST: self.blocks.digest if self.blocks else ""}
        return {name: value for name, value in found.items() if value}

    @property
    def trace_name(self) -> str:
        """The file name of the start-up trace."""
        return self.artefact + TRACE_SUFFIX

    @property
    def verified(self) -> bool:
        """Whether the artefact was started and everything in it worked."""
        return self.verdict is not None and self.verdict.passed
