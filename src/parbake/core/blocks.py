"""Block lists: what a raw disk holds, one digest for each 512 KiB block that is not all zeros.

The unit is that of the EBS direct API, so that a list says what an upload has to send and what of it a parent snapshot
has already. With SHA-256 the digests are the checksums of that API as well; BLAKE3, for disks that stay here, takes a
quarter of the processor's time (5.8 against 1.4 GB/s on one core of a Xeon with SHA extensions). The last block counts
as filled up with zeros to 512 KiB: volumes are whole GiB, and so are the bytes that are sent.

Lists are read and compared here; ``parbake.machine.disk.blocks`` makes them of disks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, cast

from parbake.core import atomic
from parbake.core.errors import InputError
from parbake.core.files import open_file
from parbake.core.model import EBS_BLOCK
from parbake.core.workspace import room_for

_WORD = "parbake-blocks"
_HEADER = re.compile(rf"{_WORD} 1 (sha256|blake3) {EBS_BLOCK} (\d{{1,18}})\n")
_WIDEST = 200  # bytes of a line
_LINE = re.compile(r"(0|[1-9]\d{0,17}) ([0-9a-f]{64})\n")


type Algorithm = Literal["sha256", "blake3"]


@dataclass(frozen=True)
class BlockList:
    """What a raw disk of ``size`` bytes holds: the digest (32 bytes) of each block that is not all zeros, by index.

    Its text form is a line ``parbake-blocks 1 ALGORITHM 524288 SIZE``, then a line ``INDEX HEX`` for each block,
    ascending. The digest is the SHA-256 of that text: ``sha256sum`` of the file beside the artefact shows it.
    """

    size: int
    blocks: Mapping[int, bytes]
    algorithm: Algorithm = "sha256"

    @property
    def count(self) -> int:
        """How many blocks the disk has, with those that are all zeros."""
        return -(-self.size // EBS_BLOCK)

    def text(self) -> Iterator[str]:
        """Yield the lines of the text form."""
        yield f"{_WORD} 1 {self.algorithm} {EBS_BLOCK} {self.size}\n"
        for index in sorted(self.blocks):
            yield f"{index} {self.blocks[index].hex()}\n"

    def digest(self) -> str:
        """Return the SHA-256 of the text form as hex digits."""
        digest = hashlib.sha256()
        for line in self.text():
            digest.update(line.encode())
        return digest.hexdigest()

    def write(self, path: Path, *, durable: bool = True) -> None:
        """Write the text form, whole or not at all. Raises DiskFull."""
        with room_for(path):
            atomic.replace(path, "".join(self.text()), durable=durable)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a text form; raises InputError when the file is missing or is none."""
        try:
            with open_file(path) as file:
                texts = iter(lambda: file.readline(_WIDEST).decode("ascii"), "")  # never more at once, whatever it is
                header = _HEADER.fullmatch(next(texts, ""))
                found: dict[int, bytes] = {}
                for text in texts if header else ():
                    if not (line := _LINE.fullmatch(text)):
                        header = None
                        break
                    found[int(line[1])] = bytes.fromhex(line[2])
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: {error}", hint="`parbake verify` writes it again") from None
        if header is None:
            raise InputError(f"{path} is not a block list", hint="`parbake verify` writes it again")
        return cls(int(header[2]), found, cast("Algorithm", header[1]))

    def changed_since(self, other: BlockList) -> list[int]:
        """Return the blocks that differ from another list's, ascending; also those that are zeros only here.

        What lies behind the end of this disk is not counted. Raises InputError for a list of the other kind.
        """
        if self.algorithm != other.algorithm:
            raise InputError(
                f"a list of {self.algorithm} digests cannot be compared with one of {other.algorithm}",
                hint="bake again from scratch",
            )
        mine, theirs = self.blocks, other.blocks
        either = sorted(mine.keys() | theirs.keys())
        return [index for index in either if index < self.count and mine.get(index) != theirs.get(index)]

    def damage(self, known: BlockList) -> str:
        """Say in what a file with this list differs from what is ``known`` of it, or nothing; both of one kind."""
        if self.size != known.size:
            return f"it has {self.size} bytes, not the {known.size} of its record"
        if not (changed := self.changed_since(known)):
            return ""
        blocks = "1 block of 512 KiB differs" if len(changed) == 1 else f"{len(changed)} blocks of 512 KiB differ"
        return f"{blocks} from its record: {spans(changed)}"


def spans(indices: list[int], *, most: int = 8) -> str:
    """Return ascending indices for people, such as ``3, 5-9``; at most ``most`` of them, then how many follow."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    more = f", and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more
