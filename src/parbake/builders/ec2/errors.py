"""What EC2 means when it launches no instance, or ends one: the reason in plain words, and the next step.

Sources: EC2 API reference, "Error codes" and StateReason; EC2 user guide, "Troubleshoot launch issues" (instances that
terminate at once: a key that cannot be used shows as Client.InternalError).
"""

from __future__ import annotations

from parbake.aws.errors import CAPACITY, KMS_HINT, QUOTA_HINT
from parbake.core.errors import AwsError, AwsLimit, AwsNoAccess, AwsNotFound, InputError, ParbakeError


class SpotReclaimed(AwsLimit):
    """EC2 took an instance away, or had no room for it after all."""

    json_name = "Interrupted"


_AGAIN = "run the same command again"
# The beginning of a StateReason's code: the error that it becomes, what happened to the instance, and the next step.
_ENDS: tuple[tuple[str, type[AwsError], str, str], ...] = (
    (
        "Server.Spot",
        SpotReclaimed,
        "EC2 took the spot instance {} away",
        f"{_AGAIN}, or write `aws: {{purchase: on-demand}}`",
    ),
    (
        "Server.Insufficient",
        SpotReclaimed,
        "EC2 had no capacity for {} after all",
        f"{_AGAIN}, or name more `aws.instance_types` or `aws.subnets` in other zones",
    ),
    (
        "Client.InternalError",
        AwsNoAccess,
        "EC2 ended {} at its launch, as it does where a volume's KMS key cannot be used",
        KMS_HINT,
    ),
    ("Client.InvalidKMSKey", AwsNoAccess, "EC2 ended {} at its launch: a volume's KMS key cannot be used", KMS_HINT),
    ("Client.VolumeLimit", AwsLimit, "EC2 ended {} at its launch: the quota of volumes is used up", QUOTA_HINT),
    ("Client.InvalidSnapshot", AwsNotFound, "EC2 ended {} at its launch: a snapshot of the AMI is gone", ""),
    (
        "Client.UserInitiated",
        AwsError,
        "somebody stopped {} before it was done",
        f"{_AGAIN}; let nobody stop instances that are tagged `parbake:managed`",
    ),
    ("Server.", AwsError, "EC2 ended {} for reasons of its own", _AGAIN),
)


def ended(identity: str, code: str) -> AwsError | None:
    """Return why EC2 ended an instance before its verdict; None if it powered itself off."""
    for beginning, error, what, hint in _ENDS:
        if code.startswith(beginning):
            return error(f"{what.format(identity)} ({code})", code=code, hint=hint)
    return None


def explained(error: AwsError, zone: str, profile: str) -> ParbakeError:
    """Say what RunInstances means where AWS's own word names something else."""
    what, code = error.message, error.code
    choose = "`aws.instance_types`, or remove it to let parbake choose"
    if "does not match the architecture" in what:
        return InputError(what, hint=f"name types for the Bakefile's `platform` in {choose}")
    if code == "InvalidParameterValue" and "InstanceType" in what:
        return InputError(what, hint=f"correct {choose}")
    if "iamInstanceProfile" in what or "IAM Instance Profile" in what:
        hint = f"make it (`parbake iam` prints its policy), or correct `aws.instance_profile` ({profile})"
        error = AwsNotFound(what, code=code, hint=hint)
    elif code == "UnauthorizedOperation" and profile:
        hint = f"{error.hint}; an instance profile also needs iam:PassRole on its role"
        error = AwsNoAccess(what, code=code, hint=hint)
    elif code == "InvalidBlockDeviceMapping":
        hint = "the AMI's own root volume is larger: raise `size` in the Bakefile, or remove it"
        error = AwsError(what, code=code, hint=hint)
    elif code not in CAPACITY and not isinstance(error, AwsNotFound | AwsLimit):
        error = type(error)(f"{what} (in {zone})", code=code, hint=error.hint)
    return error
