"""Partition tables: read them, find the root file system, let it grow."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parbake.core.errors import BadBase, CommandFailed
from parbake.core.model import MIB
from parbake.core.run import run
from parbake.machine.disk.mounts import mount
from parbake.machine.disk.roots import inside

_SECTOR = 512
_PRIMARY_PARTITIONS = 4
_PROTECTIVE = "ee"  # the type of the one MBR partition that covers a disk with a GPT
_MBR_LIMIT = 2**32 * _SECTOR  # sectors are counted in 32 bits
_FILE_SYSTEMS = ("ext4", "xfs")
# What a root could hide in that cannot be filled offline, as blkid names it, and the words for it.
_CLOSED = {
    "btrfs": "btrfs",
    "crypto_LUKS": "an encrypted partition (LUKS)",
    "LVM2_member": "an LVM volume",
    "linux_raid_member": "a RAID member",
    "BitLocker": "a BitLocker volume",
    "ntfs": "NTFS",
    "zfs_member": "ZFS",
    "ext3": "ext3",
    "ext2": "ext2",
}


@dataclass(frozen=True, slots=True)
class Partition:
    """A part of a disk, in bytes.

    ``number`` 0 means the whole disk, which has no table; ``type`` is the table's own word; ``filesystem`` is what
    blkid sees in it, empty for nothing known.
    """

    number: int
    start: int
    size: int
    type: str = ""
    name: str = ""
    filesystem: str = ""

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.start + self.size


def partitions(image: Path) -> tuple[Partition, ...]:
    """Return the partitions of a raw disk image in the order of their place; empty when there is no table."""
    listed = run(["sfdisk", "--json", str(image)], check=False)
    if listed.code:
        return ()
    table: dict[str, Any] = json.loads(listed.stdout)["partitiontable"]
    sector = int(table.get("sectorsize", _SECTOR))
    found = []
    for entry in table.get("partitions", []):
        start, size = int(entry["start"]) * sector, int(entry["size"]) * sector
        number = int("".join(character for character in entry["node"][len(str(image)) :] if character.isdigit()))
        found.append(
            Partition(number, start, size, entry.get("type", ""), entry.get("name", ""), _probe(image, start, size))
        )
    return tuple(sorted(found, key=lambda partition: partition.start))


def _probe(image: Path, offset: int, size: int) -> str:
    command = ["blkid", "--probe", "--output", "value", "--match-tag", "TYPE", "--offset", str(offset)]
    if size:
        command += ["--size", str(size)]
    return run([*command, str(image)], check=False).text.strip()


def find_root(image: Path, *, called: Path | None = None) -> Partition:
    """Find the root file system of a raw disk image: the one with an os-release. Call within ``private_mounts``.

    ``called`` is what errors call the image where it is a copy. Raises BadBase that says what was found instead.
    """
    name = called or image
    size = image.stat().st_size
    candidates = partitions(image)
    whole = _probe(image, 0, 0)
    if not candidates and whole:
        candidates = (Partition(0, 0, size, filesystem=whole),)
    if not candidates:
        raise BadBase(
            f"{name} is not a disk image: it has neither a partition table nor a file system",
            hint="give a raw or qcow2 disk image of a machine that boots",
        )
    _refuse_cut_off(name, candidates, size)
    roots = [
        candidate for candidate in candidates if candidate.filesystem in _FILE_SYSTEMS and _is_root(image, candidate)
    ]
    if roots:
        return max(roots, key=lambda root: root.size)
    closed = [_CLOSED[candidate.filesystem] for candidate in candidates if candidate.filesystem in _CLOSED]
    seen = ", ".join(closed) or ", ".join(filter(None, (candidate.filesystem for candidate in candidates))) or "nothing"
    raise BadBase(
        f"found no root file system in {name} (it holds: {seen})",
        hint="parbake fills ext4 and xfs roots with an /etc/os-release; `builder: qemu` and `ec2` bake onto others"
        if closed
        else "is this a disk image of a machine that boots?",
    )


def _refuse_cut_off(name: Path, candidates: Sequence[Partition], size: int) -> None:
    last = max(candidates, key=lambda candidate: candidate.end)
    reason = ""
    if last.type == _PROTECTIVE:  # without the header at its end, a disk with a GPT is no such disk any more
        reason = "its GPT cannot be read, only the protective MBR before it"
    elif last.end > size:
        reason = f"it ends at {size} bytes, and its partition {last.number} at {last.end}"
    if reason:
        raise BadBase(f"{name} is cut off or damaged: {reason}", hint="copy or download it again")


def _is_root(image: Path, candidate: Partition) -> bool:
    with tempfile.TemporaryDirectory(prefix="look-", dir=image.parent, ignore_cleanup_errors=True) as folder:
        at = Path(folder) / "root"
        try:
            with mount(
                image,
                at,
                offset=candidate.start,
                size=candidate.size,
                filesystem=candidate.filesystem,
                read_only=True,
            ):
                return any(inside(at, path).is_file() for path in ("etc/os-release", "usr/lib/os-release"))
        except CommandFailed:
            return False  # damaged, or of a kind that this kernel does not know


def grow(image: Path, partition: Partition, size: int) -> Partition:
    """Make a raw disk at least ``size`` bytes long (whole MiB) and let the partition take what is new.

    Returns the partition as it is then; its type, identifier, name and attributes stay. Raises BadBase when it cannot
    grow: another one lies behind it, it is a logical one, or an MBR table would have to name more than 2 TiB.
    """
    if size <= image.stat().st_size:
        return partition
    size = -(-size // MIB) * MIB
    if partition.number:
        _refuse_growth(image, partition, size)
    with image.open("r+b") as handle:
        handle.truncate(size)
    if not partition.number:
        return replace(partition, size=size)
    # GPT keeps a second header at the end of the disk: sfdisk moves it when it writes the table.
    run(
        ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "-N", str(partition.number), str(image)],
        stdin=b", +\n",
    )
    return next(found for found in partitions(image) if found.number == partition.number)


def _refuse_growth(image: Path, partition: Partition, size: int) -> None:
    behind = [other for other in partitions(image) if other.start >= partition.end]
    label = run(["blkid", "--probe", "--output", "value", "--match-tag", "PTTYPE", str(image)], check=False).text
    reason = ""
    if behind:
        reason = f"partition {behind[0].number} follows it"
    elif label == "dos" and partition.number > _PRIMARY_PARTITIONS:
        reason = "it is a logical partition inside an extended one"
    elif label == "dos" and size > _MBR_LIMIT:
        reason = "an MBR partition table ends at 2 TiB"
    if reason:
        raise BadBase(
            f"the root partition cannot grow: {reason}",
            hint="use a base whose root partition is the last one, or one that is large enough and a fixed `size`",
        )
