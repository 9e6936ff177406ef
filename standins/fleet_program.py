"""Stands for parbake where fleets are tested: plans and bakes cells that are names, in no time.

A folder takes the place of the store. Its ledger says what began and ended, from outside of the engine; a record
appears by link(2), so that the first one counts. How a cell behaves stands in its name: ``wrong``, ``refused``,
``unplanned``, ``mistaken``, ``flaky``, ``killer`` (its worker dies), ``slow`` (until it is ended), ``build`` (its key
is known after a build).

``places`` says which regions a cell is to be in; a file ``REGION.held`` beside it that copies there do not end
while it is there, ``WORD.held`` so the bakes of cells whose names begin with that word, ``plans.held`` so all plans.

Targets of rollouts are files in the folder ``targets`` of the fleet: each holds what was handed to it, the last line
first. ``waves.json`` says which wave has which; a file ``TARGET.stalls``, ``.refuses`` or ``.slow`` beside a target how
it behaves, ``WAVE.no`` that a gate says no. Their ledger is ``targets/ledger``.

It starts for each command: what it imports is built into Python, since ``hashlib``, ``json`` and ``signal`` would
double its CPU time.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import sys
import time
from _json import encode_basestring_ascii as quoted
from _sha2 import sha256  # type: ignore[import-not-found]

SECONDS = float(os.environ.get("FLEET_PROGRAM_SECONDS", "0.05"))
TRIES_OF_FLAKY = 3


def key_of(cell: str, generation: str = "") -> str:
    """Return the key of a cell; a file ``generation`` in the fleet's folder gives all cells others."""
    return str(sha256(f"{cell}{generation}".encode()).hexdigest())


def generation() -> str:
    try:
        with open("generation") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1] if name in arguments else ""


def note(store: str, *words: str) -> None:
    handle = os.open(f"{store}/ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(handle, (" ".join(words) + "\n").encode())
    os.close(handle)


def as_json(value: object) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"{quoted(name)}: {as_json(each)}" for name, each in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(as_json, value)) + "]"
        case str():
            return quoted(value)
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case _:
            return repr(value)


def fail(code: int, error: str, message: str) -> int:
    print(as_json({"error": error, "message": message, "hint": "do something else", "exit_code": code}))
    return code


def plan(arguments: list[str]) -> int:
    store = option(arguments, "--store")
    if os.path.exists("plans.held"):
        note(store, "plan-held")
        wait_while_held("plans")
    cells = []
    for place, word in enumerate(arguments):
        if word != "--cell":
            continue
        cell = arguments[place + 1]
        key, state, problem = key_of(cell, generation()), "bake", None
        if "unplanned" in cell:
            return fail(2, "InputError", "nobody can plan it")
        if os.path.exists(f"{store}/records/{key}"):
            state = "there"
        elif os.path.exists(f"{store}/quarantine/{key}"):
            state = "quarantined"
        elif "wrong" in cell:
            state, problem = "wrong", "there is no such image"
        elif "build" in cell:
            state, key = "build", ""
        cells.append(
            {"cell": cell, "file": cell, "platform": "linux/amd64", "state": state, "key": key, "problem": problem}
            | {"builder": cell.partition("-")[0], "places": [each for each in places() if not placed(store, key, each)]}
        )
    print(as_json({"cells": cells}))
    return 0


def places() -> list[str]:
    try:
        with open("places") as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def placed(store: str, key: str, region: str) -> bool:
    return os.path.exists(f"{store}/placed/{key}.{region}")


def wait_while_held(what: str) -> None:
    """Do not go on while there is a file that says so: of a region, or of the bakes whose cells begin with a word."""
    while os.path.exists(f"{what}.held"):
        time.sleep(0.02)


def copy(arguments: list[str]) -> int:
    key, region, store = arguments[1], arguments[2], option(arguments, "--store")
    note(
        store,
        "copy-start",
        region,
        key,
        option(arguments, "--role"),
        option(arguments, "--share-with"),
        str(time.time()),
    )
    time.sleep(SECONDS)
    wait_while_held(region)
    if os.path.exists(f"{region}.refuses"):
        return fail(1, "AwsNoAccess", f"{region} says no")
    os.makedirs(f"{store}/placed", exist_ok=True)
    open(f"{store}/placed/{key}.{region}", "w").close()
    note(store, "copy-end", region, key)
    print(as_json({"changed": True}))
    return 0


def bake(arguments: list[str]) -> int:
    cell, key, store = (option(arguments, name) for name in ("-f", "--expect-key", "--store"))
    record = f"{store}/records/{key}"
    changed = not os.path.exists(record)
    if changed:
        note(store, "start", key)
        print(as_json({"kind": "stage-start", "name": "fill", "text": f"Fill {cell}"}), file=sys.stderr, flush=True)
        if "killer" in cell:
            os.kill(os.getppid(), _signal.SIGKILL)
        time.sleep(3600 if "slow" in cell else SECONDS)
        wait_while_held(cell.partition("-")[0])
        if "refused" in cell:
            return fail(3, "VerificationFailed", f"{cell} does not start")
        if "mistaken" in cell:
            return fail(2, "BakefileError", f"{cell}: base: is no base")
        with open(f"{store}/ledger") as ledger:
            tried = sum(line == f"start {key}\n" for line in ledger)
        if "flaky" in cell and tried < TRIES_OF_FLAKY:
            return fail(1, "Unreachable", "the registry does not answer")
        draft = f"{record}.{os.getpid()}"
        with open(draft, "w") as file:
            file.write(cell)
        try:
            os.link(draft, record)
            note(store, "end", key)
        except FileExistsError:
            note(store, "second", key)
        os.unlink(draft)
    print(as_json({"artefact": f"{key[:12]}.raw", "changed": changed, "verdict": {"passed": True}, "seconds": 0.1}))
    return 0


def held(target: str) -> list[str]:
    try:
        with open(f"targets/{target}") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def hold(target: str, lines: list[str]) -> None:
    with open(f"targets/{target}.{os.getpid()}", "w") as file:
        file.write("\n".join(lines))
    os.rename(f"targets/{target}.{os.getpid()}", f"targets/{target}")


def state_of(artefact: str) -> dict[str, object]:
    return {"images": [], "snapshot": "", "artefacts": [artefact], "keys": [], "label": ""}


def targets(before: str, after: str, *, changed: bool, canary: str | None = None) -> int:
    found = {"diff": "-+" if changed else "", "before": state_of(before), "after": state_of(after), "canary": canary}
    print(as_json({"targets": [found]}))
    return 0


def behaves(target: str, how: str) -> bool:
    return os.path.exists(f"targets/{target}.{how}")


def rollout(arguments: list[str]) -> int:
    artefact, target = f"art-{arguments[1][:8]}", option(arguments, "--to")
    lines, over = held(target), option(arguments, "--superseding")
    before, changed = (lines or ["nothing"])[0], [artefact] != lines[:1]
    if changed and "--dry-run" not in arguments:
        if behaves(target, "refuses"):
            return fail(1, "RolloutError", f"{target} says no")
        hold(target, [artefact, *(lines[1:] if over and lines[:1] == [over] else lines)])
        note("targets", "write", target, artefact)
    if "--dry-run" not in arguments:
        time.sleep(3600 if behaves(target, "slow") else SECONDS)
        if behaves(target, "stalls"):
            return fail(1, "Stalled", f"{target}: after 1800 s 1 of 3 nodes run it")
        if behaves(target, "pulls"):
            hold(target, lines)
            note("targets", "look", target, artefact)
            return fail(3, "CanaryFailed", f"{target}: 0 of 2 pods used the bake. It went back")
        if behaves(target, "open"):
            note("targets", "look", target, artefact)
            os.remove(f"targets/{target}.open")
    return targets(before, artefact, changed=changed, canary="waits" if behaves(target, "open") else None)


def rollback(arguments: list[str]) -> int:
    target, holding = option(arguments, "--to"), option(arguments, "--holding")
    lines = held(target)
    if lines[:1] != [holding]:
        print(as_json({"targets": []}))
        return 0
    if behaves(target, "refuses"):
        return fail(1, "RolloutError", f"{target} says no")
    hold(target, lines[1:])
    note("targets", "back", target, holding)
    return targets(holding, (lines[1:] or ["nothing"])[0], changed=True)


def waves(arguments: list[str]) -> int:
    del arguments
    if not os.path.exists("waves.json"):
        return fail(2, "InputError", "the fleet has no waves")
    with open("waves.json") as file:
        print(file.read())
    return 0


def prune(arguments: list[str]) -> int:
    if "refused" in option(arguments, "-f"):
        return fail(2, "BakefileError", "no file of an artefact is to go")
    note(option(arguments, "--store"), "prune", option(arguments, "-f"))
    print(as_json({"freed": 0, "decisions": []}))
    return 0


def build(arguments: list[str]) -> int:
    print(as_json({"key": key_of(option(arguments, "-f"))}))
    return 0


def gate(arguments: list[str]) -> int:
    wave = arguments[2]
    note("targets", "gate", wave)
    problem = "too many errors" if os.path.exists(f"targets/{wave}.no") else None
    print(as_json({"wave": wave, "answers": [{"asked": "errors", "problem": problem}]}))
    return 3 if problem else 0


def stopped(*_: object) -> None:
    os._exit(130)


def main(arguments: list[str]) -> int:
    _signal.signal(_signal.SIGTERM, stopped)
    of_fleet = {"plan": plan, "rollout": waves, "gate": gate}
    commands = {"build": build, "bake": bake, "copy": copy, "rollout": rollout, "rollback": rollback, "prune": prune}
    return of_fleet[arguments[1]](arguments) if arguments[0] == "fleet" else commands[arguments[0]](arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
