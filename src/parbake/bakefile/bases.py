"""The Bakefile's ``base``: what to bake onto, in the user's words and shorthands."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, ValidationInfo
from pydantic import field_validator as check

from parbake.bakefile.sections import Section, Via
from parbake.bakefile.values import File, Package, Scalar, close, matching, text_schema, wrong
from parbake.core.families import BOTTLEROCKET, BY_WORD, NodeFamily, family_of_ami
from parbake.core.model import Frozen, Platform

_EKS = ("al2023", "al2", "bottlerocket", "ubuntu")
_LAST_AL2 = 32  # EKS publishes no Amazon Linux 2 AMI for Kubernetes after 1.32
_WAYS = ("debian", "file", "ami", "ami_filter", "ssm", "eks")
_NEEDS_EKS = "it needs eks"


class AmiSource(Frozen):
    """Which AMI to bake onto: exactly one of ``id``, ``name`` (a filter with wildcards), ``ssm``, ``eks``.

    ``owner`` (an account, ``amazon``, ``self``) and ``architecture`` (EC2's word) narrow it; the others are ``eks``'s.
    """

    id: str = ""
    name: str = ""
    owner: str = ""
    architecture: str = ""
    ssm: str = ""
    eks: Literal["", "al2023", "al2", "bottlerocket", "ubuntu"] = ""
    kubernetes: str = ""
    gpu: Literal["", "nvidia", "neuron"] = ""

    @property
    def family(self) -> NodeFamily:
        """Its family, where it says that by itself: an id and a parameter of the user's do not."""
        if "/bottlerocket/" in self.ssm:
            return BOTTLEROCKET
        return BY_WORD.get(self.eks) or family_of_ami(self.name)

    def parameter(self, platform: Platform) -> str:
        """Return the name of the SSM public parameter that holds the id of the AMI for a platform.

        Sources: Amazon EKS user guide, "Retrieve recommended Amazon Linux AMI IDs" and "… Bottlerocket AMI IDs";
        Canonical, "Find Ubuntu images on AWS".
        """
        arm, version = platform.architecture == "arm64", self.kubernetes
        machine = "arm64" if arm else "x86_64"
        match self.eks:
            case "al2023":
                kind = self.gpu or "standard"
                folder = f"/aws/service/eks/optimized-ami/{version}/amazon-linux-2023/{machine}/{kind}"
                return f"{folder}/recommended/image_id"
            case "al2":
                suffix = "-gpu" if self.gpu else "-arm64" if arm else ""
                return f"/aws/service/eks/optimized-ami/{version}/amazon-linux-2{suffix}/recommended/image_id"
            case "bottlerocket":
                variant = f"aws-k8s-{version}" + (f"-{self.gpu}" if self.gpu else "")
                return f"/aws/service/bottlerocket/{variant}/{machine}/latest/image_id"
            case "ubuntu":
                minor = int(version.partition(".")[2] or 0)
                release, disk = ("24.04", "gp3") if minor > 30 else ("22.04" if minor > 28 else "20.04", "gp2")
                folder = f"/aws/service/canonical/ubuntu/eks/{release}/{version}/stable/current"
                return f"{folder}/{platform.architecture}/hvm/ebs-{disk}/ami-id"
        return self.ssm


class BaseChoice(Frozen):
    """What the user bakes onto: the default base with ``packages``, a disk image at ``path``, an AMI, or nothing."""

    kind: Literal["debian", "file", "none", "ami"] = "debian"
    path: Path | None = None
    packages: tuple[str, ...] = ()
    serial: str = ""
    ami: AmiSource | None = None


def _kubernetes(text: str) -> str:
    if not re.fullmatch(r"1\.[0-9]{2}", text):
        bare = re.match(r"v?(1\.[0-9]{2})\b", text)
        raise wrong(f"{text!r} is not a Kubernetes version", f"write {bare.group(1) if bare else '1.36'}")
    return text


def _pattern(text: str) -> str:
    if not 3 <= len(text) <= 128:
        raise wrong(f"{text!r} is not a valid AMI name: 3 to 128 characters, * and ? for any", "")
    return text


_OWNER = "[0-9]{12}|amazon|self|aws-marketplace"
AmiId = Annotated[
    str,
    matching("ami-([0-9a-f]{8}|[0-9a-f]{17})", "a valid AMI id", "such as ami-0123456789abcdef0"),
    text_schema("^ami-[0-9a-f]+$", "ami-0123456789abcdef0"),
]
Kubernetes = Annotated[str, AfterValidator(_kubernetes), text_schema(r"^1\.[0-9]{2}$", "1.36")]
Owner = Annotated[
    str,
    matching(_OWNER, "a valid AMI owner", "an account of 12 digits, amazon, or self"),
    text_schema(f"^({_OWNER})$", "602401143452", "self"),
]
Parameter = Annotated[
    str,
    matching("/[A-Za-z0-9_./-]+", "a valid SSM parameter name", "such as /aws/service/…/image_id"),
    text_schema("^/[A-Za-z0-9_./-]+$"),
]
AmiName = Annotated[str, AfterValidator(_pattern), text_schema("", "amazon-eks-node-al2023-x86_64-nvidia-1.36-*")]


class DebianSection(Section):
    """The default base: Debian with a kernel, systemd, containerd, runc and cloud-init."""

    packages: tuple[Package, ...] = ()
    """Debian packages to add."""
    serial: Scalar = ""
    """Any text, such as a date. Changing it rebuilds the base, with the packages of that day."""


class AmiFilterSection(Section):
    """An AMI by its name; of those that fit, the newest wins."""

    name: AmiName
    """The name, with the wildcards * and ?."""
    owner: Owner = "amazon"
    """Its owner: an account number, `amazon` or `self`."""
    architecture: Literal["x86_64", "arm64"] | None = None
    """The architecture as EC2 calls it. Default: that of the Bakefile's platform."""


class BaseSection(Section):
    """What to bake onto: exactly one of these (`kubernetes` and `gpu` go with `eks`)."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [way]} for way in _WAYS]})

    debian: DebianSection | None = None
    """The default base, with choices."""
    file: File | None = None
    """A disk image (raw or qcow2) with a root file system and containerd, relative to the Bakefile."""
    ami: AmiId | None = None
    """An AMI, by its id."""
    ami_filter: AmiFilterSection | None = None
    """An AMI, by its name, owner and architecture: the newest that fits."""
    ssm: Parameter | None = None
    """An AMI, by the SSM parameter (public or your own) that holds its id."""
    eks: Literal["al2023", "al2", "bottlerocket", "ubuntu"] | None = None
    """The recommended AMI for nodes of EKS, for the Kubernetes version below."""
    kubernetes: Kubernetes | None = None
    """The Kubernetes version of `eks`, in quotes."""
    gpu: Literal["nvidia", "neuron"] | None = None
    """The variant of `eks` for accelerators."""

    @check("kubernetes")
    @classmethod
    def _is_for_eks(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and not info.data.get("eks"):
            raise wrong(f"kubernetes has no effect here: {_NEEDS_EKS}", "write eks: al2023 beside it, or remove it")
        if value and info.data.get("eks") == "al2" and int(value[2:]) > _LAST_AL2:
            raise wrong(f"there is no Amazon Linux 2 for Kubernetes {value}", "write eks: al2023")
        return value

    @check("gpu")
    @classmethod
    def _has_a_variant(cls, value: str | None, info: ValidationInfo) -> str | None:
        eks = info.data.get("eks")
        if value and not eks:
            raise wrong(f"gpu has no effect here: {_NEEDS_EKS}", "write eks: al2023 beside it, or remove it")
        if value and (eks == "ubuntu" or (value == "neuron" and eks == "bottlerocket")):
            raise wrong(f"there is no {value} variant of {eks} among the public AMIs", "use al2023, or name an AMI")
        return value

    def choice(self) -> BaseChoice:
        """Return the choice; raises when there is none or more than one."""
        given = [name for name in _WAYS if getattr(self, name) is not None]
        if len(given) != 1:
            raise wrong(f"must be exactly one of {', '.join(_WAYS)}", "write base: debian")
        if self.debian:
            packages = tuple(sorted(set(self.debian.packages)))
            return BaseChoice(kind="debian", packages=packages, serial=self.debian.serial)
        if self.file:
            return BaseChoice(kind="file", path=self.file)
        return BaseChoice(kind="ami", ami=self._source())

    def _source(self) -> AmiSource:
        if self.ami_filter:
            by = self.ami_filter
            return AmiSource(name=by.name, owner=by.owner, architecture=by.architecture or "")
        if self.eks:
            if not self.kubernetes:
                raise wrong("eks needs the Kubernetes version", 'write kubernetes: "1.36" beside it')
            return AmiSource(eks=self.eks, kubernetes=self.kubernetes, gpu=self.gpu or "")
        return AmiSource(id=self.ami or "", ssm=self.ssm or "")


def _base(text: str) -> object:
    if text in {"debian", "none"}:
        return BaseChoice(kind=text)
    if text.startswith("ami-"):
        return {"ami": text}
    if text in _EKS:
        raise wrong(f"{text!r} needs the Kubernetes version", f'write base: {{eks: {text}, kubernetes: "1.36"}}')
    if "/" in text or "." in text:
        raise wrong(f"{text!r} is not a valid base", f"for a disk image, write base: {{file: {text}}}")
    raise wrong(f"{text!r} is not a valid base", close(text, ("debian", "none", "file")))


BaseText = Annotated[
    BaseChoice,
    Via(
        BaseSection,
        BaseSection.choice,
        _base,
        {"anyOf": [{"enum": ["debian", "none"]}, {"type": "string", "pattern": "^ami-[0-9a-f]+$"}]},
    ),
]
