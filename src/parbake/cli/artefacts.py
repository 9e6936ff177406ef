"""The commands that make, prove and keep artefacts, and look after this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from parbake.cli import choices
from parbake.cli.app import (
    DEFAULT_FILE,
    BakefilePath,
    KeepWorkspace,
    KubeContext,
    RehearseIn,
    Result,
    Selector,
    command,
    written,
)
from parbake.cli.project import CopyRoles, Project, Store, overrides
from parbake.core.errors import InputError
from parbake.core.events import Events

_KINDS = choices.Choice("--for", "kind", lambda: ("eks",))


@command(progress="plain")
def init(
    events: Events,
    folder: Annotated[
        Path, typer.Argument(help="Where to write parbake.yaml; created if missing.", metavar="FOLDER")
    ] = Path(),
    image: Annotated[
        list[str] | None, typer.Option(help="An image to bake; may be given several times.", metavar="REFERENCE")
    ] = None,
    from_manifests: Annotated[
        str | None,
        typer.Option(
            help="Take the images of the Kubernetes manifests in this folder or file; - for standard input.",
            metavar="PATH",
        ),
    ] = None,
    from_cluster: Annotated[
        bool, typer.Option("--from-cluster", help="Take the images of the workloads in kubectl's cluster.")
    ] = False,
    kind: Annotated[
        str,
        typer.Option(
            "--for",
            help="eks: a volume for the nodes of kubectl's cluster, with its node class of Karpenter as the target.",
            metavar="KIND",
            autocompletion=_KINDS.complete,
        ),
    ] = "",
    context: KubeContext = "",
    sizes: Annotated[bool, typer.Option(help="Ask the registries how large the images are, for the comments.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> Result:
    """Write a commented Bakefile that works as it stands.

    Without options it takes the folder's own Containerfile; if there is none, it writes a sample application too.
    """
    from parbake.workflows import init as workflow

    if kind:
        _KINDS.need(kind)
    return written(
        workflow.begin(
            folder,
            events,
            workflow.InitOptions(
                images=tuple(image or ()),
                manifests=from_manifests,
                cluster=from_cluster,
                context=context,
                sizes=sizes,
                force=force,
                eks=kind == "eks",
            ),
        )
    )


Rebuild = Annotated[bool, typer.Option("--rebuild", help="Build images again even if their context has not changed.")]
Platform = Annotated[
    str,
    typer.Option(
        help="Bake for this platform, instead of the Bakefile's.",
        metavar="OS/ARCHITECTURE",
        autocompletion=choices.PLATFORMS.complete,
    ),
]


@command()
def plan(events: Events, file: BakefilePath = DEFAULT_FILE, platform: Platform = "", store: Store = "") -> Result:
    """Show what a bake would do, without doing it.

    It shows the images with their digests and sizes, the disk, the content key, and whether the artefact exists.
    """
    from parbake.cli.text import artefacts
    from parbake.workflows import plan as workflow
    from parbake.workflows.platforms import each_platform

    previews = [workflow.preview(file, events, chosen) for chosen in each_platform(file, overrides(platform, store))]
    return _several(previews, artefacts.preview_json, artefacts.preview_text)


@command()
def build(
    events: Events,
    file: BakefilePath = DEFAULT_FILE,
    rebuild: Rebuild = False,
    platform: Platform = "",
) -> Result:
    """Build and push the images that have `build`, without baking.

    This is the first half of a bake. It settles the content key, which another machine can insist on with `parbake bake
    --expect-key`. Needs root if something has to be built.
    """
    from parbake.cli.text import artefacts
    from parbake.workflows import build as workflow

    built = workflow.build_images(file, events, rebuild=rebuild, overrides=overrides(platform, ""))
    return Result(artefacts.built_json(built), lambda: artefacts.built_text(built))


@command()
def bake(
    events: Events,
    context: typer.Context,
    file: BakefilePath = DEFAULT_FILE,
    image: Annotated[
        list[str] | None,
        typer.Option(
            help="An image to bake into an ext4 volume, without a Bakefile; may be given several times.",
            metavar="REFERENCE",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Bake again even if the artefact exists.")] = False,
    rebuild: Rebuild = False,
    verify: Annotated[
        bool, typer.Option(help="Boot the artefact and start its images, as `parbake verify` does.")
    ] = True,
    rehearse: Annotated[
        bool | None,
        typer.Option(
            "--rehearse/--no-rehearse",
            help="Record which blocks each start reads. Default: for volumes that are verified. A machine image is "
            "booted once more for this, and gets the hydrate service.",
        ),
    ] = None,
    rehearse_in: RehearseIn = None,
    layout: Annotated[
        bool, typer.Option(help="After a rehearsal, bring together the blocks that starts read (ext4).")
    ] = True,
    trace: Annotated[
        Path | None,
        typer.Option(help="Use this start-up trace, recorded on a node, instead of rehearsing.", metavar="FILE"),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Do not start from an earlier volume: fetch and unpack every layer.")
    ] = False,
    expect_key: Annotated[
        str, typer.Option("--expect-key", help="Bake only if the content key is this one.", metavar="KEY")
    ] = "",
    platform: Platform = "",
    store: Store = "",
    copy_role: CopyRoles = None,
    keep_workspace: KeepWorkspace = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", help="Print only the artefact's name, or in EC2 its id; on standard error only errors."
        ),
    ] = False,
) -> Result:
    """Bake the images, and prove that they start from the artefact.

    Images with `build` are built and pushed first, if their context has changed. If the artefact exists and is
    verified, here or in the Bakefile's `store`, it does nothing. With --image it reads no Bakefile: it bakes an ext4
    volume, named after the first image, into `artefacts`. Needs root, but for an ext4 volume.
    """
    from parbake.cli.text import artefacts
    from parbake.workflows import bake as workflow
    from parbake.workflows.plan import BakeOptions
    from parbake.workflows.platforms import each_platform, one_platform

    for unwanted, name in ((rehearse is False, "--no-rehearse"), (trace, "--trace")):
        if rehearse_in and unwanted:
            raise InputError(f"--rehearse-in asks for a rehearsal, and {name} for none", hint="leave one of them out")
    if image and _is_given(context, "file"):
        raise InputError("--image bakes without a Bakefile, and --file names one", hint="leave one of them out")
    if image and file.exists():
        events.note(f"the {file} in this folder is left aside: --image bakes without a Bakefile")
    changed = overrides(platform, store, copy_role, image or ())
    chosen = each_platform(file, changed)
    for given, name in ((trace, "--trace"), (expect_key, "--expect-key")):
        if given:
            chosen = (one_platform(file, changed, name),)
    options = BakeOptions(
        force=force,
        rebuild=rebuild,
        verify=verify,
        rehearse=True if rehearse_in else rehearse,
        rehearse_in=rehearse_in,
        layout=layout,
        trace=trace,
        keep_workspace=keep_workspace,
        from_scratch=from_scratch,
        expect_key=expect_key,
    )
    finished = [workflow.bake(file, events, replace(options, overrides=each)) for each in chosen]
    if quiet:
        return _several(finished, artefacts.finished_json, artefacts.finished_id, between="\n")
    return _several(finished, artefacts.finished_json, artefacts.finished_text)


def _is_given(context: typer.Context, parameter: str) -> bool:
    """Whether a user has written an option; what is not written has its default."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def _several[T](
    found: list[T], to_json: Callable[[T], dict[str, object]], to_text: Callable[[T], str], between: str = "\n\n"
) -> Result:
    """Return the result of what was done once, or once for each platform."""
    if len(found) == 1:
        return Result(to_json(found[0]), lambda: to_text(found[0]))
    documents = [to_json(each) for each in found]
    changed = {"changed": any(each["changed"] for each in documents)} if "changed" in documents[0] else {}
    return Result({**changed, "artefacts": documents}, lambda: between.join(map(to_text, found)))


@command()
def verify(
    events: Events,
    selector: Selector = "",
    file: BakefilePath = DEFAULT_FILE,
    base: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The disk image of a node to attach a volume to. Default: the Bakefile's."),
    ] = None,
    keep_workspace: KeepWorkspace = False,
) -> Result:
    """Boot an artefact without a network and start its images.

    The verdict goes into the record; the exit code is 3 if it is bad. RECORD may also be a disk image without a record:
    then every image in its store must start. If the Bakefile has `trust`, the record must be signed.
    """
    from parbake.cli.text import artefacts
    from parbake.workflows import verify as workflow

    project = Project(file, [selector], events=events)
    name, output = project.named(selector), project.output()
    options = workflow.VerifyOptions(
        base=base or project.node_image,
        keep_workspace=keep_workspace,
        trust=project.trust,
        bakefile=project.readable,
        signer=project.signer(),
        shared=project.shared(),
    )
    artefact, verdict = workflow.verify_again(name, output, events, options)
    return Result(
        artefacts.verdict_json(artefact, verdict),
        lambda: artefacts.verdict_text(artefact, verdict),
        then=lambda: workflow.judge(artefact, verdict),
    )


@command(name="list", progress="plain")
def list_(
    events: Events,
    file: BakefilePath = DEFAULT_FILE,
    metrics: Annotated[
        bool,
        typer.Option("--metrics", help="Print figures for Prometheus instead; targets and registries are asked."),
    ] = False,
    from_cluster: Annotated[
        bool, typer.Option("--from-cluster", help="With --metrics: ask kubectl's cluster what pods did with the bakes.")
    ] = False,
    context: KubeContext = "",
    offline: Annotated[
        bool, typer.Option("--offline", help="With --metrics: ask nobody; what records say is all there is.")
    ] = False,
) -> Result:
    """List the artefacts, oldest first.

    It marks what a Bakefile's name alone means: the newest artefact, and for rollouts the newest verified one.
    """
    from parbake import records
    from parbake.cli.text import artefacts

    project = Project(file)
    found = records.find(project.output())
    if metrics:
        from parbake.cli.text import measured as told
        from parbake.workflows.metrics import measure

        cluster = context if from_cluster or context else None
        measured = measure(found, project.bakefile, file, events, offline=offline, cluster=cluster)
        return Result(told.metrics_json(measured), lambda: told.metrics_text(measured))
    return Result(
        [{**artefacts.record_json(path, record), "meant": artefacts.meant(found, record)} for path, record in found],
        lambda: artefacts.records_text(found),
    )


@command(progress="plain")
def show(
    events: Events,
    selector: Selector = "",
    file: BakefilePath = DEFAULT_FILE,
    wide: Annotated[bool, typer.Option("--wide", help="Name images by their whole digests.")] = False,
) -> Result:
    """Show the record of one artefact.

    With --json it is the in-toto statement as it is stored.
    """
    from parbake import records
    from parbake.cli.text import artefacts
    from parbake.records import statements

    project = Project(file, [selector])
    hint = "`parbake verify` can still verify it"
    artefact, record = records.locate_record(project.named(selector), project.output(), events, hint=hint)
    return Result(
        statements.to_statement(record),
        lambda: artefacts.record_text(artefact, record, wide=wide),
        foreign=True,
    )


@command()
def prune(
    events: Events,
    keep: Annotated[
        int | None,
        typer.Option(
            min=0, help="How many artefacts to keep of each name. Default: the Bakefile's, or 3.", metavar="COUNT"
        ),
    ] = None,
    cache: Annotated[bool, typer.Option("--cache", help="Prune the cache of layers instead.")] = False,
    cache_size: Annotated[
        str,
        typer.Option(
            help="With --cache: how much to keep, such as 5GiB. The least recently used layers go first.",
            metavar="SIZE",
        ),
    ] = "0",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    aws: Annotated[
        bool,
        typer.Option("--aws", help="Also prune machine images and snapshots in EC2, in all regions of the records."),
    ] = False,
    younger: Annotated[
        float | None,
        typer.Option(min=0, help="Keep artefacts younger than this. Default: the Bakefile's, or 0.", metavar="DAYS"),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="With --aws: remove each this long after its deprecation. Default: the Bakefile's, or 7.",
            metavar="DAYS",
        ),
    ] = None,
    store: Store = "",
    copy_role: CopyRoles = None,
    file: BakefilePath = DEFAULT_FILE,
) -> Result:
    """Remove old artefacts and their records, or cached layers.

    The Bakefile's `retention` decides what is kept; options override it.
    The newest artefacts of each name stay, always with the newest one that passed verification. In EC2, everything
    stays that something refers to: node classes, launch templates, groups, instances, parameters, and what a rollback
    would return to. The rest is deprecated first, and removed when the grace is over. What another machine with the
    same store is baking stays as well, and what the last rollout of a fleet needs.
    """
    from parbake.cli.text import artefacts, pruning
    from parbake.core import units
    from parbake.core.workspace import cache_folder
    from parbake.images import cache as layer_cache
    from parbake.workflows import prune as workflow

    if cache_size != "0" and not cache:
        raise InputError("--cache-size is for the cache of layers", hint="add --cache, or use --keep for artefacts")
    if cache:
        limit = units.size_of(cache_size, "--cache-size")
        gone, kept = layer_cache.prune(cache_folder(), limit, dry_run=dry_run)
        return Result(artefacts.layers_json(gone, kept), lambda: artefacts.layers_text(gone, kept, dry_run=dry_run))
    chosen = overrides("", store, copy_role)
    project = Project(file, overrides=chosen, events=events)
    rules = workflow.rules(project.retention, keep, younger, grace)
    folder = project.output()
    document: dict[str, object] = {}
    text = ""
    if aws:
        pruned = workflow.prune_published(file, rules, events, dry_run=dry_run, overrides=chosen)
        document["aws"] = pruning.pruned_json(pruned)
        text = f"{pruning.pruned_text(pruned, dry_run=dry_run)}\n\n"
    decisions = workflow.prune(folder, rules, dry_run=dry_run, shared=project.shared())
    document |= pruning.decisions_json(decisions)
    return Result(document, lambda: text + pruning.decisions_text(decisions, dry_run=dry_run))


@command()
def clean(
    events: Events,
    file: BakefilePath = DEFAULT_FILE,
    caches: Annotated[
        bool, typer.Option("--caches", help="Also remove everything that is cached: default bases, built images.")
    ] = False,
    in_aws: Annotated[
        bool,
        typer.Option("--aws", help="Also remove what runs of this Bakefile, or long expired ones, left in AWS."),
    ] = False,
    store: Store = "",
) -> Result:
    """Remove what killed runs left behind, and kept work folders.

    That includes disks that wait for their verification, with which the next bake would go on.
    On this machine only files can be left over: the kernel ends mounts, loop devices and processes with the run. Runs
    that are under way here are not touched. With `--aws` it finds instances, volumes, unfinished AMIs with their
    snapshots, copies in other regions, security groups, Packer's key pairs, and what `remedy: boost` left raised, by
    their tags. It spares what other machines with the same store bake; without a store, let none bake it meanwhile.
    """
    from parbake.workflows import clean as workflow

    removed = [str(path) for path in workflow.clean(Project(file).output(refresh=False), caches=caches)]
    spared: dict[str, str] = {}
    if in_aws:
        cleaned = workflow.clean_aws(file, events, overrides("", store))
        removed += [f"{region}:{each}" for region, found in cleaned.removed.items() for each in found]
        spared |= cleaned.spared
    lines = [f"removed {path}" for path in removed] + [f"spared: {who}" for who in spared.values()]
    return Result({"removed": removed, "spared": spared}, lambda: "\n".join(lines) or "nothing was left over")


@command()
def doctor(
    file: BakefilePath = DEFAULT_FILE,
    aws: Annotated[
        bool, typer.Option("--aws", help="Also check the settings of the AWS account, with read-only calls.")
    ] = False,
) -> Result:
    """Check what this machine lacks, and how to get it.

    It checks programs, privileges, kernel features and disk space, and names the commands that need each. With `--aws`,
    it also checks the settings of the Bakefile's account and regions: encryption by default and its key, quotas,
    Allowed AMIs, public access, protected AMIs, the base, instance types and profile, and routes to the registry. It
    lists the permissions that it lacks for these checks.
    """
    from parbake.cli.text import artefacts
    from parbake.core.workspace import cache_folder
    from parbake.workflows import doctor as workflow

    project = Project(file)
    checks = workflow.examine(output=project.output(refresh=False), cache=cache_folder(), shared=project.shared())
    if aws:
        from parbake.workflows.doctor import account

        checks += account.judge(account.gather(project.bakefile or project.need_bakefile()))
    return Result(artefacts.checks_json(checks), lambda: artefacts.checks_text(checks))


@command()
def demo(
    events: Events,
    folder: Annotated[
        Path, typer.Argument(help="Where the demo's files go; kept for the next run.", metavar="FOLDER")
    ] = Path("demo"),
) -> Result:
    """Run the main job end to end on a sample application.

    Build it, push it to a registry on the loopback, bake it into a volume, and start it on this machine from that, and
    from a pull: that is the first result. Then bake it into a machine image, boot that without a network, start the
    application there, and compare with a pull. Needs root; the first run takes some minutes in emulation.
    """
    from parbake.cli.text import artefacts
    from parbake.workflows import demo as workflow

    outcome = workflow.run_demo(folder.absolute(), events=events)
    return Result(artefacts.outcome_json(outcome), lambda: artefacts.outcome_text(outcome))


@command()
def schema() -> Result:
    """Print the JSON Schema of the Bakefile, for editors."""
    from parbake.bakefile import schema as bakefile_schema

    document = bakefile_schema()
    return Result(document, lambda: json.dumps(document, indent=2))
