"""The commands that make, prove and keep artefacts, and look after this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from parbake.cli.app import (
    DEFAULT_FILE,
    BakefilePath,
    CopyRoles,
    KeepWorkspace,
    Result,
    Store,
    What,
    command,
    node_image,
    output,
    overrides,
    retention,
    shared,
    signer,
    trust,
    written,
)
from parbake.cli.commands import application
from parbake.core.errors import InputError
from parbake.core.events import Events


@command(progress="plain")
def init(
    events: Events,
    folder: Annotated[
        Path, typer.Argument(help="Where to write parbake.yaml; made when missing.", metavar="FOLDER")
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
    context: Annotated[
        str, typer.Option(help="kubectl's context for --from-cluster; its current one if left out.", metavar="NAME")
    ] = "",
    sizes: Annotated[bool, typer.Option(help="Ask the registries how large the images are, for the comments.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> Result:
    """Write a commented Bakefile that works as it stands.

    Without options it takes the folder's own Containerfile; where there is none, it writes a sample application too.
    """
    from parbake.workflows import init as workflow

    return written(
        workflow.begin(
            folder,
            images=tuple(image or ()),
            manifests=from_manifests,
            cluster=from_cluster,
            context=context,
            sizes=sizes,
            force=force,
            events=events,
        )
    )


Platform = Annotated[
    str, typer.Option(help="Bake for this platform, instead of the Bakefile's.", metavar="OS/ARCHITECTURE")
]


@command()
def plan(events: Events, file: BakefilePath = DEFAULT_FILE, platform: Platform = "", store: Store = "") -> Result:
    """Show what a bake would do, without doing it.

    Shown are the images with their digests and sizes, the disk, the content key, and whether the artefact exists.
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
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build images again even if their context has not changed.")
    ] = False,
    platform: Platform = "",
) -> Result:
    """Build and push the images that have `build`, without baking.

    It is the first half of a bake: afterwards the content key is known, which `parbake bake --expect-key` can be held
    to on another machine. Needs root where something has to be built.
    """
    from parbake.cli.text import artefacts
    from parbake.workflows import build as workflow

    built = workflow.make_known(file, events, rebuild=rebuild, overrides=overrides(platform, ""))
    return Result(artefacts.built_json(built), lambda: artefacts.built_text(built))


@command()
def bake(
    events: Events,
    file: BakefilePath = DEFAULT_FILE,
    force: Annotated[bool, typer.Option("--force", help="Bake again what exists already.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build images again even if their context has not changed.")
    ] = False,
    verify: Annotated[
        bool, typer.Option(help="Boot the artefact and start its images, as `parbake verify` does.")
    ] = True,
    rehearse: Annotated[
        bool | None,
        typer.Option(
            "--rehearse/--no-rehearse",
            help="Record what each start reads; default: of a volume that is verified. A machine image is booted once "
            "more for it, and gets the hydrate service.",
        ),
    ] = None,
    layout: Annotated[bool, typer.Option(help="After a rehearsal, move what starts read together (ext4).")] = True,
    trace: Annotated[
        Path | None, typer.Option(help="Take this start-up trace instead, recorded on a node.", metavar="FILE")
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
) -> Result:
    """Bake the images, and prove that they start from the artefact.

    Images with `build` are built and pushed first, when their context has changed. Nothing is done when the artefact
    exists and is verified, here or in the Bakefile's `store`. Needs root.
    """
    from parbake.cli.text import artefacts
    from parbake.workflows import bake as workflow
    from parbake.workflows.platforms import each_platform, one_platform

    changed = overrides(platform, store, copy_role)
    chosen = each_platform(file, changed)
    for given, name in ((trace, "--trace"), (expect_key, "--expect-key")):
        if given:
            chosen = (one_platform(file, changed, name),)
    options = workflow.Options(
        force=force,
        rebuild=rebuild,
        verify=verify,
        rehearse=rehearse,
        layout=layout,
        trace=trace,
        keep_workspace=keep_workspace,
        from_scratch=from_scratch,
        expect_key=expect_key,
    )
    finished = [workflow.bake(file, events, replace(options, overrides=each)) for each in chosen]
    return _several(finished, artefacts.finished_json, artefacts.finished_text)


def _several[T](found: list[T], to_json: Callable[[T], dict[str, object]], to_text: Callable[[T], str]) -> Result:
    """Return the result of what was done once, or once for each platform."""
    if len(found) == 1:
        return Result(to_json(found[0]), lambda: to_text(found[0]))
    documents = [to_json(each) for each in found]
    changed = {"changed": any(each["changed"] for each in documents)} if "changed" in documents[0] else {}
    return Result({**changed, "artefacts": documents}, lambda: "\n\n".join(map(to_text, found)))


@command()
def verify(
    events: Events,
    what: What,
    file: BakefilePath = DEFAULT_FILE,
    base: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The disk image of a node to attach a volume to. Default: the Bakefile's."),
    ] = None,
    keep_workspace: KeepWorkspace = False,
) -> Result:
    """Boot an artefact without a network and start its images.

    The verdict goes into the record; the exit code is 3 when it is bad. RECORD may also be a disk image that parbake
    has no record of: then every image in its store must start. Where the Bakefile has `trust`, a record must be signed.
    """
    from parbake.cli.text import artefacts
    from parbake.workflows import verify as workflow

    artefact, verdict = workflow.verify_again(
        what,
        output(file, what),
        events,
        base=base or node_image(file),
        keep_workspace=keep_workspace,
        trust=trust(file),
        signer=signer(file),
        shared=None if Path(what).is_file() else shared(file, events),
    )
    return Result(
        artefacts.verdict_json(artefact, verdict),
        lambda: artefacts.verdict_text(artefact, verdict),
        then=lambda: workflow.judge(artefact, verdict),
    )


@command(name="list")
def list_(file: BakefilePath = DEFAULT_FILE) -> Result:
    """List the artefacts, oldest first."""
    from parbake import records
    from parbake.cli.text import artefacts

    found = records.find(output(file))
    return Result(
        [artefacts.record_json(path, record) for path, record in found], lambda: artefacts.records_text(found)
    )


@command()
def show(what: What, file: BakefilePath = DEFAULT_FILE) -> Result:
    """Show the record of one artefact.

    With --json it is the in-toto statement as it is stored.
    """
    from parbake import records
    from parbake.cli.text import artefacts
    from parbake.records import statements

    artefact, record = records.locate(what, output(file, what))
    if record is None:
        raise InputError(f"{artefact} has no record beside it", hint="`parbake verify` can still prove it")
    return Result(statements.to_statement(record), lambda: artefacts.record_text(artefact, record))


@command()
def prune(
    events: Events,
    keep: Annotated[
        int | None,
        typer.Option(
            min=0, help="How many artefacts to keep of each name. Default: the Bakefile's, or 3.", metavar="COUNT"
        ),
    ] = None,
    cache: Annotated[bool, typer.Option("--cache", help="Free the cache of layers instead.")] = False,
    cache_size: Annotated[
        str,
        typer.Option(
            help="With --cache: how much to keep, such as 5GiB. The least recently used layers go first.",
            metavar="SIZE",
        ),
    ] = "0",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    aws: Annotated[
        bool, typer.Option("--aws", help="Also machine images and snapshots in EC2, in all regions of the records.")
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
    Of each name the newest artefacts stay, and always the newest one that passed verification. In EC2 all stay that
    something refers to: node classes, launch templates, groups, instances, parameters, and a rollout's way back. The
    others are deprecated first, and removed when the grace is over. What a machine is baking that shares the store
    stays, and what the last rollout of a fleet needs.
    """
    from parbake.cli.text import artefacts, pruning
    from parbake.core import units
    from parbake.core.workspace import cache_folder
    from parbake.images import cache as layer_cache
    from parbake.workflows import prune as workflow

    if cache_size != "0" and not cache:
        raise InputError("--cache-size is for the cache of layers", hint="add --cache, or take --keep for artefacts")
    if cache:
        limit = units.size_of(cache_size, "--cache-size")
        gone, kept = layer_cache.prune(cache_folder(), limit, dry_run=dry_run)
        return Result(artefacts.layers_json(gone, kept), lambda: artefacts.layers_text(gone, kept, dry_run=dry_run))
    rules = workflow.rules(retention(file), keep, younger, grace)
    chosen = overrides("", store, copy_role)
    folder = output(file, overrides=chosen)
    document: dict[str, object] = {}
    text = ""
    if aws:
        pruned = workflow.prune_published(file, rules, events, dry_run=dry_run, overrides=chosen)
        document["aws"] = pruning.pruned_json(pruned)
        text = f"{pruning.pruned_text(pruned, dry_run=dry_run)}\n\n"
    decisions = workflow.prune(folder, rules, dry_run=dry_run, shared=shared(file, events, chosen))
    document |= pruning.decisions_json(decisions)
    return Result(document, lambda: text + pruning.decisions_text(decisions, dry_run=dry_run))


@command()
def clean(
    events: Events,
    file: BakefilePath = DEFAULT_FILE,
    caches: Annotated[
        bool, typer.Option("--caches", help="Also remove all that is cached: default bases, images that were built.")
    ] = False,
    in_aws: Annotated[
        bool,
        typer.Option("--aws", help="Also remove what runs of this Bakefile, or long expired ones, left in AWS."),
    ] = False,
    store: Store = "",
) -> Result:
    """Remove what killed runs left behind, and kept work folders.

    On this machine only files can be left: the kernel ends mounts, loop devices and processes with the run. Runs that
    are under way here are not touched. In AWS, `--aws` finds instances, volumes, unfinished AMIs with their snapshots,
    copies in other regions, security groups, and Packer's key pairs by their tags. What a machine bakes now that shares
    the store is spared; without a store let no other machine bake the same Bakefile meanwhile.
    """
    from parbake.workflows import clean as workflow

    removed = [str(path) for path in workflow.clean(output(file, brought=False), caches=caches)]
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
        bool, typer.Option("--aws", help="Ask AWS as well: what the account has settled, by read calls alone.")
    ] = False,
) -> Result:
    """Say what this machine lacks, and how to get it.

    Programs, privileges, kernel features and disk space, each with the commands that need it. With `--aws` also what
    the Bakefile's account and regions say: encryption by default and its key, quotas, Allowed AMIs, public access,
    protected AMIs, the base, instance types and profile, ways to the registry. What may not be asked is said.
    """
    from parbake.cli.text import artefacts
    from parbake.core.workspace import cache_folder
    from parbake.workflows import doctor as workflow

    checks = workflow.examine(output=output(file, brought=False), cache=cache_folder(), shared=shared(file))
    if aws:
        from parbake.bakefile import load
        from parbake.workflows import account

        checks += account.judge(account.gather(load(file)))
    return Result(artefacts.checks_json(checks), lambda: artefacts.checks_text(checks))


@command()
def demo(
    events: Events,
    folder: Annotated[
        Path, typer.Argument(help="Where the demo's files go; kept for the next run.", metavar="FOLDER")
    ] = Path("demo"),
) -> Result:
    """Run the main job end to end on a sample application.

    Build it, push it to a registry on the loopback, bake, boot the result without a network, start the application
    there, and compare with a pull. Needs root; the first run takes some minutes.
    """
    from parbake.cli.text import artefacts
    from parbake.workflows import demo as workflow

    outcome = workflow.tell(folder.absolute(), events=events)
    return Result(artefacts.outcome_json(outcome), lambda: artefacts.table(outcome.rows()))


@application("schema").command()
def schema() -> None:
    """Print the JSON Schema of the Bakefile, for editors."""
    from parbake.bakefile import schema as bakefile_schema

    typer.echo(json.dumps(bakefile_schema(), indent=2))
