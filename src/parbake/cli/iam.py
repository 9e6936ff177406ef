"""The command about rights: the policies and roles that a Bakefile needs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from parbake.cli.app import DEFAULT_FILE, BakefilePath, Result, command
from parbake.core.errors import InputError, ParbakeError

_ACCOUNT = r"[0-9]{12}"
_TEMPLATE = r"lt-[0-9a-f]{8,17}"
_ROLE = r"([\w.,@=+-]+/)*[\w+=,.@-]{1,64}"
_PARAMETER = r"/?[\w.-]+(/[\w.-]+)*(/\*)?"
_SNAPSHOT = r"snap-[0-9a-f]{8,17}"
_LAUNCHED = r"(ami|snap)-[0-9a-f]{8,17}"
_KEY = r"arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+"


@command()
def iam(
    file: BakefilePath = DEFAULT_FILE,
    account: Annotated[
        str, typer.Option("--account", metavar="ACCOUNT", help="The account that the policies are for, 12 digits.")
    ] = "",
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template", metavar="ID", help="A launch template (its id) of the groups that are rolled out to."
        ),
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option("--role", metavar="NAME", help="The name of the role of an Auto Scaling group's nodes."),
    ] = None,
    launches: Annotated[
        list[str] | None,
        typer.Option(
            "--launches",
            metavar="ID",
            help="An AMI or a snapshot that those templates name: neither parbake's nor an AMI of Amazon's.",
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            metavar="NAME",
            help="A parameter that names images and belongs to no target; `prune` reads it. /images/* covers many.",
        ),
    ] = None,
    base_snapshot: Annotated[
        list[str] | None,
        typer.Option(
            "--base-snapshot",
            metavar="ID",
            help="A snapshot that `builder: ebs` starts from: the base AMI's root disk.",
        ),
    ] = None,
    default_key: Annotated[
        list[str] | None,
        typer.Option(
            "--default-key",
            metavar="ARN",
            help="Your own KMS key, if EBS encrypts with it by default (`parbake doctor --aws` shows it).",
        ),
    ] = None,
    boost: Annotated[
        bool, typer.Option("--boost", help="Print `nodes` as well, though no target says `remedy: boost`.")
    ] = False,
    fleet: Annotated[
        Path | None,
        typer.Option("--fleet", metavar="FILE", help="The file of a fleet, whose `places` are allowed as well."),
    ] = None,
) -> Result:
    """Print the policies that this Bakefile needs in AWS, and the roles in Kubernetes.

    `caller` is for whoever runs parbake, `instance_role` with its trust for the instance profile of the builder,
    `rollout` for whoever rolls out to its targets, `prune` for `parbake prune --aws`, `doctor` for `parbake doctor
    --aws`, `karpenter` what Karpenter's role needs besides its own policy, `nodes` what the nodes' role needs to take
    back volumes that are launched raised (`remedy: boost`). For node classes in kubectl's current cluster,
    `cluster_role` and `role_in_default` are the roles of whoever rolls out. What no option names appears in capitals,
    such as ACCOUNT_ID, and allows nothing until you replace it.
    """
    from parbake.aws import iam as policies
    from parbake.bakefile import load
    from parbake.rollouts.rights import roles

    bakefile = load(file)
    if fleet:
        from parbake.fleet.file import load as load_fleet
        from parbake.fleet.places import with_places

        bakefile = with_places(bakefile, load_fleet(fleet).places)
    usual = policies.Names()
    names = policies.Names(
        account=_fitting("--account", [account], _ACCOUNT, "12 digits")[0] if account else usual.account,
        region=bakefile.aws.region or _region() or usual.region,
        templates=_fitting("--template", template, _TEMPLATE, "such as lt-0123456789abcdef0") or usual.templates,
        roles=_fitting("--role", role, _ROLE, "the name of a role, not its ARN") or usual.roles,
        launched=_fitting("--launches", launches, _LAUNCHED, "such as ami-0123456789abcdef0") or usual.launched,
        parameters=_fitting("--parameter", parameter, _PARAMETER, "such as /images/gpu or /images/*"),
        base_snapshots=_fitting("--base-snapshot", base_snapshot, _SNAPSHOT, "such as snap-0123456789abcdef0")
        or usual.base_snapshots,
        default_keys=_fitting("--default-key", default_key, _KEY, "the ARN of a key, not of an alias"),
    )
    found = policies.policies(bakefile, names, boost=boost)
    printed = {**found, **roles(bakefile)}

    def warn() -> None:
        for sentence in (*policies.missing(found), *policies.cautions(found)):
            typer.echo(f"parbake: {sentence}", err=True)

    return Result(
        printed,
        lambda: "\n\n".join(f"{name}:\n{json.dumps(policy, indent=2)}" for name, policy in printed.items()),
        then=warn,
    )


def _fitting(option: str, values: Iterable[str] | None, pattern: str, example: str) -> tuple[str, ...]:
    """Return what was given, in which a policy would read ``*`` and ``?`` as any text."""
    for value in values or ():
        if not re.fullmatch(pattern, value):
            raise InputError(f"{option} {value}: not a valid value", hint=f"write {example}")
    return tuple(values or ())


def _region() -> str:
    """Return the region of the AWS configuration, as every other command takes it; empty where there is none."""
    from parbake.aws import default_region

    try:
        return default_region()
    except ParbakeError:
        return ""
