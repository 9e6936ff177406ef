"""The door: arguments, rendering, exit codes. Only this room exits; everything below raises.

Results go to standard output (one JSON document with ``--json``), everything else to standard error.
Exit codes: 0 done or nothing to do, 1 failed, 2 the input is wrong, 3 verification said no, 130 interrupted.
"""

from __future__ import annotations

import gc
import inspect
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from parbake import __version__
from parbake.cli import choices
from parbake.cli.commands import CommandList, application
from parbake.core import interrupts, printable
from parbake.core.errors import InputError, Interrupted, ParbakeError, from_os_error
from parbake.core.events import Events

if TYPE_CHECKING:
    from types import TracebackType

app = typer.Typer(
    name="parbake",
    cls=CommandList,
    help="Bake container images into machine images and volumes, so that nodes start with nothing left to pull.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

BakefilePath = Annotated[Path, typer.Option("-f", "--file", help="The Bakefile.", metavar="FILE")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on standard output.")]
Progress = Annotated[
    str,
    typer.Option(
        help="How to show progress: auto, rich, plain, json or none.",
        metavar="STYLE",
        autocompletion=choices.PROGRESS.complete,
    ),
]
KeepWorkspace = Annotated[
    bool, typer.Option("--keep-workspace", help="Keep the work folder for debugging, and print its path.")
]
RehearseIn = Annotated[
    Literal["machine", "host"] | None,
    typer.Option(
        "--rehearse-in",
        help="Where to start the images of a volume: in a virtual machine, or confined on this machine itself. "
        "Default: in a machine if KVM works here, or parbake is not root.",
        metavar="machine|host",
    ),
]
KubeContext = Annotated[
    str,
    typer.Option(
        "--context", help="kubectl's context for --from-cluster; its current one if left out.", metavar="NAME"
    ),
]
PricesFile = Annotated[
    Path | None, typer.Option("--prices", help="A JSON file of prices, to replace parbake's.", metavar="FILE")
]
NodeHour = Annotated[
    float | None, typer.Option(min=0, help="What a node costs per hour, instead of the list's price.", metavar="PRICE")
]
WHICH = "A record, an artefact, or the start of a name or key. A Bakefile's whole name means its newest artefact"
"""How a record is named: the beginning of a command's help."""
Selector = Annotated[
    str,
    typer.Argument(
        help=f"{WHICH}; so does none.", metavar="RECORD", show_default=False, autocompletion=choices.records
    ),
]
Folder = Annotated[
    str | None,
    typer.Argument(
        help="Where to write; created if missing. One word alone is the folder.", metavar="FOLDER", show_default=False
    ),
]
"""After a ``Selector`` that may be left out: what is alone is the folder (``last_alone``)."""
# Wherever typer keeps its parser: the error of wrong arguments is the base of the one that it makes public.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])
DEFAULT_FILE = Path("parbake.yaml")


@dataclass
class Output:
    """How this call talks: ``as_json`` and ``debug`` are set while arguments are read, ``printed`` once it has."""

    as_json: bool = False
    debug: bool = False
    printed: bool = False


out = Output()


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"parbake {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback if something fails.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Set what holds for every command."""
    del version  # its callback has answered
    out.debug = debug


@contextmanager
def opened_events(style: str) -> Iterator[Events]:
    """Yield the stream of events, shown in a style; raises InputError for one that does not exist."""
    from parbake.cli.progress import rendered

    choices.PROGRESS.need(style)
    if not gc.isenabled():
        gc.freeze()  # what lives by now is code, for good: the collector need not look at it
        gc.enable()
    with rendered(style) as events:  # type: ignore[arg-type]  # checked above
        yield events


@dataclass(frozen=True, slots=True)
class Result:
    """What a command prints: the JSON document, or the text for people. ``then`` is called once it is printed.

    The document gets a field with the records that the command chose, unless its form is others' (``foreign``), as that
    of a statement, of SARIF, or of a kubelet's configuration.
    """

    document: Any
    text: Callable[[], str]
    then: Callable[[], object] = lambda: None
    foreign: bool = False

    def print(self) -> None:
        """Print the whole result, also when a signal comes meanwhile."""
        interrupts.hold()
        out.printed = True
        typer.echo(printable.dump(self.document, indent=2) if out.as_json else printable.lines(self.text()))


def written(paths: Iterable[Path], *warnings: str, **more: Any) -> Result:
    """Return the result of a command that writes files; ``more`` is for the document, warnings are for people."""
    names = [str(path) for path in paths]
    return Result({"written": names, **more}, lambda: "\n".join([*(f"wrote {name}" for name in names), *warnings]))


def last_alone(selector: str, last: str | None, what: str) -> tuple[str, str]:
    """Return what ``[RECORD] LAST`` means: one word alone is the last. Raises InputError without ``what`` that is."""
    if not (selector or last):
        raise InputError(f"missing argument {what}", hint="-h after a command shows its options")
    return (selector, last) if last is not None else ("", selector)


def command(
    group: typer.Typer | None = None, *, progress: str = "", **settings: Any
) -> Callable[[Callable[..., Result | None]], Callable[..., None]]:
    """Make a command of a function, which gets the option --json; its result is printed when it has returned.

    It belongs to a ``group``, or is one of those that ``commands`` lists.
    A function with a parameter ``events`` is given the stream of events, and the option --progress unless ``progress``
    is the style; a parameter ``quiet`` silences it. ``settings`` are typer's own, such as ``name``.
    """

    def decorate(function: Callable[..., Result | None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        parameters = dict(signature.parameters)
        takes_events = bool(parameters.pop("events", None))
        options: dict[str, tuple[Any, object]] = {"as_json": (AsJson, False)}
        if takes_events and not progress:
            options["progress"] = (Progress, "auto")
        for name, (annotation, default) in options.items():
            parameters[name] = inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
            )

        @wraps(function)
        def call(*, as_json: bool, progress: str = progress, **arguments: Any) -> None:
            out.as_json = as_json
            if arguments.get("quiet") and progress == "auto":
                progress = "none"
            if takes_events:
                with opened_events(progress) as events:
                    result = function(events=events, **arguments)
                if result and events.taken and not result.foreign:
                    result = replace(result, document={"records": events.taken, **result.document})
            else:
                result = function(**arguments)
            if result:
                result.print()
                result.then()

        call.__signature__ = signature.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]
        of = application(settings.get("name", function.__name__)) if group is None else group
        return of.command(**settings)(call)

    return decorate


def _report(error: ParbakeError) -> int:
    interrupts.hold()  # once, and whole
    if out.debug:
        typer.echo(printable.lines("".join(traceback.format_exception(error))), err=True)
    if out.as_json and not out.printed:  # one document, whatever happens
        typer.echo(printable.dump(error.to_json(), indent=2))
    typer.echo(printable.lines(f"parbake: {error.message}"), err=True)
    if error.hint:
        typer.echo(printable.lines(f"  next: {printable.word(error.hint)}"), err=True)
    return error.exit_code


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; errors go to standard error."""
    out.debug = out.printed = False
    out.as_json = "--json" in (sys.argv if arguments is None else arguments)  # for errors before the command says so
    code = InputError.exit_code
    try:
        interrupts.begin()
        code = _dispatch(arguments)
    except (interrupts.Stop, KeyboardInterrupt) as error:
        code = _interrupted(error)
    finally:
        interrupts.end(code)
    return code


def _dispatch(arguments: list[str] | None) -> int:
    try:
        code = app(arguments, prog_name="parbake", standalone_mode=False)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a group by itself: what it can do was asked for
            typer.echo(printable.lines(error.format_message()))
            return 0
        usage = io.StringIO()
        error.show(usage)
        typer.echo(printable.lines(usage.getvalue()), nl=False, err=True)
        if out.as_json:
            wrong = InputError(error.format_message(), hint="-h after a command shows its options")
            typer.echo(printable.dump(wrong.to_json(), indent=2))
        return InputError.exit_code
    except ParbakeError as error:
        return _interrupted(error) if interrupts.reason() else _report(error)
    except OSError as error:
        return _interrupted(error) if interrupts.reason() else _report(from_os_error(error))
    if code == Interrupted.exit_code:  # what a KeyboardInterrupt becomes on its way through typer
        return _report(Interrupted("interrupted"))
    return code if isinstance(code, int) else 0


def _interrupted(error: BaseException) -> int:
    """Tell that the run was stopped, whatever failed on the way out."""
    stopped = Interrupted(interrupts.reason() or "interrupted")
    stopped.__cause__ = error
    return _report(stopped)


def _tell_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what nobody expected: its words may be those of others too."""
    typer.echo(printable.lines("".join(traceback.format_exception(kind, error, trace))), nl=False, err=True)


def main() -> None:
    """Run as a program."""
    sys.excepthook = _tell_bug
    code = run()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    # All is told and cleaned up. The interpreter's end would take apart what ends with it anyway, wait for threads of
    # libraries that were cut off, and may crash in the engine's library, so that the code would be another one.
    os._exit(code)
