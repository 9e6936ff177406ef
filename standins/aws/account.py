"""What moto lacks of an account's settings: Allowed AMIs, public access, quotas; and rights that somebody lacks.

Answered before moto does, as the API documentation words it: EC2 API reference, GetAllowedImagesSettings,
GetEbsDefaultKmsKeyId, GetImageBlockPublicAccessState, GetSnapshotBlockPublicAccessState, DescribeImages
(``ImageAllowed``, ``PlatformDetails``, ``DeregistrationProtection``); Service Quotas API reference, ListServiceQuotas.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from standins.fastrestores import FastRestores

_OK, _NO = SimpleNamespace(status_code=200), SimpleNamespace(status_code=403)


@dataclass
class Account:
    """``denied`` are operations that nobody may use; ``images`` what DescribeImages says besides, by id."""

    allowed_images: str = "disabled"
    public_images: str = "block-new-sharing"
    public_snapshots: str = "block-all-sharing"
    quotas: dict[str, float] = field(
        default_factory=lambda: {"Fast snapshot restore": 5.0, "Snapshots per Region": 100000.0}
    )
    fast: FastRestores = field(default_factory=FastRestores)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)

    def attach(self, made: Any, service: str) -> None:
        """Answer for moto in one boto3 client."""
        events = made.meta.events
        answers: dict[str, Any] = {
            "ec2": {
                "GetEbsDefaultKmsKeyId": lambda: {"KmsKeyId": "alias/aws/ebs"},
                "GetAllowedImagesSettings": lambda: {"State": self.allowed_images},
                "GetImageBlockPublicAccessState": lambda: {"ImageBlockPublicAccessState": self.public_images},
                "GetSnapshotBlockPublicAccessState": lambda: {"State": self.public_snapshots},
                "DescribeFastSnapshotRestores": self._restores,
            },
            "service-quotas": {"ListServiceQuotas": self._quotas},
        }
        for operation, answer in answers.get(service, {}).items():

            def reply(model: Any, answer: Any = answer, **_: Any) -> Any:
                return self._refuse(model) or (_OK, answer())

            events.register(f"before-call.{service}.{operation}", reply)
        if service == "ec2":
            events.register("after-call.ec2.DescribeImages", self._more)
        events.register_first(f"before-call.{service}", self._refuse)

    def _quotas(self) -> dict[str, Any]:
        return {"Quotas": [{"QuotaName": name, "Value": value} for name, value in self.quotas.items()]}

    def _restores(self) -> dict[str, Any]:
        return {"FastSnapshotRestores": self.fast.look([name for name, _ in self.fast.states])}

    def _more(self, parsed: dict[str, Any], **_: Any) -> None:
        for image in parsed.get("Images", ()):
            image.update(self.images.get(image["ImageId"], {}))

    def _refuse(self, model: Any, **_: Any) -> Any:
        if model.name not in self.denied:
            return None
        error = {"Code": "UnauthorizedOperation", "Message": "You are not authorized to perform this operation."}
        return _NO, {"Error": error}
