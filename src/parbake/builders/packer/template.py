"""What a Bakefile says, as the values of the template's variables, and the folder as a whole. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from parbake.bakefile import Bakefile
from parbake.bakefile.bases import AmiSource
from parbake.core.errors import InputError
from parbake.core.families import BOTTLEROCKET
from parbake.core.model import GIB, Image
from parbake.core.reference import Reference

_PLAIN_FILES = (
    "README.md", "node.pkr.hcl", "variables.pkr.hcl", "scripts/bake.sh", "scripts/login.sh",
    "scripts/pull-containerd.sh", "scripts/pull-docker.sh", "scripts/seal.sh",
)  # fmt: skip
VALUES = "node.auto.pkrvars.json"
"""The file of the values."""
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "arm64"}
_INSTANCE_TYPES = {"amd64": "m7i.large", "arm64": "m7g.large"}
_CANONICAL = "099720109477"
# EKS's AMIs have 20 GiB; without asking a registry nobody knows what comes on top.
_USUAL_GIB = 50
_HEAD = (
    "The values of variables.pkr.hcl, as parbake found them in its Bakefile. "
    "-var NAME=VALUE replaces one; parbake writes this file anew with --force."
)


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of the folder (path to text), and what in the Bakefile is not Packer's to do."""

    files: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def folder(bakefile: Bakefile, images: Sequence[Image] = (), *, size: int = 0) -> Folder:
    """Return the folder for a Bakefile.

    ``images`` are what its references resolved to: then they are baked by digest. ``size`` is that of the volume in
    bytes (0: the Bakefile's own, or a usual one). Raises InputError where Packer cannot bake what the Bakefile says.
    """
    source = _source(bakefile)
    pick = "source-by-parameter" if source.parameter(bakefile.platform) else "source-by-name"
    files = {name: _file(name) for name in _PLAIN_FILES}
    files["source.pkr.hcl"] = _file(f"{pick}.pkr.hcl")
    files[VALUES] = values_text({"//": _HEAD, **variables(bakefile, images, size=size)})
    return Folder(dict(sorted(files.items())), _warnings(bakefile))


def variables(bakefile: Bakefile, images: Sequence[Image] = (), *, size: int = 0) -> dict[str, Any]:
    """Return the value of each variable that the Bakefile says something about."""
    source, aws, architecture = _source(bakefile), bakefile.aws, bakefile.platform.architecture
    if architecture not in _ARCHITECTURES:
        raise InputError(f"EC2 has no instances for {bakefile.platform}", hint="write linux/amd64 or linux/arm64")
    types = aws.instance_types or (_INSTANCE_TYPES[architecture],)
    values: dict[str, Any] = {
        "IMAGE": " ".join(reference_text(bakefile, images)),
        "NAME": bakefile.name,
        "SOURCE_AMI": source.id or source.name,
        "SOURCE_AMI_PARAMETER": source.parameter(bakefile.platform),
        "SOURCE_AMI_OWNERS": _owners(source),
        "REGION": aws.region,
        "ARCHITECTURE": source.architecture or _ARCHITECTURES[architecture],
        "INSTANCE_TYPE": types[0],
        "SPOT_INSTANCE_TYPES": types if aws.purchase != "on-demand" else (),
        "SUBNET_ID": aws.subnets[0] if aws.subnets else None,
        "SECURITY_GROUP_IDS": aws.security_groups or None,
        "INSTANCE_PROFILE": (aws.instance_profile or "").rpartition("/")[2] or None,
        "SSH_USERNAME": source.family.login,
        "ROOT_DEVICE": source.family.root,
        "TIME_LIMIT_MINUTES": max(1, round(bakefile.time_limit / 60)),
        "VOLUME_SIZE": -(-(bakefile.size or size) // GIB) or _USUAL_GIB,
        "VOLUME_IOPS": aws.volume.iops,
        "VOLUME_THROUGHPUT": aws.volume.throughput,
        "ENCRYPTED": aws.encrypted or None,
        "KMS_KEY_ID": aws.key_in(aws.region or ""),
        "COPY_TO": aws.copy_to,
        "SHARE_WITH_ACCOUNTS": [each for each in aws.share_with if each.isdigit()],
        "SHARE_WITH_ORGANISATIONS": [each for each in aws.share_with if ":organization/" in each],
        "SHARE_WITH_UNITS": [each for each in aws.share_with if ":ou/" in each],
        "DEPRECATE_AFTER": f"{aws.deprecate_after * 24}h" if aws.deprecate_after else None,
        "TAGS": aws.tags,
    }
    return {name: value for name, value in values.items() if value not in (None, "", (), [], {})}


def values_text(values: Mapping[str, Any]) -> str:
    """Return the file of the values."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def reference_text(bakefile: Bakefile, images: Sequence[Image] = ()) -> list[str]:
    """Return what to bake as IMAGE names it: references in full, with the digest where it is known.

    The sandbox image goes along where the Bakefile names one.
    """
    pins = {image.reference: image.target.digest for image in images}
    found = []
    for entry in bakefile.images:
        reference = entry.reference
        if reference.is_local:
            raise InputError(
                f"{reference} is only on this machine, and Packer's instance pulls from a registry",
                hint="name it with a registry, so that the build is pushed there",
            )
        found.append(_pinned(reference, pins.get(reference, "")))
    if sandbox := bakefile.named_sandbox:
        found.append(_pinned(sandbox, pins.get(sandbox, "")))
    return found


def _pinned(reference: Reference, digest: str) -> str:
    return str(reference) if reference.digest or not digest else f"{reference}@{digest}"


def _source(bakefile: Bakefile) -> AmiSource:
    source = bakefile.base.ami
    if source is None:
        raise InputError(
            "Packer bakes onto an AMI, and the Bakefile's base is none",
            hint='write base: {eks: al2023, kubernetes: "1.36"}, or base: {ami_filter: {name: amazon-eks-node-*}}',
        )
    if source.family == BOTTLEROCKET:
        raise InputError(
            "Bottlerocket has no shell that Packer could use",
            hint="write `builder: ec2` and `artefact: {kind: volume}`, which fill Bottlerocket's own data volume",
        )
    return source


def _owners(source: AmiSource) -> list[str]:
    if source.owner:
        return [source.owner]
    return [_CANONICAL] if source.eks == "ubuntu" else ["self", "amazon"]


def _warnings(bakefile: Bakefile) -> tuple[str, ...]:
    """Say what the Bakefile asks for and Packer's folder does not do."""
    found = []
    if bakefile.aws.fast_at_bake:
        found.append("aws.fast_snapshot_restore: Packer does not do that; with `at: rollout`, `parbake rollout` does")
    if len(bakefile.aws.subnets) > 1:
        found.append(f"aws.subnets: Packer takes one, {bakefile.aws.subnets[0]}")
    for host, options in bakefile.registries.items():
        if options.credentials in {"docker", "environment"} or options.plain_http or options.ca or options.mirrors:
            found.append(
                f"registries.{host}: Packer's instance logs in only to ECR, and this setting does not reach it"
            )
    return tuple(found)


def _file(name: str) -> str:
    return resources.files(__package__).joinpath("files", name).read_text()
