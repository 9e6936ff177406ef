"""A program that begins as a copy is a child of ours, as one that we have started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from parbake.core.run import Deadline
from standins import PLAIN
from standins.adopted import Program, main

pytestmark = pytest.mark.skipif(PLAIN, reason="nothing is a copy there")

US = "tests.system.standins.test_adopted"
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(US)


def env(**more: str) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def line_of(log: Path) -> str:
    deadline = Deadline(60, "what it says")
    while not (found := log.read_text() if log.exists() else "").endswith("\n"):
        deadline.sleep(0.02)
    return found.splitlines()[-1]


def test_it_is_a_child_with_an_environment_a_log_and_an_exit_code(program: Program, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with program.process(["7", "x y"], log=log, env=env(WORD="said")) as copy:
        said = line_of(log)
        assert said == f"{copy.pid} of {os.getpid()}, session {copy.pid}: said, x y"
        assert copy.alive
        os.kill(copy.pid, signal.SIGUSR1)
        deadline = Deadline(60, "its end")
        while copy.alive:
            deadline.sleep(0.02)
        assert copy.code == 7
    with program.process(["0"], log=tmp_path / "other", env=env(WORD="again")) as copy:
        assert ": again, " in line_of(tmp_path / "other")
    assert copy.code == -signal.SIGTERM, "leaving stops it"


def test_it_dies_with_who_has_asked_for_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    asks = (
        f"import os; from pathlib import Path; from standins.adopted import Program; program = Program({US!r})\n"
        f"copy = program.process(['0'], log=Path({str(log)!r}), env=dict(os.environ, WORD='short')).__enter__()\n"
        "print(copy.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", asks], env=env(), capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = Deadline(60, "its death")
    while Path(f"/proc/{done.stdout.strip()}").exists():
        deadline.sleep(0.02)


def _say(arguments: Sequence[str]) -> None:
    """Say who this is, and end with a code when somebody asks for it."""
    code, *words = arguments
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    who = f"{os.getpid()} of {os.getppid()}, session {os.getsid(0)}"
    sys.stdout.write(f"{who}: {os.environ['WORD']}, {' '.join(words)}\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGUSR1})
    sys.exit(int(code))


if __name__ == "__main__":
    main(_say)
