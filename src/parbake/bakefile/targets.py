"""The targets of `rollout`, each of exactly one kind."""

from pathlib import Path
from typing import Annotated, Literal, override

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo
from pydantic import field_validator as check

from parbake.bakefile.sections import Section, Via
from parbake.bakefile.values import Duration, File, Name, PathText, Region, matching, text_schema, wrong

_DEVICE = r"/dev/(sd[a-z][0-9]{0,2}|xvd[a-z]{1,2}[0-9]{0,2})"
_PARAMETER = r"/?[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*"
ROLE = r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]+"
_EXTERNAL = r"[\w+=,.@:/-]{2,1224}"
RemedyKey = Literal["nothing", "hydrate", "boost", "rate", "gp3", "fsr", "auto"]
"""What targets say is done about cold blocks."""
RemedyName = Literal["nothing", "hydrate", "boost", "rate", "gp3", "fsr"]
"""What can be done about cold blocks, as targets say it and as ``parbake.aws.costs`` compares it."""
FASTEST_RATE = 300
"""What ``rate`` means where a target says no other, in MiB/s: the fastest that EBS sells."""
_KINDS = ("karpenter", "gitops", "asg", "nodegroup", "ocean", "ssm", "file")


def _tag(text: str) -> str:
    key, _, value = text.partition("=")
    if not key or not value or "*" in text or len(key) > 128 or len(value) > 256:
        raise wrong(f"{text!r} is not a valid tag", "write KEY=VALUE, such as image=gpu")
    if key.startswith(("parbake:", "aws:")):
        raise wrong(f"tags that begin with {key.partition(':')[0]}: are reserved", "choose another key")
    return text


def _no_option(text: str) -> str:
    if not text or text.startswith("-"):
        raise wrong(f"{text!r} is not a valid name", "write its name")
    return text


Device = Annotated[
    str, matching(_DEVICE, "an EC2 device name", "write /dev/xvdb"), text_schema(f"^{_DEVICE}$", "/dev/xvdb")
]
StorePath = Annotated[
    str,
    matching(r"(/[A-Za-z0-9._-]+)+", "an absolute path", "write such as /var/lib/rancher/k3s/agent/containerd"),
    text_schema(r"^(/[A-Za-z0-9._-]+)+$", "/var/lib/rancher/k3s/agent/containerd"),
]
Parameter = Annotated[
    str,
    matching(_PARAMETER, "a valid parameter name", "letters, digits, '.', '-', '_', and '/' between parts"),
    text_schema("^[A-Za-z0-9_./-]+$", "/nodes/gpu"),
]
Tag = Annotated[str, AfterValidator(_tag), text_schema("^[^=*]+=[^*]+$", "image=gpu")]
RoleArn = Annotated[
    str,
    matching(ROLE, "the ARN of a role", "such as arn:aws:iam::123456789012:role/parbake"),
    text_schema("^arn:aws[a-z-]*:iam::[0-9]{12}:role/", "arn:aws:iam::123456789012:role/parbake"),
]


def _goes_with_a_role(value: str, info: ValidationInfo) -> str:
    if not info.data.get("role"):
        raise wrong("an external id goes with a role", "write role: arn:aws:iam::ACCOUNT:role/NAME beside it")
    return value


ExternalId = Annotated[
    str,
    matching(_EXTERNAL, "an external id", "2 to 1224 letters, digits and some of +=,.@:/-"),
    AfterValidator(_goes_with_a_role),
    text_schema("", "fleet-7f3a"),
]
ResourceName = Annotated[str, AfterValidator(_no_option), text_schema("^[^-]")]


class TargetOptions(Section):
    """What a kind of target says of itself, for whoever asks; one that differs says so."""

    @property
    def takes_several_images(self) -> bool:
        """Whether it takes a machine image for each architecture."""
        return False

    @property
    def takes_files(self) -> bool:
        """Whether it takes what lies on this machine and in no cloud."""
        return False


class _Mounting(TargetOptions):
    """What targets say of how their nodes come to a volume's content."""

    mount: bool = True
    """Let the nodes' user data mount the volume over the runtime's store, grown to its disk, before the runtime starts.
    With `false` the nodes do it themselves."""
    root: StorePath = ""
    """Where the nodes' runtime keeps its store, where that is not what their containerd is configured with: for k3s
    /var/lib/rancher/k3s/agent/containerd, for RKE2 /var/lib/rancher/rke2/agent/containerd."""


class _WithVolume(_Mounting):
    """What targets say of a volume that their nodes get beside their own disk."""

    device: Device = "/dev/xvdb"
    """The device that a volume's snapshot is mapped to."""
    throughput: Annotated[int, Field(ge=125, le=2000)] | None = None
    """The volume's throughput, in MiB/s. Default: the target's own; for gp3, 125."""
    iops: Annotated[int, Field(ge=100, le=256000)] | None = None
    """The volume's IOPS. Default: the target's own; for gp3, 3,000."""

    @property
    def performance(self) -> dict[str, int]:
        """The volume's speed, in EC2's words."""
        return {name: value for name in ("throughput", "iops") if (value := getattr(self, name))}


class StartsSection(Section):
    """How nodes start, for `remedy: auto` to choose by: as the options of `parbake advise` say it."""

    launches: Annotated[float, Field(gt=0, le=1e6)] = 100.0
    """Nodes started a day."""
    burst: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Nodes that start at once in one zone."""
    boot: Duration = Field(default=20.0, json_schema_extra={"default": "20s"})
    """From the volume's attachment to the runtime's start."""
    lifetime: Duration = Field(default=28800.0, json_schema_extra={"default": "8h"})
    """How long a node lives."""
    node_hour: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """What a node costs an hour, in USD. Default: as `parbake advise` shows it."""
    measured: tuple[File, ...] = ()
    """Files with figures that were measured, as for `parbake advise --measured`."""


class _WithRemedy(_WithVolume):
    """What node classes say of the remedy for a volume's cold blocks: one, in the words of `parbake advise`."""

    remedy: RemedyKey | None = None
    """What is done about blocks that a new volume has yet to load: `nothing`, `hydrate` (the nodes' user data loads
    early what the images' starts read), `boost` (that, from a volume which is raised until it is done; the nodes' role
    needs what `parbake iam` prints as `nodes`), `rate` (EBS loads all, at `initialization_rate`), `gp3` (raised for as
    long as the node lives: to 16,000 IOPS and 1,000 MiB/s, unless the target or the size says others) or `fsr`
    (`aws.fast_snapshot_restore` says where). `auto` is what costs least of them but for `boost`, by the bake's trace
    and `starts`. Default: nothing, and `aws.fast_snapshot_restore` where it is."""
    starts: StartsSection = Field(default_factory=StartsSection.model_construct)
    """With `remedy: auto`: how nodes start."""
    initialization_rate: Annotated[int, Field(ge=100, le=300)] | None = None
    """With `remedy: rate`: the MiB/s (`volumeInitializationRate`, Karpenter v1.5). Default: 300."""

    @check("initialization_rate")
    @classmethod
    def _of_its_remedy(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and info.data.get("remedy", "rate") not in {"rate", "auto"}:
            raise wrong("a rate has no effect without its remedy", "write remedy: rate beside it")
        return value


class KarpenterTarget(_WithRemedy):
    """A node class of Karpenter, in a cluster that `kubectl` reaches. It is written to directly."""

    nodeclass: ResourceName
    """The name of the EC2NodeClass (or of the AWSNodeTemplate, before v0.32)."""
    context: Annotated[str, text_schema()] = ""
    """kubectl's context. Default: its current one."""
    tag: Tag | None = None
    """Let the node class choose the machine image by this tag, as KEY=VALUE: a rollout moves it to its image."""
    parameter: Parameter | None = None
    """Let the node class choose the machine image by this parameter of Systems Manager (`ssmParameter`, Karpenter
    v1.4): a rollout puts its image there."""

    keep_store: bool = False
    """Put into the node class's user data that nodeadm leaves containerd's store where it is
    (`localStorage.disabledMounts: [Containerd]`): for `instanceStorePolicy: RAID0` on Amazon Linux 2023."""

    @property
    @override
    def takes_several_images(self) -> bool:
        return not self.tag and not self.parameter

    @check("parameter")
    @classmethod
    def _one_way(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and info.data.get("tag"):
            raise wrong("a node class chooses by a tag or by a parameter, not by both", "remove one of them")
        return value


class GitopsTarget(_WithRemedy):
    """A node class in a manifest file of a repository. The file is edited; the cluster is never touched."""

    file: File
    """The manifest file, relative to the Bakefile."""
    nodeclass: Annotated[str, text_schema()] = ""
    """The name of the node class, where the file holds several."""
    branch: Annotated[str, text_schema()] = ""
    """Commit on this branch, created if missing. Default: the file is edited, and nothing is committed."""
    image_at: Annotated[str, text_schema()] = ""
    """For values of a Helm chart: the path of the machine image's id, such as nodeClass.amiIds[0]."""
    snapshot_at: Annotated[str, text_schema()] = ""
    """For values of a Helm chart: the path of the snapshot's id."""
    user_data_at: Annotated[str, text_schema()] = ""
    """For values of a Helm chart: the path of the nodes' user data, which gets what mounts the volume."""
    keep_store: bool = False
    """As in `karpenter`."""

    @property
    @override
    def takes_several_images(self) -> bool:
        return not self.image_at


class AsgTarget(_WithVolume):
    """An Auto Scaling group with a launch template."""

    group: ResourceName
    """The group's name."""
    healthy: Annotated[int, Field(ge=0, le=100)] = 90
    """The percentage of the group that the instance refresh keeps healthy."""
    checkpoints: tuple[Annotated[int, Field(ge=1, le=100)], ...] = ()
    """Percentages at which the instance refresh waits, such as [10, 50, 100]: a canary. The last must be 100."""
    checkpoint_wait: Duration = Field(default=600.0, json_schema_extra={"default": "10m"})
    """How long it waits at each of them."""
    warmup: Duration | None = None
    """How long a new instance takes to count as healthy. Default: the group's own."""
    auto_rollback: bool = True
    """Let the instance refresh roll back by itself when it fails."""

    @check("checkpoints")
    @classmethod
    def _rise(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value and (list(value) != sorted(set(value)) or value[-1] != 100):
            raise wrong("percentages must rise and end with 100", "write [10, 100]")
        return value


class NodegroupTarget(_WithVolume):
    """A managed node group of EKS with a launch template of its own."""

    cluster: ResourceName
    """The cluster's name."""
    group: ResourceName
    """The node group's name."""
    force: bool = False
    """Replace nodes even if a disruption budget forbids it, once EKS has waited."""


class OceanTarget(TargetOptions):
    """A cluster of Spot Ocean. The token is read from SPOTINST_TOKEN, the account from SPOTINST_ACCOUNT."""

    cluster: Annotated[str, AfterValidator(_no_option), text_schema("^o-", "o-12345678")]
    """Ocean's id of the cluster."""
    groups: tuple[Annotated[str, AfterValidator(_no_option), text_schema("^ols-", "ols-12345678")], ...] = ()
    """Ids of virtual node groups. Default: the cluster's own launch specification."""
    batch: Annotated[int, Field(ge=1, le=100)] = 20
    """The percentage of the nodes that one batch of the roll replaces."""
    healthy: Annotated[int, Field(ge=1, le=100)] = 50
    """The percentage of a batch that must become healthy."""
    respect_pdb: bool = True
    """Keep to the pods' disruption budgets."""


class SsmTarget(TargetOptions):
    """A parameter of Systems Manager that holds the machine image's id, with the data type `aws:ec2:image`."""

    parameter: Parameter
    """The parameter's name; it is created if missing."""


class FileTarget(_Mounting):
    """A file for other tools, written beside the Bakefile."""

    path: PathText
    """The file; its suffix says what is written: `.json`, `.tfvars`, or `.yaml` with `as`."""
    as_: Annotated[Literal["json", "tfvars", "kops", "capi"] | None, Field(alias="as", validate_default=True)] = None
    """`json`, `tfvars`, `kops` (a manifest with InstanceGroups, edited) or `capi` (a manifest with an
    AWSMachineTemplate and what refers to it, edited). Default: what the suffix says."""
    object: Annotated[str, text_schema()] = ""
    """The InstanceGroup or AWSMachineTemplate, where the manifest holds several."""

    @property
    @override
    def takes_files(self) -> bool:
        return self.as_ in {"json", "tfvars"}

    @check("as_")
    @classmethod
    def _follows(cls, value: str | None, info: ValidationInfo) -> str:
        path: Path = info.data.get("path", Path())
        suffixes = {".json": "json", ".tfvars": "tfvars"}
        if value is None and path.suffix not in suffixes:
            raise wrong(f"{path.name!r} does not say what to write", "add as: json, tfvars, kops or capi")
        return value or suffixes[path.suffix]


Kind = KarpenterTarget | GitopsTarget | AsgTarget | NodegroupTarget | OceanTarget | SsmTarget | FileTarget


def _parameter_text(text: str) -> object:
    return {"parameter": text}


def _file_text(text: str) -> object:
    return {"path": text}


class Canary(Section):
    """What the first pods on a target's new nodes must do; if they do not, the target goes back by itself.

    `parbake observe` says how pods are looked at. One of the two bounds is needed.
    """

    min_hit_rate: Annotated[float, Field(ge=0.01, le=1)] | None = None
    """The least share of pods that must use the bake, from 0 to 1, of those that used it or pulled."""
    max_start: Duration | None = None
    """The longest that a container of the bake may take to start, from when nothing else of its pod stood before it."""
    pods: Annotated[int, Field(ge=1, le=1000)] = 5
    """How many pods are enough to decide."""
    within: Duration = Field(default=600.0, json_schema_extra={"default": "10m"})
    """How long to wait for so many, once the nodes run the artefact; then those that there are decide. Without any the
    rollout stops, and the target keeps what it holds."""


class Target(Section):
    """A target of rollouts: exactly one of the kinds, and how long nodes may take."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [kind]} for kind in _KINDS]})

    name: Name = ""
    """The name for `--to`. Default: the kind."""
    region: Region | None = None
    """The AWS region. Default: the one that the artefact is published in, if it is only one."""
    role: RoleArn | None = None
    """The role to assume for this target, perhaps in another account. Default: `aws.role`, or the caller's own."""
    external_id: ExternalId | None = None
    """The external id that the role's trust policy requires."""
    deadline: Duration = Field(default=1800.0, json_schema_extra={"default": "30m"})
    """How long nodes may take to run the artefact."""
    canary: Canary | None = None
    """What the first pods on its new nodes must do, for `karpenter`. Default: nobody looks at pods."""
    karpenter: KarpenterTarget | None = None
    """A node class of Karpenter in a cluster."""
    gitops: GitopsTarget | None = None
    """A node class in a manifest file."""
    asg: AsgTarget | None = None
    """An Auto Scaling group."""
    nodegroup: NodegroupTarget | None = None
    """A managed node group of EKS."""
    ocean: OceanTarget | None = None
    """A cluster of Spot Ocean."""
    ssm: (
        Annotated[
            SsmTarget,
            Via(SsmTarget, short=_parameter_text, short_schema={"type": "string", "examples": ["/nodes/gpu"]}),
        ]
        | None
    ) = None
    """A parameter of Systems Manager; a bare text is its name."""
    file: (
        Annotated[
            FileTarget, Via(FileTarget, short=_file_text, short_schema={"type": "string", "examples": ["ami.json"]})
        ]
        | None
    ) = None
    """A file for other tools; a bare text is its path."""

    @property
    def kind(self) -> str:
        """The name of the kind, such as ``karpenter``."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def remedy(self) -> RemedyKey | None:
        """What it says is done about cold blocks; None: nothing, where its kind has no such key."""
        return self.options.remedy if isinstance(self.options, _WithRemedy) else None

    @property
    def options(self) -> Kind:
        """What the target's kind needs to know."""
        found: Kind = getattr(self, self.kind)
        return found


def _whole(target: Target) -> Target:
    given = [kind for kind in _KINDS if getattr(target, kind) is not None]
    if len(given) != 1:
        raise wrong(
            f"must be exactly one of {', '.join(_KINDS)}; there are {len(given) or 'none'}",
            "write karpenter: {nodeclass: NAME}",
        )
    if target.remedy == "boost" and target.gitops and (target.gitops.image_at or target.gitops.snapshot_at):
        raise wrong("a chart's values have no place for the tag of raised volumes", "write remedy: hydrate")
    if target.canary and target.karpenter is None:
        raise wrong("a canary looks at the pods of a cluster, and only `karpenter` names one", "remove `canary`")
    if target.canary and target.canary.min_hit_rate is None and target.canary.max_start is None:
        raise wrong("the canary asks for nothing", "write canary: {min_hit_rate: 0.9}, or max_start: 30s")
    return target if target.name else target.model_copy(update={"name": given[0]})


def _no_short(text: str) -> object:
    raise wrong(f"{text!r} is not a complete target", "write karpenter: {nodeclass: NAME}")


TargetText = Annotated[Target, Via(Target, _whole, _no_short)]


def distinct(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """Check that each target has a name of its own."""
    names = [target.name for target in targets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise wrong(f"two targets are named {twice[0]!r}", "give each a name: of its own")
    return targets
