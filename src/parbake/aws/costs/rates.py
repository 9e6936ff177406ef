"""How fast volumes and pulls are: data, each with who says so. Prices are another matter (``prices``)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter

from parbake.aws.limits import GP3, RAISED_GP3, Gp3
from parbake.core.model import Frozen

_PULLS = Path(__file__).with_name("pulls.json")
PullName = Literal["pull", "pull-soci-al2023", "pull-soci-bottlerocket"]
MB = 1_000_000


class Speeds(Frozen):
    """How fast blocks are: seconds for a first touch, MiB/s of cold ones that many requests at a time get.

    ``loaded`` are the seconds of a read of what is there, where somebody has measured them (0: as the volume's kind).
    """

    latency: float = Field(default=0.020, gt=0)
    cold_rate: float = Field(default=80.0, gt=0)
    loaded: float = Field(default=0.0, ge=0)


SPEEDS = {"mild": Speeds(), "harsh": Speeds(latency=0.035, cold_rate=40.0)}


class VolumeKind(Frozen):
    """How a volume answers reads of what is loaded: seconds of each, operations a second, MiB/s.

    Operations and throughput are what AWS sells (Amazon EBS user guide, "Amazon EBS volume types"), the latencies those
    of reports; ``bench/ebs-check`` asks a real volume.
    """

    latency: float = Field(default=0.0007, gt=0)
    operations: float = Field(default=3_000, gt=0)
    throughput: float = Field(default=125.0, gt=0)


def kind_of(gp3: Gp3) -> VolumeKind:
    """Return how a gp3 volume that is given so much answers: no read of it is quicker, only more of them at a time."""
    return VolumeKind(operations=gp3.iops, throughput=gp3.throughput)


DRIVES = {
    "gp3": kind_of(GP3),
    "gp3-raised": kind_of(RAISED_GP3),
    "io2": VolumeKind(latency=0.0003, operations=16_000, throughput=1_000.0),
}


class Pull(Frozen):
    """One kind of pull: what was measured of it, in MB of compressed layers a second, unpacking included.

    ``raised``: it was measured on a volume with more operations and throughput than gp3 has by itself, and needs them.
    """

    name: PullName
    what: str
    slowest: float = Field(gt=0)
    fastest: float = Field(gt=0)
    raised: bool
    date: str
    source: str
    conditions: str

    def seconds(self, transfer: int) -> float:
        """Return how long it takes for so many compressed bytes, at its best: a bake has to beat that."""
        return transfer / MB / self.fastest


@cache
def known_pulls() -> tuple[Pull, ...]:
    """Return the kinds of pull that figures were published of, the slowest first."""
    return TypeAdapter(tuple[Pull, ...]).validate_json(_PULLS.read_bytes())


def own_pull(rate: float) -> tuple[Pull, ...]:
    """Return the one kind of pull that somebody has measured: MB a second."""
    return (
        Pull(
            name="pull",
            what=f"{rate:g} MB/s, as measured by you",
            slowest=rate,
            fastest=rate,
            raised=False,
            date="",
            source="yours",
            conditions="",
        ),
    )
