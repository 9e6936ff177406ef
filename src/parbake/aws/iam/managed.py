"""What a bake on Bottlerocket needs besides: Systems Manager is the only way to it.

Sources: Service Authorization Reference for Systems Manager, its message gateway and EC2's messages; Systems Manager
user guide, "AmazonSSMManagedInstanceCore" (of which these are the agent's own calls and commands).
"""

from __future__ import annotations

from collections.abc import Iterator

from parbake.aws.iam.statements import OURS, Policy, Scope, allow, here

_CHANNELS = ("CreateControlChannel", "CreateDataChannel", "OpenControlChannel", "OpenDataChannel")
_MESSAGES = ("AcknowledgeMessage", "DeleteMessage", "FailMessage", "GetEndpoint", "GetMessages", "SendReply")


def caller(scope: Scope) -> Iterator[Policy]:
    """Yield the statements of whoever bakes: to run the script on parbake's own instances, and to stop those."""
    if not _wanted(scope):
        return
    read = ["ssm:DescribeInstanceInformation", "ssm:GetCommandInvocation"]
    yield allow("FollowTheAgent", read, condition=here([scope.home]))
    yield allow("RunOnOurs", ["ssm:SendCommand"], scope.ec2("instance"), OURS)
    document = scope.arn("ssm", "document/AWS-RunShellScript", account="*")  # AWS's own
    yield allow("RunAScript", ["ssm:SendCommand"], [document])
    yield allow("Stop", ["ec2:StopInstances"], scope.ec2("instance"), OURS)


def instance(scope: Scope) -> Iterator[Policy]:
    """Yield the statements of the instance's role: what the agent calls."""
    if not _wanted(scope):
        return
    at_home = here([scope.home])
    yield allow("RegisterTheAgent", ["ssm:UpdateInstanceInformation"], condition=at_home)
    yield allow("TakeCommands", [f"ssmmessages:{each}" for each in _CHANNELS], condition=at_home)
    yield allow("TakeCommandsTheOldWay", [f"ec2messages:{each}" for each in _MESSAGES], condition=at_home)


def _wanted(scope: Scope) -> bool:
    bakefile = scope.bakefile
    source = bakefile.base.ami
    return bool(source and source.is_bottlerocket and bakefile.artefact.kind == "volume" and bakefile.builder == "ec2")
