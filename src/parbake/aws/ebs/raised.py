"""Volumes that nodes were launched with raised, and that are raised still: found by their tag, and taken back.

A node takes its own back (``node/boost.py``) unless it died, may not, or had no room for the program in its user data.
Source: EC2 API reference, ModifyVolume (four changes in 24 hours, the next one when the last is completed).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from parbake import aws
from parbake.aws.costs import load_prices, raised_hour
from parbake.aws.limits import GP3, Gp3
from parbake.aws.tags import BOOST, as_dict
from parbake.core.errors import AwsError, AwsNotFound
from parbake.core.events import Events

_START = timedelta(minutes=15)
"""How long a volume that is in use may be raised: the longest that a node's start is waited for, and some more."""


def take_back(region: str, events: Events) -> tuple[str, ...]:
    """Take back the volumes of a region that are raised though their node has started, or is gone; return their ids.

    Which it is, and what it costs, is noted; what AWS refuses is a warning, for the next clean-up. Raises AwsError
    where volumes cannot be listed.
    """
    ec2, prices, taken = aws.client("ec2", region), load_prices(), list[str]()
    region = ec2.region
    tagged = [{"Name": "tag-key", "Values": [BOOST]}]
    for volume in ec2.pages("describe_volumes", "Volumes", Filters=tagged):
        name, now = volume["VolumeId"], Gp3(volume.get("Iops", 0), volume.get("Throughput", 0))
        if not _left_raised(volume, now):
            continue
        where = f"{region}: {name}, {_whose(volume)},"
        try:
            ec2.modify_volume(VolumeId=name, Iops=GP3.iops, Throughput=GP3.throughput)
        except AwsNotFound:
            continue
        except AwsError as error:
            events.warn(f"{where} stays raised: {error.message}; run `parbake clean --aws` later")
            continue
        hour = raised_hour(now, prices)
        events.note(f"{where} had {now}, for {hour:.4f} {prices.currency} an hour: it goes back to {GP3}")
        taken.append(name)
    return tuple(taken)


def _left_raised(volume: Mapping[str, Any], now: Gp3) -> bool:
    """Whether a volume is as its node class raised it, and not another of the node's, after its node's start."""
    device, _, figures = as_dict(volume).get(BOOST, "").partition(" ")
    if figures != now.figures or volume["State"] not in {"in-use", "available"}:
        return False
    attached = volume.get("Attachments") or []
    if volume["State"] == "in-use" and device not in {each.get("Device") for each in attached}:
        return False
    return not attached or datetime.now(UTC) - volume["CreateTime"] > _START


def _whose(volume: Mapping[str, Any]) -> str:
    owners = [str(each["InstanceId"]) for each in volume.get("Attachments") or [] if each.get("InstanceId")]
    return f"of {owners[0]}" if owners else "whose node is gone"
