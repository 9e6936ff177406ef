"""What moto lacks of images and snapshots that grow old: deprecation, fast snapshot restore, snapshots in use.

Also who else uses images, and images that are protected: EC2 API reference, DescribeImageReferences,
CreateImageUsageReport, DescribeImageUsageReports (pending at first), DescribeImageUsageReportEntries (none of a report
that is pending), DeregisterImage; EC2 user guide, "Protect an AMI from deregistration". Answered before moto does. Not
modelled: the time that anything takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from standins.aws.boto_clients import raw
from standins.fastrestores import FastRestores

Answer = dict[str, Any]
_OK = SimpleNamespace(status_code=200)


@dataclass
class Shelves:
    """``deprecated``: images with the time; ``fast``: fast snapshot restores; ``protected``: images, and how.

    ``references`` are ARNs of what refers to an image, with their types; ``elsewhere`` what uses it in other accounts:
    account, type and count. ``reports`` are those that were asked for, with how many looks find them pending.
    """

    deprecated: dict[str, str] = field(default_factory=dict)
    fast: FastRestores = field(default_factory=FastRestores)
    protected: dict[str, str] = field(default_factory=dict)
    references: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    elsewhere: dict[str, list[tuple[str, str, int]]] = field(default_factory=dict)
    reports: dict[str, list[Any]] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)

    def attach(self, made: Any, service: str, region: str) -> None:
        """Answer for moto in one boto3 client."""
        if service == "ec2":
            for operation, answer in {
                "EnableImageDeprecation": self._deprecate,
                "DisableImageDeprecation": self._undeprecate,
                "DescribeFastSnapshotRestores": self._restores,
                "EnableFastSnapshotRestores": self._restore,
                "DisableFastSnapshotRestores": self._no_restores,
                "DescribeImageReferences": self._references,
                "CreateImageUsageReport": self._report,
                "DescribeImageUsageReports": self._reports,
                "DescribeImageUsageReportEntries": self._entries,
            }.items():
                made.meta.events.register(f"before-call.ec2.{operation}", self._handler(operation, answer))
            made.meta.events.register("after-call.ec2.DescribeImages", self._guards)

            def deregister(params: Answer, **_: Any) -> Any:
                return self._refuse_protected(params["body"]["ImageId"])

            made.meta.events.register("before-call.ec2.DeregisterImage", deregister)

            def attribute(params: Answer, **_: Any) -> Any:
                return _refuse_unknown(params["body"]["ImageId"], region)

            made.meta.events.register("before-call.ec2.DescribeImageAttribute", attribute)

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

    def _handler(self, operation: str, answer: Any) -> Any:
        def handle(params: Answer, **_: Any) -> Any:
            if operation in self.denied:
                return _refused("UnauthorizedOperation", "You are not authorized to perform this operation.")
            return _OK, answer(params["body"])

        return handle

    def _guards(self, parsed: Answer, **_: Any) -> None:
        for image in parsed.get("Images", ()):
            image["DeregistrationProtection"] = self.protected.get(image["ImageId"], "disabled")

    def _refuse_protected(self, image: str) -> Any:
        if self.protected.get(image, "disabled") == "disabled":
            return None
        return _refused("OperationNotPermitted", f"The image {image} is protected from deregistration")

    def _references(self, asked: Answer) -> Answer:
        wanted = set(listed(asked, "ImageId."))
        kinds = {value for key, value in asked.items() if key.endswith(".ResourceType")}
        found = [(image, *each) for image in wanted for each in self.references.get(image, ()) if each[0] in kinds]
        return {"ImageReferences": [{"ImageId": image, "ResourceType": kind, "Arn": arn} for image, kind, arn in found]}

    def _report(self, asked: Answer) -> Answer:
        self.reports.setdefault(asked["ImageId"], [datetime.now(UTC), 1])
        return {"ReportId": f"amiur-{asked['ImageId'][4:]}"}

    def _reports(self, asked: Answer) -> Answer:
        found = []
        for image in listed(asked, "ImageId."):
            if image in self.reports:
                made, looks = self.reports[image]
                self.reports[image][1] = looks - 1
                state = "pending" if looks > 0 else "available"
                found.append({"ImageId": image, "ReportId": f"amiur-{image[4:]}", "State": state, "CreationTime": made})
        return {"ImageUsageReports": found}

    def _entries(self, asked: Answer) -> Answer:
        image = f"ami-{listed(asked, 'ReportId.')[0][6:]}"
        assert self.reports[image][1] < 0, "nobody reads what is pending"
        found = [
            {"AccountId": account, "ResourceType": kind, "UsageCount": count, "ImageId": image}
            for account, kind, count in self.elsewhere.get(image, ())
        ]
        return {"ImageUsageReportEntries": found}


def _refused(code: str, message: str) -> Any:
    return SimpleNamespace(status_code=400), {"Error": {"Code": code, "Message": message}}


def listed(asked: Answer, prefix: str) -> list[str]:
    """Return the values of a list that the query protocol flattened."""
    return [str(value) for key, value in asked.items() if key.startswith(prefix)]


def _refuse_unknown(image: str, region: str) -> Any:
    """Refuse an image that is gone, where moto breaks."""
    known = raw("ec2", region).describe_images(Filters=[{"Name": "image-id", "Values": [image]}])["Images"]
    return None if known else _refused("InvalidAMIID.NotFound", f"The image id '[{image}]' does not exist")


def _refuse_in_use(snapshot: str, region: str) -> Any:
    images = raw("ec2", region).describe_images(Owners=["self"])["Images"]
    for image in images:
        if any(each.get("Ebs", {}).get("SnapshotId") == snapshot for each in image["BlockDeviceMappings"]):
            error = {"Code": "InvalidSnapshot.InUse", "Message": f"{snapshot} is in use by {image['ImageId']}"}
            return SimpleNamespace(status_code=400), {"Error": error}
    return None
