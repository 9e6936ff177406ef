"""The commands about cold starts: trace, and what follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parbake.cli.door import (
    DEFAULT_FILE,
    AsJson,
    BakefilePath,
    Progress,
    What,
    answer,
    app,
    door,
    opened_events,
    output,
)
from parbake.errors import InputError


@app.command()
def trace(
    what: Annotated[
        str,
        typer.Argument(
            help="A record or artefact to rehearse; or a block device or mount point of a running node.",
            metavar="RECORD|DEVICE|MOUNTPOINT",
        ),
    ],
    file: BakefilePath = DEFAULT_FILE,
    bring: Annotated[
        Path | None,
        typer.Option("--trace", help="Take this trace, recorded on a node, instead of rehearsing.", metavar="FILE"),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="How long to record on a running node.", metavar="SECONDS")
    ] = 60.0,
    to: Annotated[
        Path, typer.Option("--output", help="Where a running node's trace is written.", metavar="FILE")
    ] = Path("node.trace"),
    as_json: AsJson = False,
    progress: Progress = "auto",
) -> None:
    """Record which blocks a cold start reads, in which order.

    Of a volume that was baked: each image is started once with cold caches, without a network; the trace is written
    beside the artefact and its summary into the record. On a running node: what is read of one device meanwhile. Needs
    root.
    """
    from parbake import coldstart, records
    from parbake.tables import trace_text
    from parbake.trace import save, summary

    door.as_json = as_json
    path = Path(what)
    with opened_events(progress) as events:
        if path.is_block_device() or path.is_mount():
            if bring:
                raise InputError("--trace brings a trace to a record, not to a device", hint="name the record")
            found = coldstart.record_node(what, seconds, events)
            save(found, to)
            result = summary(found, file=str(to))
        else:
            artefact, record = records.locate(what, output(file))
            if record is None:
                raise InputError(f"{artefact} has no record beside it", hint="only artefacts of parbake are rehearsed")
            with records.in_use(artefact.parent, record.artefact):
                if bring:
                    record = coldstart.bring(artefact, record, bring)
                else:
                    record = coldstart.rehearse(artefact, record, events)
            assert record.trace
            result, found = record.trace, coldstart.trace_of(artefact, record)
    answer(result.model_dump(mode="json"), lambda: trace_text(result, [(e.path, e.size) for e in found.files]))


@app.command()
def hydrate(
    what: What,
    folder: Annotated[Path, typer.Argument(help="Where to write; made when missing.", metavar="FOLDER")],
    file: BakefilePath = DEFAULT_FILE,
    as_json: AsJson = False,
) -> None:
    """Write what a node needs to load a volume's hot blocks early.

    The list of blocks from the start-up trace, the program that reads them with its systemd unit, user data with both
    inside, a Containerfile for a Bottlerocket bootstrap container, and a DaemonSet.
    """
    from parbake import coldstart, nodefiles, records
    from parbake.trace import hydrate_list

    door.as_json = as_json
    artefact, record = records.locate(what, output(file))
    found = hydrate_list(coldstart.trace_of(artefact, record))
    written = nodefiles.export(folder, found)
    size = (folder / "user-data.sh").stat().st_size
    document = {"written": [str(path) for path in written], "user_data_bytes": size}
    lines = [f"wrote {path}" for path in written]
    if size > nodefiles.USER_DATA_LIMIT:
        lines.append(f"warning: user-data.sh has {size} bytes, and EC2 takes {nodefiles.USER_DATA_LIMIT}: use another")
    answer(document, lambda: "\n".join(lines))
