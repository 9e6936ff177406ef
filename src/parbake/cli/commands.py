"""The commands by what they are for, and where they are: a module loads when one of its commands is asked for.

Before anything else happens, users wait until code has loaded. So a command waits for its own module alone, and the
list in ``parbake --help`` for none: it is written down here, and a test compares it with what the commands say of
themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from itertools import chain
from typing import Any, Final, NamedTuple, override

import typer
from typer.core import TyperGroup

from parbake.core.errors import InputError


class Listed(NamedTuple):
    """A command, or a group of commands: the module of this wing that has it, and what it does in one sentence."""

    module: str
    summary: str


COMMANDS: Final[Mapping[str, Mapping[str, Listed]]] = {
    "Bake": {
        "init": Listed("artefacts", "Write a commented Bakefile that works as it stands."),
        "suggest": Listed(
            "suggest", "Suggest what to bake, from what was started: images, and the lowest layers that images share."
        ),
        "plan": Listed("artefacts", "Show what a bake would do, without doing it."),
        "build": Listed("artefacts", "Build and push the images that have `build`, without baking."),
        "bake": Listed("artefacts", "Bake the images, and prove that they start from the artefact."),
        "verify": Listed("artefacts", "Boot an artefact without a network and start its images."),
        "list": Listed("artefacts", "List the artefacts, oldest first."),
        "show": Listed("artefacts", "Show the record of one artefact."),
        "export": Listed("exports", "Write files for other tools."),
        "copy": Listed("snapshots", "Copy an AMI or a snapshot to another region, and share it there."),
        "fetch": Listed("snapshots", "Read an EBS snapshot, or the root disk of an AMI, into a file."),
        "schema": Listed("artefacts", "Print the JSON Schema of the Bakefile, for editors."),
        "demo": Listed("artefacts", "Run the main job end to end on a sample application."),
    },
    "Roll out": {
        "lint": Listed("lint", "Find the pods that will not use the bake, and say why."),
        "coverage": Listed("lint", "Show what nodes with a bake still fetch of an image: bytes, layers, seconds."),
        "rollout": Listed("rollouts", "Roll an artefact out to the Bakefile's targets, and follow it to the nodes."),
        "rollback": Listed("rollouts", "Return targets to their previous artefact, and follow it to the nodes."),
        "status": Listed("rollouts", "Show what each target holds, and how far its nodes are."),
        "observe": Listed("observe", "Show which pods used the bake, which pulled all the same, and why."),
        "freeze": Listed("rollouts", "Stop targets from replacing nodes, until `parbake thaw`."),
        "thaw": Listed("rollouts", "Let targets replace nodes again, after `parbake freeze`."),
        "watch": Listed("rollouts", "Bake and roll out whenever a tag, a build or the base moves."),
    },
    "Cold starts": {
        "trace": Listed("coldstart", "Record which blocks a cold start reads, in which order."),
        "hydrate": Listed("coldstart", "Write the files with which a node loads hot blocks and files early."),
        "advise": Listed("coldstart", "Recommend the cheapest remedy for cold volumes, and say why."),
        "report": Listed("coldstart", "Write a one-page HTML report of a cold start."),
    },
    "Many machines": {
        "fleet": Listed("fleet", "Bake many Bakefiles for several architectures, on many machines."),
    },
    "Operate": {
        "doctor": Listed("artefacts", "Check what this machine lacks, and how to get it."),
        "iam": Listed("iam", "Print the policies that this Bakefile needs in AWS, and the roles in Kubernetes."),
        "prune": Listed("artefacts", "Remove old artefacts and their records, or cached layers."),
        "clean": Listed("artefacts", "Remove what killed runs left behind, and kept work folders."),
    },
}
"""In the order in which help shows them."""

_MOVED: Final = {"savings": "`parbake advise --size MB` estimates it, without a record; --pulls is --launches there"}
_LISTED: Final = dict(chain.from_iterable(names.items() for names in COMMANDS.values()))
_applications: dict[str, typer.Typer] = {}


def application(name: str, **settings: Any) -> typer.Typer:
    """Return a new application for a command, or for a group of commands, that is listed by this name.

    ``settings`` are typer's own, such as ``help``.
    """
    _applications[name] = typer.Typer(
        name=name,
        cls=WholeList,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        **settings,
    )
    return _applications[name]


@cache
def _command(name: str) -> Any:
    """Return a command as typer's parser takes it; its module makes an ``application`` of it while it loads."""
    import_module(f"{__package__}.{_LISTED[name].module}")
    return typer.main.get_command(_applications[name])


class _Commands(Mapping[str, Any]):
    """All commands by name; one that is looked up is loaded."""

    @override
    def __getitem__(self, name: str) -> Any:
        return _command(name)

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(_LISTED)

    @override
    def __len__(self) -> int:
        return len(_LISTED)


class WholeList(TyperGroup):
    """Shows what each of its commands does in a whole sentence, on as many lines as it takes."""

    @override
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a row for each command."""
        rows = [(name, command.get_short_help_str(sys.maxsize)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class CommandList(TyperGroup):
    """Has the commands that are listed here, and shows them in their groups."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": _Commands()})

    @override
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Say where a command is that has become part of another one; raises InputError."""
        if args and args[0] in _MOVED:
            raise InputError(f"there is no `parbake {args[0]}` any more", hint=_MOVED[args[0]])
        return super().resolve_command(ctx, args)

    @override
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group, all with the same column of names."""
        width = max(map(len, _LISTED))
        for title, names in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), listed.summary) for name, listed in names.items()])
