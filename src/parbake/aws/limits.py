"""Limits of AWS that more than one part keeps to."""

from __future__ import annotations

from dataclasses import dataclass

USER_DATA_LIMIT = 16 << 10
"""Bytes that EC2 takes as user data, before base64 (EC2 user guide, "Run commands at launch")."""
_MOST_IOPS, _MOST_THROUGHPUT = 80_000, 2_000
_IOPS_A_GIB, _IOPS_A_MIB = 500, 4


@dataclass(frozen=True, slots=True)
class Gp3:
    """What a gp3 volume gives: operations a second and MiB/s.

    Sources: EC2 API reference, ModifyVolume (3,000 to 80,000 and 125 to 2,000); EBS user guide, "General Purpose SSD
    volumes" (at most 500 operations for each GiB of the volume, and 0.25 MiB/s for each operation).
    """

    iops: int
    throughput: int

    def __str__(self) -> str:
        return f"{self.iops:,} IOPS and {self.throughput:,} MiB/s"

    @property
    def figures(self) -> str:
        """What a tag says of it (``tags.BOOST``)."""
        return f"{self.iops}/{self.throughput}"

    def within(self, gib: int) -> Gp3:
        """Return as much of it as a volume of so many GiB may have."""
        iops = max(GP3.iops, min(self.iops, _MOST_IOPS, gib * _IOPS_A_GIB))
        return Gp3(iops, max(GP3.throughput, min(self.throughput, _MOST_THROUGHPUT, iops // _IOPS_A_MIB)))


GP3 = Gp3(3_000, 125)
"""What every gp3 volume has, and nobody pays for."""
RAISED_GP3 = Gp3(16_000, 1_000)
MOST_GP3 = Gp3(_MOST_IOPS, _MOST_THROUGHPUT)
