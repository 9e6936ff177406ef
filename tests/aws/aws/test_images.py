"""Which AMI is baked onto: by id, by name, by parameter."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import boto3
import pytest

from parbake import aws
from parbake.bakefile.bases import AmiSource
from parbake.core.errors import AwsNotFound, BadBase
from parbake.core.model import Platform
from tests.aws.conftest import REGION

AMD64, ARM64 = Platform(architecture="amd64"), Platform(architecture="arm64")

EKS, CANONICAL = "/aws/service/eks/optimized-ami", "/aws/service/canonical/ubuntu/eks"
PARAMETERS = {
    ("al2023", "1.33", "", "amd64"): f"{EKS}/1.33/amazon-linux-2023/x86_64/standard/recommended/image_id",
    ("al2023", "1.33", "nvidia", "arm64"): f"{EKS}/1.33/amazon-linux-2023/arm64/nvidia/recommended/image_id",
    ("al2", "1.30", "nvidia", "amd64"): f"{EKS}/1.30/amazon-linux-2-gpu/recommended/image_id",
    ("al2", "1.30", "", "arm64"): f"{EKS}/1.30/amazon-linux-2-arm64/recommended/image_id",
    ("bottlerocket", "1.33", "nvidia", "amd64"): "/aws/service/bottlerocket/aws-k8s-1.33-nvidia/x86_64/latest/image_id",
    ("ubuntu", "1.33", "", "amd64"): f"{CANONICAL}/24.04/1.33/stable/current/amd64/hvm/ebs-gp3/ami-id",
    ("ubuntu", "1.29", "", "arm64"): f"{CANONICAL}/22.04/1.29/stable/current/arm64/hvm/ebs-gp2/ami-id",
}


@pytest.mark.parametrize("asked", PARAMETERS, ids=" ".join)
def test_names_of_public_parameters(asked: tuple[str, str, str, str]) -> None:
    eks, version, gpu, architecture = asked
    source = AmiSource.model_validate({"eks": eks, "kubernetes": version, "gpu": gpu})
    assert source.parameter(Platform(architecture=architecture)) == PARAMETERS[asked]


@pytest.fixture
def images(aws_mock: None) -> list[str]:
    """Four AMIs of mine, oldest first."""
    del aws_mock
    ec2 = boto3.client("ec2", REGION)
    made = []
    for day, (name, architecture) in enumerate(
        [("node-1.23-v1", "x86_64"), ("node-1.23-v2", "x86_64"), ("node-1.23-v3", "arm64"), ("other", "x86_64")], 1
    ):
        made.append(
            ec2.register_image(
                Name=name,
                Architecture=architecture,
                RootDeviceName="/dev/xvda",
                BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 20}}],
            )["ImageId"]
        )
        _completed(made[-1], day, architecture)
    return made


def _completed(image: str, day: int, architecture: str) -> None:
    """Say what moto leaves out."""
    from moto.ec2.models import ec2_backends

    backend: Any = ec2_backends["123456789012"][REGION]
    backend.amis[image].architecture = architecture
    backend.amis[image].root_device_type = "ebs"
    backend.amis[image].creation_date = datetime(2026, 1, day, tzinfo=UTC)


def test_the_newest_that_fits_wins(images: list[str]) -> None:
    found = aws.find_source(AmiSource(name="node-1.23-*", owner="self"), AMD64)
    assert (found.id, found.name, found.region) == (images[1], "node-1.23-v2", REGION)
    assert aws.find_source(AmiSource(name="node-1.23-*", owner="self"), ARM64).id == images[2]


def test_none_that_fits_shows_the_nearest(images: list[str]) -> None:
    del images
    with pytest.raises(AwsNotFound, match=r"nearest: .*node-1\.23-v2") as caught:
        aws.find_source(AmiSource(name="node-1.24-*", owner="self"), AMD64)
    assert "ami_filter" in caught.value.hint
    with pytest.raises(AwsNotFound, match="no AMI of a similar name"):
        aws.find_source(AmiSource(name="zzz-*", owner="self"), AMD64)


def test_by_id(images: list[str]) -> None:
    assert aws.find_source(AmiSource(id=images[0]), AMD64).id == images[0]
    with pytest.raises(AwsNotFound):
        aws.find_source(AmiSource(id="ami-0123456789abcdef0"), AMD64)


def test_another_architecture_is_refused(images: list[str]) -> None:
    with pytest.raises(BadBase, match="is for arm64"):
        aws.find_source(AmiSource(id=images[2]), AMD64)
    with pytest.raises(BadBase, match="no instances for linux/s390x"):
        aws.find_source(AmiSource(id=images[2]), Platform(architecture="s390x"))


def test_by_parameter(images: list[str]) -> None:
    boto3.client("ssm", REGION).put_parameter(Name="/ours/node", Value=images[0], Type="String")
    assert aws.find_source(AmiSource(ssm="/ours/node"), AMD64).id == images[0]
    with pytest.raises(AwsNotFound, match="no SSM parameter /none"):
        aws.find_source(AmiSource(ssm="/none"), AMD64)


def test_what_cannot_be_baked_onto() -> None:
    image: dict[str, Any] = {"ImageId": "ami-1", "Architecture": "x86_64", "RootDeviceType": "instance-store"}
    with pytest.raises(BadBase, match="not an EBS volume"):
        aws.images.described(image, REGION)
    with pytest.raises(BadBase, match="is pending"):
        aws.images.described({**image, "RootDeviceType": "ebs", "State": "pending"}, REGION)


def test_volumes_are_told_root_first() -> None:
    image = {
        "ImageId": "ami-1",
        "Architecture": "x86_64",
        "RootDeviceName": "/dev/xvda",
        "BlockDeviceMappings": [
            {"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"},
            {"DeviceName": "/dev/xvdb", "Ebs": {"SnapshotId": "snap-2", "VolumeSize": 20}},
            {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": "snap-1", "VolumeSize": 4}},
        ],
    }
    found = aws.images.described(image, REGION)
    assert (found.root_device, found.size, found.snapshots) == ("/dev/xvda", 4 << 30, ("snap-1", "snap-2"))


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("amazon-eks-node-al2023-x86_64-standard-1.36-v20260701", "standard"),
        ("amazon-eks-node-al2023-arm64-nvidia-1.36-v20260701", "nvidia"),
        ("amazon-eks-node-al2023-x86_64-neuron-1.36-v20260701", "neuron"),
        ("amazon-eks-gpu-node-1.30-v20250701", ""),  # for GPUs and Neuron
        ("shop-nvidia-1", ""),
    ],
)
def test_eks_says_the_variant_of_an_ami_in_its_name(name: str, variant: str) -> None:
    found = aws.images.described({"ImageId": "ami-1", "Architecture": "x86_64", "Name": name}, REGION)
    assert found.variant == variant
