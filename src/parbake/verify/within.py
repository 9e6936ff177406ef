"""Proofs that a machine makes of itself (``node/prove.py``): what it is asked, what it says, and Docker's nodes here.

A machine in EC2 is reached by nothing else; on a node that runs Docker there is no CRI to ask.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from parbake.core.errors import MachineError
from parbake.core.model import Image, ImageVerdict, Plan, Startup
from parbake.core.nodefiles import node_file
from parbake.verify.starter import shown_by

if TYPE_CHECKING:
    from parbake.core.events import Events
    from parbake.machine.vm import Machine

_FOLDER = "/run/parbake-prove"
# The rule of the guest's script: Kubernetes up to 1.22 runs Docker where a node has it.
_DOCKERS = """\
command -v dockerd >/dev/null || exit 1
command -v ctr >/dev/null || exit 0
minor=$(kubelet --version 2>/dev/null | sed -n 's/.*v1\\.\\([0-9]*\\).*/\\1/p')
[ -n "$minor" ] && [ "$minor" -le 22 ]
"""
_ANSWERS = "systemctl start docker; until docker version --format '{{.Server.Version}}'; do sleep 0.3; done"
_LIST = "docker images --no-trunc --format '{{.Repository}}:{{.Tag}} {{.ID}}' | grep -v '<none>'"
_READY = 120.0  # seconds with hardware virtualisation, for a daemon that starts for the first time
_TOLD = len("sha256:") + 32
"""Characters of a digest that the program is told: half of it, whose like nobody makes. User data has little room."""
_NEVER = 1e6  # seconds: nothing starts for so long
_OUTPUT = 64 << 10  # characters of what an image wrote
_SEEN = {"exit", "mounted"}  # what also shows where no probe is asked: on Bottlerocket
_EACH = 60.0  # seconds beyond an image's own limit


class _Bare(ast.NodeTransformer):
    """Takes the texts out that document a program."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        return ast.Expr(ast.Constant(0)) if isinstance(node.value, ast.Constant) else node


@cache
def program() -> str:
    """Return the program that proves images, without its comments: user data has little room."""
    parts, own = (ast.parse(node_file(name).read_text()) for name in ("cri.py", "prove.py"))
    parts.body += [each for each in own.body if not (isinstance(each, ast.ImportFrom) and each.module == "cri")]
    return ast.unparse(_Bare().visit(parts))


def subject(image: Image, plan: Plan) -> dict[str, Any]:
    """Return what the program is told of an image."""
    is_sandbox = image == plan.sandbox
    starts = not is_sandbox and image.part_of is None
    return {
        "names": list(image.names),
        "target": image.target.digest[:_TOLD],
        "config": image.config.digest[:_TOLD],
        "sandbox": is_sandbox,
        "start": (image.startup or Startup()).model_dump(mode="json") if starts else None,
    }


def proof(reference: str, digest: str, said: Mapping[str, Any] | None, startup: Startup | None = None) -> ImageVerdict:
    """Return the verdict on an image that was started so, from what the program said of it (None: nothing)."""
    if said is None:
        return ImageVerdict(reference=reference, problems=("the machine did not report on it",))
    try:
        started, sandbox, ran = (said.get(name) for name in ("start_seconds", "sandbox_seconds", "ran_seconds"))
        if not all(seconds is None or 0 <= seconds < _NEVER for seconds in (started, sandbox, ran)):
            raise ValueError(started, sandbox, ran)
        how = startup if startup is None or said.get("asked", True) or startup.up.kind in _SEEN else Startup()
        return ImageVerdict(
            reference=reference,
            digest=digest,
            pinned=said["pinned"],
            unpacked=started is not None,
            startup=startup,
            shown=shown_by(how.up, runs=ran is not None) if how and started is not None else "",
            ran_seconds=ran,
            start_seconds=started,
            sandbox_seconds=sandbox,
            problems=tuple(said["problems"]),
            output=said.get("output", "")[-_OUTPUT:],
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return ImageVerdict(reference=reference, problems=("what the machine reports on it makes no sense",))


def runs_docker(machine: Machine) -> bool:
    """Tell whether a booted machine is a node whose kubelet uses Docker."""
    return machine.guest.run(["sh", "-c", _DOCKERS]).code == 0


def wait_docker(machine: Machine) -> str:
    """Wait for the machine's Docker; return what it calls itself. Raises MachineError."""
    said = machine.guest.check(["sh", "-c", _ANSWERS], timeout=_READY * machine.stretch)
    return f"docker {(said.split() or ['?'])[-1]}"


def prove_docker(machine: Machine, plan: Plan | None, events: Events) -> Iterator[ImageVerdict]:
    """Start the images of a plan, or all that Docker has (None), in a machine; yield the verdict on each.

    Raises MachineError where the machine cannot tell.
    """
    if plan:
        told = [(image.target.digest, subject(image, plan)) for image in plan.whole_images]
    else:
        told = [("", each) for each in all_subjects(machine)]
    machine.guest.check(["sh", "-c", f"mkdir -p {_FOLDER} && cat >{_FOLDER}/prove.py"], stdin=program().encode())
    with events.stage("start", f"Start {', '.join(each['names'][0] for _, each in told)}"):
        said = _ask(machine, [each for _, each in told])
    for digest, each in told:
        name = str(each["names"][0])
        yield proof(name, digest, said.get(name), Startup.model_validate(each["start"]))


def all_subjects(machine: Machine) -> Iterator[dict[str, Any]]:
    """Return what the program is told of all that the machine's Docker has, where no plan says what that is."""
    listed = machine.guest.run(["sh", "-c", _LIST], timeout=_READY * machine.stretch)
    for line in sorted(listed.output.splitlines()):
        name, _, identity = line.partition(" ")
        yield {
            "names": [name],
            "target": "",
            "config": identity,
            "sandbox": False,
            "start": Startup().model_dump(mode="json"),
        }


def longest(startups: Iterable[Startup]) -> float:
    """Return how many seconds starts may take: each once, once more alone, and as long as it is watched. Pure."""
    return sum(2 * (each.timeout + each.watch) for each in startups)


def _ask(machine: Machine, subjects: Sequence[dict[str, Any]]) -> dict[str, Mapping[str, Any]]:
    limit = longest(Startup.model_validate(each["start"]) for each in subjects) + _EACH * len(subjects)
    for each in subjects:
        each["start"]["timeout"] *= machine.stretch
    path = f"{_FOLDER}/subjects"
    machine.guest.check(["sh", "-c", f"cat >{path}"], stdin=json.dumps(subjects).encode())
    said = machine.guest.check(["python3", f"{_FOLDER}/prove.py", "docker", path], timeout=limit * machine.stretch)
    try:
        proofs = [json.loads(line.partition(" ")[2]) for line in said.splitlines() if line.startswith("proved ")]
        if not proofs:
            raise ValueError(said)
        return {str(each["name"]): each for each in proofs}
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise MachineError(f"the verification program failed: {said[-500:]}") from error
