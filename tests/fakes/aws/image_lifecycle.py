"""What moto lacks of images and snapshots that grow old: deprecation, fast snapshot restore, snapshots in use.

Answered before moto does. Not modelled: the time that anything takes, credits, other accounts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from tests.fakes.aws.boto_clients import raw
from tests.fakes.fastrestores import FastRestores

Answer = dict[str, Any]
_OK = SimpleNamespace(status_code=200)


@dataclass
class Shelves:
    """``deprecated``: images with the time; ``fast``: fast snapshot restores."""

    deprecated: dict[str, str] = field(default_factory=dict)
    fast: FastRestores = field(default_factory=FastRestores)

    def attach(self, made: Any, service: str, region: str) -> None:
        """Answer for moto in one boto3 client."""
        if service == "ec2":
            for operation, answer in {
                "EnableImageDeprecation": self._deprecate,
                "DisableImageDeprecation": self._undeprecate,
                "DescribeFastSnapshotRestores": self._restores,
                "EnableFastSnapshotRestores": self._restore,
                "DisableFastSnapshotRestores": self._no_restores,
            }.items():
                made.meta.events.register(f"before-call.ec2.{operation}", _handler(answer))

            def delete_snapshot(params: Answer, **_: Any) -> Any:
                return _refuse_in_use(params["body"]["SnapshotId"], region)

            made.meta.events.register("before-call.ec2.DeleteSnapshot", delete_snapshot)
        if service == "ssm":

            def describe_parameters(**_: Any) -> Any:
                ssm = raw("ssm", region)
                names = [each["Name"] for each in ssm.describe_parameters()["Parameters"]]
                found = [ssm.get_parameter(Name=name)["Parameter"] for name in names]
                images = [{"Name": each["Name"]} for each in found if each["DataType"] == "aws:ec2:image"]
                return _OK, {"Parameters": images}

            made.meta.events.register("before-call.ssm.DescribeParameters", describe_parameters)

    def _deprecate(self, asked: Answer) -> Answer:
        self.deprecated[asked["ImageId"]] = asked["DeprecateAt"]
        return {"Return": True}

    def _undeprecate(self, asked: Answer) -> Answer:
        self.deprecated.pop(asked["ImageId"], None)
        return {"Return": True}

    def _restores(self, asked: Answer) -> Answer:
        names = {value: key for key, value in asked.items() if key.startswith("Filter.") and key.endswith(".Name")}
        values = {name: listed(asked, key.removesuffix("Name") + "Value.") for name, key in names.items()}
        return {"FastSnapshotRestores": self.fast.look(values["snapshot-id"], values.get("state", ()))}

    def _restore(self, asked: Answer) -> Answer:
        return self.fast.enable(listed(asked, "SourceSnapshotId."), listed(asked, "AvailabilityZone."))

    def _no_restores(self, asked: Answer) -> Answer:
        return self.fast.disable(listed(asked, "SourceSnapshotId."), listed(asked, "AvailabilityZone."))


def listed(asked: Answer, prefix: str) -> list[str]:
    """Return the values of a list that the query protocol flattened."""
    return [str(value) for key, value in asked.items() if key.startswith(prefix)]


def _handler(answer: Any) -> Any:
    def handle(params: Answer, **_: Any) -> Any:
        return _OK, answer(params["body"])

    return handle


def _refuse_in_use(snapshot: str, region: str) -> Any:
    images = raw("ec2", region).describe_images(Owners=["self"])["Images"]
    for image in images:
        if any(each.get("Ebs", {}).get("SnapshotId") == snapshot for each in image["BlockDeviceMappings"]):
            error = {"Code": "InvalidSnapshot.InUse", "Message": f"{snapshot} is in use by {image['ImageId']}"}
            return SimpleNamespace(status_code=400), {"Error": error}
    return None
