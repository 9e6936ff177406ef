"""What a bake on Bottlerocket needs besides: Systems Manager is the only way to it.

Sources: Service Authorization Reference for Systems Manager, its message gateway and EC2's messages; Systems Manager
user guide, "AmazonSSMManagedInstanceCore" (of which these are the agent's own calls and commands).
"""

from __future__ import annotations

from collections.abc import Iterator

from parbake.bakefile import Bakefile
from parbake.iam.words import OURS, Policy, allow, arn, ec2

_CHANNELS = ("CreateControlChannel", "CreateDataChannel", "OpenControlChannel", "OpenDataChannel")
_MESSAGES = ("AcknowledgeMessage", "DeleteMessage", "FailMessage", "GetEndpoint", "GetMessages", "SendReply")


def caller(bakefile: Bakefile) -> Iterator[Policy]:
    """Yield the statements of whoever bakes: to run the script on parbake's own instances, and to stop those."""
    if not _wanted(bakefile):
        return
    yield allow("FollowTheAgent", ["ssm:DescribeInstanceInformation", "ssm:GetCommandInvocation"])
    yield allow("RunOnOurs", ["ssm:SendCommand"], ec2(bakefile, "instance"), OURS)
    yield allow("RunAScript", ["ssm:SendCommand"], [arn(bakefile, "ssm", "document/AWS-RunShellScript")])
    yield allow("Stop", ["ec2:StopInstances"], ec2(bakefile, "instance"), OURS)


def instance(bakefile: Bakefile) -> Iterator[Policy]:
    """Yield the statements of the instance's role: what the agent calls."""
    if not _wanted(bakefile):
        return
    yield allow("RegisterTheAgent", ["ssm:UpdateInstanceInformation"])
    yield allow("TakeCommands", [f"ssmmessages:{each}" for each in _CHANNELS])
    yield allow("TakeCommandsTheOldWay", [f"ec2messages:{each}" for each in _MESSAGES])


def _wanted(bakefile: Bakefile) -> bool:
    source = bakefile.base.ami
    return bool(source and source.is_bottlerocket and bakefile.artefact.kind == "volume" and bakefile.builder == "ec2")
