"""Stands for parbake where fleets are tested: plans and bakes cells that are names, in no time.

A folder takes the place of the store. Its ledger says what began and ended, from outside of the engine; a record
appears by link(2), so that the first one counts. How a cell behaves stands in its name: ``wrong``, ``refused``,
``flaky``, ``killer`` (its worker dies), ``slow`` (until it is ended), ``build`` (its key is known after a build).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time

SECONDS = float(os.environ.get("FLEET_PROGRAM_SECONDS", "0.05"))
TRIES_OF_FLAKY = 3


def key_of(cell: str) -> str:
    return hashlib.sha256(cell.encode()).hexdigest()


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1] if name in arguments else ""


def note(store: str, *words: str) -> None:
    handle = os.open(f"{store}/ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(handle, (" ".join(words) + "\n").encode())
    os.close(handle)


def fail(code: int, error: str, message: str) -> int:
    print(json.dumps({"error": error, "message": message, "hint": "do something else", "exit_code": code}))
    return code


def plan(arguments: list[str]) -> int:
    store = option(arguments, "--store")
    cells = []
    for place, word in enumerate(arguments):
        if word != "--cell":
            continue
        cell = arguments[place + 1]
        key, state, problem = key_of(cell), "bake", None
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
        )
    print(json.dumps({"cells": cells}))
    return 0


def bake(arguments: list[str]) -> int:
    cell, key, store = (option(arguments, name) for name in ("-f", "--expect-key", "--store"))
    record = f"{store}/records/{key}"
    changed = not os.path.exists(record)
    if changed:
        note(store, "start", key)
        print(json.dumps({"kind": "stage-start", "name": "fill", "text": f"Fill {cell}"}), file=sys.stderr, flush=True)
        if "killer" in cell:
            os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(3600 if "slow" in cell else SECONDS)
        if "refused" in cell:
            return fail(3, "VerificationFailed", f"{cell} does not start")
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
    print(json.dumps({"artefact": f"{key[:12]}.raw", "changed": changed, "verdict": {"passed": True}, "seconds": 0.1}))
    return 0


def stopped(*_: object) -> None:
    os._exit(130)


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, stopped)
    if arguments[:2] == ["fleet", "plan"]:
        return plan(arguments)
    if arguments[0] == "build":
        print(json.dumps({"key": key_of(option(arguments, "-f"))}))
        return 0
    if arguments[0] == "prune":
        note(option(arguments, "--store"), "prune", option(arguments, "-f"))
        print(json.dumps({"freed": 0, "decisions": []}))
        return 0
    return bake(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
