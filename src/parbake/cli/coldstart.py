"""The commands about cold starts: trace, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parbake.cli import choices
from parbake.cli.app import (
    DEFAULT_FILE,
    WHICH,
    BakefilePath,
    Folder,
    KubeContext,
    NodeHour,
    PricesFile,
    RehearseIn,
    Result,
    Selector,
    command,
    last_alone,
    written,
)
from parbake.cli.project import Project
from parbake.cli.text.tables import table, wrapped
from parbake.core.errors import InputError
from parbake.core.events import Events
from parbake.core.printable import word
from parbake.core.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parbake.aws.costs import Advice, Prices, Pull, Situation
    from parbake.core.model import Frozen


@command()
def trace(
    events: Events,
    selector: Annotated[
        str,
        typer.Argument(
            help=f"{WHICH}; so does none. Or a block device or mount point of a running node.",
            metavar="RECORD|DEVICE|MOUNTPOINT",
            autocompletion=choices.records,
            show_default=False,
        ),
    ] = "",
    file: BakefilePath = DEFAULT_FILE,
    recorded: Annotated[
        Path | None,
        typer.Option("--trace", help="Use this trace, recorded on a node, instead of rehearsing.", metavar="FILE"),
    ] = None,
    misses: Annotated[
        Path | None,
        typer.Option(
            "--misses", help="Add what nodes read besides, as the logs of their agents say it.", metavar="FILE"
        ),
    ] = None,
    rehearse_in: RehearseIn = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="How long to record on a running node.", metavar="SECONDS")
    ] = 60.0,
    to: Annotated[Path, typer.Option("--output", help="Where to write a running node's trace.", metavar="FILE")] = Path(
        "node.trace"
    ),
) -> Result:
    """Record which blocks a cold start reads, in which order.

    For a record, it starts each image once with cold caches and without a network, in a virtual machine if KVM works,
    root is missing or the record is of a machine image, and writes the trace beside the artefact and its summary into
    the record. On a running node, it records the reads of one device. Needs root, but for a record of an ext4 volume.
    """
    from parbake import records
    from parbake.builders import RehearsalPlace
    from parbake.cli.text.artefacts import trace_text
    from parbake.coldstart.trace import save, summary
    from parbake.records import genuine
    from parbake.workflows import trace as workflow
    from parbake.workflows.startup import started_as

    path = Path(selector)
    if sum(map(bool, (rehearse_in, recorded, misses))) > 1:
        raise InputError(
            "--rehearse-in asks for a rehearsal, --trace and --misses for none", hint="leave all but one of them out"
        )
    if selector and (path.is_block_device() or path.is_mount()):
        if recorded or misses:
            raise InputError("--trace and --misses add to a record, not to a device", hint="name the record")
        if rehearse_in:
            raise InputError("--rehearse-in is for a record: nothing is started on a device", hint="name the record")
        found = workflow.record_node(selector, seconds, events)
        save(found, to)
        result = summary(found, file=str(to))
    else:
        project = Project(file, [selector], events=events)
        hint = "only artefacts of parbake can be rehearsed"
        artefact, record = records.locate_record(project.named(selector), project.output(), events, hint=hint)
        signs = project.signer()
        with records.in_use(artefact.parent, record.artefact):
            record = genuine.need(artefact, project.trust)
            if recorded:
                record = workflow.add_trace(artefact, record, recorded, events, signs)
            elif misses:
                record = workflow.add_misses(artefact, record, misses, events, signs)
            else:
                plan = started_as(record.plan, project.readable, events, signed=bool(project.trust))
                where = RehearsalPlace(rehearse_in, project.node_image)
                record = workflow.rehearse(artefact, record, events, signs, plan=plan, where=where)
            if shared := project.shared():
                shared.put(record, again=True)
        assert record.trace
        result, found = record.trace, workflow.trace_of(artefact, record)
    return Result(result.model_dump(mode="json"), lambda: trace_text(result, [(e.path, e.size) for e in found.files]))


@command()
def hydrate(
    events: Events,
    selector: Selector = "",
    folder: Folder = None,
    file: BakefilePath = DEFAULT_FILE,
) -> Result:
    """Write the files with which a node loads hot blocks and files early.

    These are the lists of blocks and of files from the start-up trace, the program that reads them with its systemd
    unit, user data that contains program and blocks, a Containerfile for a Bottlerocket bootstrap container, and a
    DaemonSet.
    """
    from parbake import records
    from parbake.aws import limits
    from parbake.coldstart.hydrate import export
    from parbake.coldstart.trace import hydrate_list, prefetch_list
    from parbake.records import genuine
    from parbake.workflows import trace as workflow

    selector, to = last_alone(selector, folder, "FOLDER")
    project = Project(file, [selector], events=events)
    artefact, record = records.locate(project.named(selector), project.output(), events)
    if record:
        record = genuine.need(artefact, project.trust)
    found = workflow.trace_of(artefact, record)
    paths = export(Path(to), hydrate_list(found), prefetch_list(found))
    size = (Path(to) / "user-data.sh").stat().st_size
    too_large = f"warning: user-data.sh has {size} bytes, and EC2 takes {limits.USER_DATA_LIMIT}: use another"
    return written(paths, *[too_large] * (size > limits.USER_DATA_LIMIT), user_data_bytes=size)


def _profiles() -> Iterable[str]:
    from parbake.aws.costs import SPEEDS

    return SPEEDS


def _drives() -> Iterable[str]:
    from parbake.aws.costs import DRIVES

    return DRIVES


_PROFILE = choices.Choice("--profile", "profile", _profiles)
_DRIVE = choices.Choice("--drive", "volume", _drives)


@command(progress="plain")
def advise(
    events: Events,
    selector: Annotated[
        str,
        typer.Argument(
            help=f"{WHICH}; so does none, without --size and --pull-seconds.",
            metavar="RECORD",
            autocompletion=choices.records,
            show_default=False,
        ),
    ] = "",
    launches: Annotated[float, typer.Option(min=0.001, help="Nodes started per day.", metavar="COUNT")] = 100.0,
    zones: Annotated[int, typer.Option(min=1, help="Availability zones they start in.", metavar="COUNT")] = 3,
    boot: Annotated[
        float, typer.Option(min=0, help="From the volume's attachment to the runtime's start.", metavar="SECONDS")
    ] = 20.0,
    burst: Annotated[int, typer.Option(min=1, help="Nodes that start at once in one zone.", metavar="COUNT")] = 1,
    volume: Annotated[
        int | None, typer.Option(min=1, help="Size of the node's volume, if it is larger.", metavar="GIB")
    ] = None,
    hot: Annotated[
        int | None, typer.Option(min=0, help="What a start reads, instead of the trace's figure.", metavar="MIB")
    ] = None,
    profile: Annotated[
        str,
        typer.Option(help="How cold volumes behave: mild or harsh.", metavar="NAME", autocompletion=_PROFILE.complete),
    ] = "mild",
    drive: Annotated[
        str,
        typer.Option(
            help="The volume that nodes have anyway: gp3, gp3-raised or io2.",
            metavar="NAME",
            autocompletion=_DRIVE.complete,
        ),
    ] = "gp3",
    lifetime: Annotated[float, typer.Option(min=0.01, help="How long a node lives.", metavar="HOURS")] = 8.0,
    bakes: Annotated[float, typer.Option(min=0, help="Bakes per month.", metavar="COUNT")] = 4.0,
    bake_minutes: Annotated[
        float,
        typer.Option(min=0, help="How long a bake takes, on a machine that costs what a node does.", metavar="MINUTES"),
    ] = 10.0,
    pull_rate: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="How fast your pulls are, in MB of layers a second; in place of all kinds.", metavar="MB"
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Without a record: the compressed size of a pull.", metavar="MB")
    ] = None,
    pull_seconds: Annotated[
        float | None, typer.Option(min=0, help="Without a record: how long a pull takes today.", metavar="SECONDS")
    ] = None,
    start_seconds: Annotated[
        float,
        typer.Option(min=0, help="Without a record: how long a node waits for the baked image.", metavar="SECONDS"),
    ] = 0.0,
    headroom: Annotated[
        float, typer.Option(min=0, help="Without a record: nodes kept running for pods to come.", metavar="COUNT")
    ] = 0.0,
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            "--measured",
            help="What `observe --json`, ebs-check or a node's hydrate.json says; may be given several times.",
            metavar="FILE",
        ),
    ] = None,
    prices: PricesFile = None,
    node_hour: NodeHour = None,
    file: BakefilePath = DEFAULT_FILE,
) -> Result:
    """Recommend the cheapest remedy for cold volumes, and say why.

    It compares doing nothing, hydrate, hydrate with prefetch, the provisioned initialization rate, fast snapshot
    restore, a gp3 volume with 16,000 IOPS and 1,000 MiB/s for the start alone or for as long as the node lives, reading
    everything, and pulls without any bake: by containerd as it is, and by SOCI's parallel pull on AL2023 and
    Bottlerocket. For each, it shows the time added to a start, and the cost per month including the nodes that wait. If
    a pull costs less in all, it says not to bake.

    Without a record, it estimates what pulls cost and how much of it a bake saves: with --size for every kind of pull,
    with --headroom beside nodes that you keep running so that nobody waits.
    """
    from parbake import records
    from parbake.aws import costs
    from parbake.workflows import trace as workflow

    _PROFILE.need(profile)
    _DRIVE.need(drive)
    listed = costs.load_prices(prices, node_hour)
    pulls: Sequence[Pull] = costs.own_pull(pull_rate) if pull_rate else costs.known_pulls()
    project = Project(file, [selector])
    asked = size is not None or pull_seconds is not None
    if not selector and (asked or project.bakefile is None):
        if measured:
            raise InputError("--measured is about starts from a bake", hint="name its record, or leave --measured out")
        seconds = {each.name: each.seconds((size or 0) * costs.MB) for each in pulls} if size else {}
        seconds = {**seconds, **({"pull": pull_seconds} if pull_seconds is not None else {})}
        if "pull" not in seconds:
            raise InputError(
                "how long a pull takes is not known",
                hint="name a record, or give --pull-seconds, or --size with the compressed size in MB",
            )
        estimated = costs.estimate(launches, seconds, start_seconds, headroom, bakes * bake_minutes / 60, listed)
        return _advised(estimated, None, listed, pulls)
    hint = "only artefacts of parbake can be assessed"
    artefact, record = records.locate_record(project.named(selector), project.output(), events, hint=hint)
    situation = workflow.situation(
        record,
        launches=launches,
        zones=zones,
        boot=boot,
        burst=burst,
        volume=(volume or 0) << 30,
        hot=None if hot is None else hot << 20,
        lifetime=lifetime,
        drive=drive,
        bakes=bakes,
        bake_minutes=bake_minutes,
    )
    found = costs.read_measured(measured or ())
    situation, speeds, pulls = found.applied(situation, costs.SPEEDS[profile], pulls)
    parts = {"situation": situation, "speeds": speeds, "drive": costs.DRIVES[drive], "measured": found}
    stream = costs.to_stream(workflow.files_read_whole(artefact, record), listed)
    advice = costs.advise(situation, speeds, listed, pulls).model_copy(update={"basis": found.basis, "stream": stream})
    return _advised(advice, situation, listed, pulls, **parts)


def _advised(advice: Advice, at: Situation | None, prices: Prices, pulls: Sequence[Pull], **parts: Frozen) -> Result:
    document = {
        "recommended": advice.best.name,
        "bake": advice.best.bakes,
        **advice.model_dump(mode="json"),
        **{name: part.model_dump(mode="json") for name, part in {**parts, "prices": prices}.items()},
        "pulls": [each.model_dump(mode="json") for each in pulls],
    }
    return Result(document, lambda: advice_text(advice, at, prices))


def advice_text(advice: Advice, at: Situation | None, prices: Prices) -> str:
    """Return the remedies, the cheapest first, and why; ``at`` is None where nothing is baked yet."""
    facts = [
        ("prices", f"{prices.currency}, {prices.region}, {prices.date}; a node {prices.node_hour.value:g} an hour")
    ]
    if at:
        hot = min(at.hot, at.data)
        reads = f", in {at.reads:,} reads one after the other" if at.reads else ""
        facts[:0] = [
            ("a start reads", f"{human_bytes(hot)} of {human_bytes(at.data)} ({hot / at.data:.1%}){reads}"),
            ("starts", f"{at.launches:g} a day in {at.zones} zones, at most {at.burst} at once in one"),
            ("hidden by the boot", f"{at.boot:g} s"),
            ("nodes", f"have a {at.drive} volume, live {at.lifetime:g} h"),
            ("bakes", f"{at.bakes:g} a month, {at.bake_minutes:g} minutes each"),
        ]
    rows = (
        (
            remedy.name,
            f"{remedy.seconds:.1f} s more",
            f"{remedy.cost:,.2f}",
            f"{remedy.waiting:,.2f}",
            f"{remedy.total:,.2f}",
            remedy.note,
        )
        for remedy in advice.remedies
    )
    remedies = table(rows, header=("remedy", "a start takes", "costs", "waiting", "in all"), notes=True)
    money = f"{prices.currency} a month: the remedy itself, nodes that wait, and both"
    reason = list(wrapped(f"recommended: {advice.best.name}, because {advice.reason}"))
    reason += wrapped(f"chosen from {advice.basis}") if advice.basis else []
    for each in advice.stream:
        reason += wrapped(
            f"stream {word(each.path)} ({human_bytes(each.size)}), do not bake it: a start reads it once, whole; a "
            f"snapshot takes {each.seconds:.0f} s for that at least, and {each.cost:,.2f} {prices.currency} a month"
        )
    return "\n".join([table(facts), "", remedies, "", money, *reason])


@command(progress="plain")
def report(
    events: Events,
    selector: Selector = "",
    against: Annotated[
        str | None,
        typer.Argument(help="A second record, to compare with.", metavar="RECORD", autocompletion=choices.records),
    ] = None,
    to: Annotated[Path, typer.Option("--output", help="Where to write the page.", metavar="FILE")] = Path(
        "report.html"
    ),
    from_cluster: Annotated[
        bool, typer.Option("--from-cluster", help="Add what pods did with it in kubectl's cluster (`parbake observe`).")
    ] = False,
    context: KubeContext = "",
    file: BakefilePath = DEFAULT_FILE,
) -> Result:
    """Write a one-page HTML report of a cold start.

    It has a waterfall of each start, a map of the blocks that it reads, and tables; for two records, side by side. With
    --from-cluster it has which pods used the bake as well. The page needs no network.
    """
    from parbake.cli.report import Subject, page
    from parbake.core import atomic
    from parbake.core.workspace import room_for
    from parbake.workflows import trace as workflow

    projects = {each: Project(file, [each]) for each in (selector, against) if each is not None}
    subjects = [
        Subject(*workflow.known(project.named(each), project.output(), events)) for each, project in projects.items()
    ]
    seen = None
    if from_cluster:
        from parbake.workflows.observe import observe

        seen = observe((), [each.record for each in subjects], context=context)
    with room_for(to):
        atomic.replace(to, page(*subjects, seen=seen), mode=0o644)
    return written([to])
