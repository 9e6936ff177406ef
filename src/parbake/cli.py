"""The door: arguments, rendering, exit codes. Only this room exits; everything below raises.

Results go to standard output (one JSON document with ``--json``), everything else to standard error.
Exit codes: 0 done or nothing to do, 1 failed, 2 the input is wrong, 3 verification said no, 130 interrupted.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from parbake import __version__
from parbake.errors import InputError, Interrupted, ParbakeError, from_os_error

if TYPE_CHECKING:
    from parbake.events import Events

app = typer.Typer(
    name="parbake",
    help="Bake container images into machine images and volumes, so that nodes start with nothing left to pull.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

BakefilePath = Annotated[Path, typer.Option("-f", "--file", help="The Bakefile.", metavar="FILE")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on standard output.")]
Progress = Annotated[str, typer.Option(help="How to show progress: auto, rich, plain, json or none.", metavar="STYLE")]
KeepWorkspace = Annotated[
    bool, typer.Option("--keep-workspace", help="Keep the work folder, for debugging, and say where it is.")
]
What = Annotated[str, typer.Argument(help="A record, an artefact, or the start of a name or key.", metavar="RECORD")]
# Wherever typer keeps its parser: the error of wrong arguments is the base of the one that it makes public.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])
DEFAULT_FILE = Path("parbake.yaml")
_GO_ON = "run the same command again: it goes on where it can"


@dataclass
class Door:
    """How this call talks: ``as_json`` and ``debug`` are set while arguments are read, ``answered`` once it has."""

    as_json: bool = False
    debug: bool = False
    answered: bool = False


door = Door()


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"parbake {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Set what holds for every command."""
    del version  # its callback has answered
    door.debug = debug


@contextmanager
def _events(style: str) -> Iterator[Events]:
    from parbake.render import rendered

    if style not in {"auto", "rich", "plain", "json", "none"}:
        raise InputError(f"--progress {style}: no such style", hint="choose auto, rich, plain, json or none")
    with rendered(style) as events:  # type: ignore[arg-type]  # checked above
        yield events


def _answer(document: Any, text: Callable[[], str]) -> None:
    """Print the result: the JSON document, or the text for people."""
    door.answered = True
    typer.echo(json.dumps(document, indent=2) if door.as_json else text())


@app.command()
def init(
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
    as_json: AsJson = False,
) -> None:
    """Write a commented Bakefile that works as it stands.

    Without options it takes the folder's own Containerfile; where there is none, it writes a sample application too.
    """
    from parbake import beginnings

    door.as_json = as_json
    with _events("plain") as events:
        written = beginnings.begin(
            folder,
            images=tuple(image or ()),
            manifests=from_manifests,
            cluster=from_cluster,
            context=context,
            sizes=sizes,
            force=force,
            events=events,
        )
    _answer({"written": [str(path) for path in written]}, lambda: "\n".join(f"wrote {path}" for path in written))


@app.command()
def plan(file: BakefilePath = DEFAULT_FILE, as_json: AsJson = False, progress: Progress = "auto") -> None:
    """Show what a bake would do, without doing it.

    Shown are the images with their digests and sizes, the disk, the content key, and whether the artefact exists.
    """
    from parbake import flow, tables

    door.as_json = as_json
    with _events(progress) as events:
        outlook = flow.outlook(file, events)
    _answer(tables.outlook_json(outlook), lambda: tables.outlook_text(outlook))


@app.command()
def bake(
    file: BakefilePath = DEFAULT_FILE,
    force: Annotated[bool, typer.Option("--force", help="Bake again what exists already.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build images again even if their context did not change.")
    ] = False,
    verify: Annotated[bool, typer.Option(help="Boot the artefact and start its images, as `parbake verify`.")] = True,
    keep_workspace: KeepWorkspace = False,
    as_json: AsJson = False,
    progress: Progress = "auto",
) -> None:
    """Bake the images, and prove that they start from the artefact.

    Images with `build` are built and pushed first, when their context has changed. Nothing is done when the artefact
    exists and is verified. Needs root.
    """
    from parbake import flow, tables

    door.as_json = as_json
    options = flow.Options(force=force, rebuild=rebuild, verify=verify, keep_workspace=keep_workspace)
    with _events(progress) as events:
        finished = flow.bake(file, events, options)
    _answer(tables.finished_json(finished), lambda: tables.finished_text(finished))


@app.command()
def verify(
    what: What,
    file: BakefilePath = DEFAULT_FILE,
    keep_workspace: KeepWorkspace = False,
    as_json: AsJson = False,
    progress: Progress = "auto",
) -> None:
    """Boot an artefact without a network and start its images.

    The verdict goes into the record; the exit code is 3 when it is bad. RECORD may also be a disk image that parbake
    has no record of: then every image in its store must start.
    """
    from parbake import flow, tables

    door.as_json = as_json
    with _events(progress) as events:
        artefact, verdict = flow.verify_again(what, _output(file), events, keep_workspace=keep_workspace)
    _answer(tables.verdict_json(artefact, verdict), lambda: tables.verdict_text(artefact, verdict))
    flow.judge(artefact, verdict)


@app.command(name="list")
def list_(file: BakefilePath = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """List the artefacts, oldest first."""
    from parbake import records, tables

    door.as_json = as_json
    found = records.find(_output(file))
    _answer([tables.record_json(path, record) for path, record in found], lambda: tables.records_text(found))


@app.command()
def show(what: What, file: BakefilePath = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """Show the record of one artefact.

    With --json it is the in-toto statement as it is stored.
    """
    from parbake import records, tables

    door.as_json = as_json
    artefact, record = records.locate(what, _output(file))
    if record is None:
        raise InputError(f"{artefact} has no record beside it", hint="`parbake verify` can still prove it")
    _answer(records.to_statement(record), lambda: tables.record_text(artefact, record))


@app.command()
def prune(
    keep: Annotated[int, typer.Option(min=0, help="How many artefacts to keep of each name.", metavar="COUNT")] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    file: BakefilePath = DEFAULT_FILE,
    as_json: AsJson = False,
) -> None:
    """Remove old artefacts and their records.

    Of each name the newest ones stay, and always the newest one that passed verification.
    """
    from parbake import flow, tables

    door.as_json = as_json
    decisions = flow.prune(_output(file), keep=keep, dry_run=dry_run)
    _answer(tables.decisions_json(decisions), lambda: tables.decisions_text(decisions, dry_run=dry_run))


@app.command()
def clean(
    file: BakefilePath = DEFAULT_FILE,
    caches: Annotated[
        bool, typer.Option("--caches", help="Also remove all that is cached: default bases, images that were built.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what killed runs left behind, and kept work folders.

    Only files can be left: the kernel ends mounts, loop devices and processes with the run. Runs that are under way
    are not touched.
    """
    from parbake import flow

    door.as_json = as_json
    removed = [str(path) for path in flow.clean(_output(file), caches=caches)]
    _answer({"removed": removed}, lambda: "\n".join(f"removed {path}" for path in removed) or "nothing was left over")


@app.command()
def doctor(file: BakefilePath = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """Say what this machine lacks, and how to get it.

    Programs, privileges, kernel features and disk space, each with the commands that need it.
    """
    from parbake import doctor as examination
    from parbake import tables
    from parbake.workspace import cache_folder

    door.as_json = as_json
    checks = examination.examine(output=_output(file), cache=cache_folder())
    _answer(tables.checks_json(checks), lambda: tables.checks_text(checks))


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Argument(help="Where the demo's files go; kept for the next run.", metavar="FOLDER")
    ] = Path("demo"),
    as_json: AsJson = False,
    progress: Progress = "auto",
) -> None:
    """Run the main job end to end on a sample application.

    Build it, push it to a registry on the loopback, bake, boot the result without a network, start the application
    there, and compare with a pull. Needs root; the first run takes some minutes.
    """
    from parbake import demo as story
    from parbake import tables

    door.as_json = as_json
    with _events(progress) as events:
        outcome = story.tell(folder.absolute(), events=events)
    _answer(tables.outcome_json(outcome), lambda: tables.table(outcome.rows()))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the Bakefile, for editors."""
    from parbake.bakefile import schema as bakefile_schema

    typer.echo(json.dumps(bakefile_schema(), indent=2))


def _output(file: Path) -> Path:
    """Return the folder for artefacts: the Bakefile's, or the default one where there is no Bakefile."""
    from parbake.bakefile import load

    if file == DEFAULT_FILE and not file.exists():
        return Path("artefacts")
    return load(file).output


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted("stopped by SIGTERM", hint=_GO_ON)


def _report(error: ParbakeError) -> int:
    if door.debug:
        traceback.print_exception(error)
    if door.as_json and not door.answered:  # one document, whatever happens
        typer.echo(json.dumps(error.to_json(), indent=2))
    typer.echo(f"parbake: {error.message}", err=True)
    if error.hint:
        typer.echo(f"  next: {error.hint}", err=True)
    return error.exit_code


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; errors are told on standard error."""
    door.as_json = door.debug = door.answered = False
    try:
        code = app(arguments, prog_name="parbake", standalone_mode=False)
    except _UsageError as error:
        error.show()
        if "--json" in (sys.argv if arguments is None else arguments):
            wrong = InputError(error.format_message(), hint="-h after a command shows what it takes")
            typer.echo(json.dumps(wrong.to_json(), indent=2))
        return InputError.exit_code
    except ParbakeError as error:
        return _report(error)
    except OSError as error:
        return _report(from_os_error(error))
    if code == Interrupted.exit_code:
        return _report(Interrupted("interrupted", hint=_GO_ON))
    return code if isinstance(code, int) else 0


def main() -> None:
    """Run as a program."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run())
