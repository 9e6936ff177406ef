"""The command that suggests what to bake."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parbake.aws import costs
from parbake.aws.costs import Prices, Pull
from parbake.cli.app import DEFAULT_FILE, BakefilePath, KubeContext, NodeHour, PricesFile, Result, command
from parbake.cli.project import Project
from parbake.cli.text.tables import table
from parbake.core.errors import InputError
from parbake.core.events import Events
from parbake.core.model import GIB, Platform
from parbake.core.suggestion import Selection
from parbake.core.units import human_bytes
from parbake.images.history import gather
from parbake.workflows import suggest as workflow
from parbake.workflows.suggest import Suggestion

_DAYS = 30


@command()
def suggest(
    events: Events,
    history: Annotated[
        list[Path] | None,
        typer.Argument(
            help="What was started: Kubernetes events or pods as JSON, kube-state-metrics (its text, or Prometheus' "
            "answer), audit logs.",
            metavar="[FILE]...",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        float, typer.Option(min=0.1, help="What the bake may take on a node's disk.", metavar="GIB")
    ] = 10.0,
    from_cluster: Annotated[
        bool, typer.Option("--from-cluster", help="Take the pods and events of kubectl's cluster as well.")
    ] = False,
    minutes: Annotated[
        float, typer.Option(min=0, help="With --from-cluster: how long to look at it.", metavar="MINUTES")
    ] = 0.0,
    context: KubeContext = "",
    recent: Annotated[
        float,
        typer.Option(
            min=0.01, help="Bake layers of images that were started in the last so many days alone.", metavar="DAYS"
        ),
    ] = 7.0,
    platform: Annotated[
        str, typer.Option(help="The nodes' platform. Default: the Bakefile's, or this machine's.", metavar="PLATFORM")
    ] = "",
    layout: Annotated[
        Path | None,
        typer.Option(help="Take the images' layers from this OCI layout, and ask no registry.", metavar="FOLDER"),
    ] = None,
    pull_rate: Annotated[
        float | None, typer.Option(min=0.001, help="How fast your pulls are, in MB of layers a second.", metavar="MB")
    ] = None,
    prices: PricesFile = None,
    node_hour: NodeHour = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the Bakefile into this folder.", metavar="FOLDER")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a Bakefile that is there.")] = False,
    file: BakefilePath = DEFAULT_FILE,
) -> Result:
    """Suggest what to bake, from what was started: images, and the lowest layers that images share.

    Under a budget, it chooses the layers that save nodes most of what they pull. It names images that are left out,
    holes in the history, and what whole images would save of which most nodes start any. The Bakefile of --file says
    how registries are reached. Nothing is written without --output.
    """
    if not history and not from_cluster:
        raise InputError(
            "there is no history", hint="name files of events, pods, metrics or audit logs, or --from-cluster"
        )
    if minutes and not from_cluster:
        raise InputError("--minutes looks at a cluster", hint="add --from-cluster")
    bakefile = Project(file).bakefile
    listed, [pull, *_] = (
        costs.load_prices(prices, node_hour),
        costs.own_pull(pull_rate) if pull_rate else costs.known_pulls(),
    )
    known = gather(history or ())
    if from_cluster:
        workflow.watch(context, minutes * 60, known, events)
    nodes = Platform.parse(platform) if platform else bakefile.platform if bakefile else Platform.host()
    wanted = workflow.Wanted(round(budget * GIB), nodes, recent)
    with workflow.known_images(layout, bakefile, events) as look_up:
        found = workflow.suggest(known, wanted, look_up, events)
    for note in found.notes:
        events.warn(note)
    written = workflow.write(found, output, force=force) if output else ()
    document = {
        **_json(found, pull, listed),
        "pull": pull.model_dump(mode="json"),
        "budget_bytes": wanted.budget,
        "left_out": {str(name): why for name, why in found.left_out.items()},
        "notes": found.notes,
        "written": [str(path) for path in written],
    }
    return Result(document, lambda: _text(found, pull, listed, written))


def _json(found: Suggestion, pull: Pull, prices: Prices) -> dict[str, object]:
    return {
        "images": [
            {
                "reference": str(pick.image.reference),
                "layers": pick.layers,
                "of_layers": len(pick.image.layers),
                "whole": pick.whole,
                "nodes": found.starts[pick.image.reference],
            }
            for pick in found.picks
        ],
        "suggested": _figures(found.choice, found, pull, prices),
        "most_started": _figures(found.naive, found, pull, prices),
        "nodes": found.nodes,
        "days": round(found.days, 2),
    }


def _figures(choice: Selection, found: Suggestion, pull: Pull, prices: Prices) -> dict[str, float | None]:
    """Return what a choice saves: of the history, and of a month like it."""
    seconds, month = pull.seconds(round(choice.saved)), _DAYS / found.days if found.days else None
    money = seconds / 3600 * prices.node_hour.value
    return {
        "bytes_on_disk": choice.size,
        "bytes_saved": round(choice.saved),
        "share_saved": round(choice.saved / choice.fetched, 4) if choice.fetched else 0.0,
        "of_the_best_at_least": round(choice.of_bound, 4) if choice is found.choice else None,
        "seconds_saved": round(seconds, 1),
        "seconds_saved_a_month": round(seconds * month, 1) if month else None,
        "money_saved_a_month": round(money * month, 2) if month else None,
        "storage_a_month": round(choice.size / GIB * prices.snapshot_gib_month.value, 2),
    }


def _text(found: Suggestion, pull: Pull, prices: Prices, written: tuple[Path, ...]) -> str:
    picks = table(
        (
            (
                pick.image.reference,
                "all" if pick.whole else f"lowest {pick.layers} of {len(pick.image.layers)}",
                f"{found.starts[pick.image.reference]} of {found.nodes}",
                human_bytes(pick.image.size - sum(layer.size for layer in pick.image.layers[: pick.layers])),
            )
            for pick in found.picks
        ),
        header=("image", "layers", "nodes", "still pulled"),
    )
    rows = []
    for name, choice in (("suggested", found.choice), ("most started", found.naive)):
        said = _figures(choice, found, pull, prices)
        money, share = said["money_saved_a_month"], said["share_saved"] or 0.0
        rows.append(
            (
                name,
                human_bytes(choice.size),
                f"{share:.0%} of what nodes pull",
                f"{said['seconds_saved'] or 0:,.0f} s",
                "not known" if money is None else f"{money:,.2f}",
                f"{said['storage_a_month']:,.2f}",
            )
        )
    header = ("bake", "on disk", "saves", "seconds saved", "money a month", "storage a month")
    length = f"{found.days:.1f} days" if found.days else "a time that it does not tell"
    basis = (
        f"of {found.nodes} nodes in {length}; a model: pulls get {pull.fastest:g} MB of layers a second ({pull.what}); "
        f"no choice within the budget saves more than {1 / found.choice.of_bound - 1:.1%} more"
        if found.choice.of_bound
        else f"of {found.nodes} nodes in {length}"
    )
    left = [f"left out: {name}: {why}" for name, why in found.left_out.items()]
    end = [f"wrote {path}" for path in written] or ["`--output FOLDER` writes the Bakefile"]
    return "\n".join([picks, "", table(rows, header=header), "", basis, *left, *end])
