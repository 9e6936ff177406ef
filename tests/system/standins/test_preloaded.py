"""A command of parbake that is a copy of one process does what a program of its own does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest

from parbake.core.run import Process
from parbake.machine.disk import private_mounts
from standins import PLAIN, adopted, command
from standins import preloaded as preloaded_
from standins.command import PROGRAM, Corner, Done
from standins.leaks import files
from standins.preloaded import Preloaded

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Preloaded(tmp_path_factory.mktemp("preloaded")) as server:
        yield server.script


@pytest.mark.skipif(PLAIN, reason="every command is such a program there")
def test_a_plain_one_is_a_program_that_has_loaded_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make test-plain` tests: each command, each program of a document, and each worker of a fleet."""
    for module in (preloaded_, command, adopted):
        monkeypatch.setattr(module, "PLAIN", True)
    corner = Corner(tmp_path)
    with patch.object(subprocess, "Popen", wraps=subprocess.Popen) as started:
        assert corner.parbake("--version").code == 0
    assert [call.args[0] for call in started.call_args_list] == [[*PROGRAM, "--version"]]
    worker = adopted.Program("standins.fleet_worker").process(["x"], log=tmp_path / "log", env={})
    assert type(worker) is Process
    assert Preloaded(tmp_path).script == " ".join(PROGRAM)


def told(parbake: str, words: str, folder: Path, env: Mapping[str, str]) -> tuple[int, str, str]:
    """Run it in a shell with an umask of its own; return all that it says."""
    command = ["sh", "-c", f"umask 027; {parbake} {words}"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "--version",
        "--help",
        "bake --help",
        "list --json",
        "show nothing",
        "plan",
        "no-such-command",
        "schema",
        "init .",
    ],
)
def test_it_says_the_same_with_the_same_code(words: str, preloaded: str, tmp_path: Path) -> None:
    text = "version: 1\nname: a\nbase: none\noutput: made\nimages: ['127.0.0.1:1/app:1']\n"
    answers = []
    for name, parbake in (("copy", preloaded), ("program", f"{sys.executable} -m parbake")):
        folder = tmp_path / name / "here"
        folder.mkdir(parents=True)
        if "init" not in words:
            (folder / "parbake.yaml").write_text(text)
        said = told(parbake, words, folder, {"PARBAKE_CACHE": str(tmp_path / name / "cache")})
        answers.append((said, [(path.name, path.stat().st_mode) for path in sorted(folder.iterdir())]))
    copied, started = answers
    assert str(copied) == str(started).replace("python -m parbake", "parbake").replace("/program/", "/copy/")


def test_what_it_is_given_is_its_callers(preloaded: str, tmp_path: Path) -> None:
    """Standard input, too."""
    code, out, _ = told(f"echo '{{}}' | {preloaded}", "lint - --json", tmp_path, {})
    again = told(f"echo '{{}}' | {sys.executable} -m parbake", "lint - --json", tmp_path, {})
    assert (code, out) == again[:2]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_copy_is_killed_and_interrupted_as_a_program_is(number: int, tmp_path: Path) -> None:
    """In the middle of a bake, in a session and folder of its own: what it leaves and says is the same."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(120)
        copied, started = (
            stopped(tmp_path / name, silent, program, number) for name, program in (("copy", ()), ("program", PROGRAM))
        )
    assert copied == started
    assert copied[0].code == (-number if number == signal.SIGKILL else 130)


def stopped(folder: Path, silent: socket.socket, program: tuple[str, ...], number: int) -> tuple[Done, set[str]]:
    """Bake from a registry that never answers, and send a signal."""
    corner, image = Corner(folder), f"127.0.0.1:{silent.getsockname()[1]}/app:1"
    corner.write("parbake.yaml", f"version: 1\nname: a\nbase: none\nimages: ['{image}']\n")
    with corner.start("bake", "--json", "--progress", "json", program=program) as run:
        asking, _ = silent.accept()
        assert os.getsid(run.pid) == os.getpgid(run.pid) == run.pid
        assert Path(f"/proc/{run.pid}/cwd").readlink() == folder
        assert Path(f"/proc/{run.pid}/fd/0").readlink() == Path(os.devnull)
        run.kill(number)
        done = run.finish()
        asking.close()
    assert corner.leaked() == []
    return done, files(folder)


def test_what_calls_main_itself_is_run_in_a_copy(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom parbake.__main__ import main\nprint(sys.argv.pop(1), __name__, flush=True)\nmain()\n"
    )
    with Corner(tmp_path / "corner").start("first", "--version", script=str(script)) as run:
        done = run.finish()
    assert done.stdout.startswith("first __main__\nparbake ")
    assert (done.code, done.said) == (0, "")


def test_who_has_mounts_of_its_own_starts_a_program_among_them(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os\nprint(os.stat('/proc/self/ns/mnt').st_ino)\n")
    corner, mine = Corner(tmp_path / "corner"), Path("/proc/thread-self/ns/mnt")
    seen = []
    spaces: tuple[AbstractContextManager[object], ...] = (nullcontext(), private_mounts())
    for space in spaces:
        with space, corner.start(script=str(script)) as run:
            seen.append(int(run.finish().stdout))
            assert seen[-1] == mine.stat().st_ino
    assert seen[0] != seen[1]
