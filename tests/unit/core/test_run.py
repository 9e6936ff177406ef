"""The hands: subprocesses, deadlines, events, work folders."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from parbake.core import run
from parbake.core.errors import CommandFailed, DeadlineExceeded, EnvironmentProblem


def test_run_returns_what_the_program_said() -> None:
    result = run.run(["sh", "-c", "cat; echo warn >&2"], stdin=b"hello\n")
    assert (result.text, result.stderr, result.code) == ("hello", "warn\n", 0)


def test_run_closes_standard_input_and_cleans_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    result = run.run(["sh", "-c", "env; wc -c"], env={"EXTRA": "1"})
    assert "s3cret" not in result.text
    assert "EXTRA=1" in result.text
    assert result.text.endswith("0")


def test_a_failing_command_is_named_with_its_last_words() -> None:
    with pytest.raises(CommandFailed) as caught:
        run.run(["sh", "-c", "echo one >&2; echo 'two three' >&2; exit 7"])
    assert caught.value.code == 7
    assert "sh -c" in caught.value.message
    assert caught.value.output.endswith("two three")


def test_a_missing_program_names_its_package() -> None:
    with pytest.raises(EnvironmentProblem, match="parbake-no-such-tool is not installed") as caught:
        run.run(["parbake-no-such-tool"])
    assert "apt-get install" in caught.value.hint


def test_the_containerd_to_use_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "containerd"
    other.write_text("#!/bin/sh\necho containerd 2.9.9\n")
    monkeypatch.setenv("PARBAKE_CONTAINERD", str(other))
    with pytest.raises(EnvironmentProblem, match=f"PARBAKE_CONTAINERD is {other}, which does not exist"):
        run.need("containerd")
    other.chmod(0o755)
    assert run.run(["containerd", "--version"]).text == "containerd 2.9.9"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARBAKE_CONTAINERD", "./containerd")
    assert run.find("containerd") is None, "another program in each folder"


@pytest.mark.parametrize("path", [None, "", ".", "bin", ":/usr/bin", "/usr/bin::/bin", "/nowhere:./bin:"])
def test_programs_never_come_from_the_current_folder(
    path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those that parbake starts, nor those that these look for themselves, wherever they run."""
    for folder in (tmp_path, tmp_path / "bin"):
        folder.mkdir(exist_ok=True)
        for name in ("setpriv", "sort", "planted"):
            (folder / name).write_text(f'#!/bin/sh\ntouch {tmp_path}/{name}-ran\nexec /usr/bin/{name} "$@"\n')
            (folder / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    if path is None:
        monkeypatch.delenv("PATH")
    else:
        monkeypatch.setenv("PATH", path)
    assert run.run(["sort"], stdin=b"b\na\n").text == "a\nb"
    assert run.run(["sh", "-c", "sort"], stdin=b"b\na\n", cwd=tmp_path / "bin").text == "a\nb"
    with run.Process(["sh", "-c", "sort /dev/null"], log=tmp_path / "log") as process:
        deadline = run.Deadline(120, "the program ends")
        while process.alive:
            deadline.sleep(0.01)
    for name in ("planted", "./planted", "bin/planted"):
        with pytest.raises(EnvironmentProblem):
            run.run([name])
    assert list(tmp_path.glob("*-ran")) == []


def test_a_program_that_only_a_relative_path_leads_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted").write_text("#!/bin/sh\n")
    (tmp_path / "planted").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", ".")
    with pytest.raises(EnvironmentProblem, match=r"\./planted is not run") as caught:
        run.need("planted")
    assert "in full" in caught.value.hint


def test_a_time_limit_ends_the_program() -> None:
    with pytest.raises(DeadlineExceeded, match="sleep 60"):
        run.run(["sleep", "60"], timeout=0.2)


def test_process_logs_lives_and_stops(tmp_path: Path) -> None:
    with run.Process(["sh", "-c", "echo ready; exec sleep 60"], log=tmp_path / "log") as process:
        deadline = run.Deadline(120, "the program speaks")
        while "ready" not in process.tail:
            deadline.sleep(0.01)
        assert process.alive
        process.check_alive()
    assert not process.alive


def test_a_process_that_ended_is_reported_with_its_log(tmp_path: Path) -> None:
    with run.Process(["sh", "-c", "echo broken; exit 3"], log=tmp_path / "log") as process:
        deadline = run.Deadline(120, "the program ends")
        while process.alive:
            deadline.sleep(0.01)
        with pytest.raises(CommandFailed, match="broken"):
            process.check_alive()


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    with run.Process(
        ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"], log=tmp_path / "log"
    ) as process:
        deadline = run.Deadline(120, "the program speaks")
        while "up" not in process.tail:
            deadline.sleep(0.01)
        process.stop(grace=0.2)
        assert not process.alive


def test_children_die_with_us_even_by_sigkill(tmp_path: Path) -> None:
    """A parent that starts a process, killed with SIGKILL, leaves none behind."""
    marker = f"parbake-test-{os.getpid()}"
    program = (
        "import sys, time; from pathlib import Path; from parbake.core import run\n"
        f"process = run.Process(['sh', '-c', 'echo up; sleep 61 # {marker}'], log=Path({str(tmp_path / 'log')!r}))\n"
        "process.__enter__(); print('started', flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout
    parent.stdout.readline()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    def living() -> list[str]:
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = entry.read_bytes()
            except OSError:
                continue
            if marker.encode() in command and int(entry.parent.name) != os.getpid():
                found.append(entry.parent.name)
        return found

    deadline = run.Deadline(120, "the child dies")
    while living():
        deadline.sleep(0.02)


# In a session of its own, so that nothing else has a part in its share: a greedy program, and a nice one's child.
_SHARES = """
import os, sys
from pathlib import Path
from subprocess import Popen
from parbake.core.run import Deadline, Process
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
spin = [sys.executable, "-c", "while True: pass"]
spent = lambda pid: int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
with Popen(spin) as greedy:
    os.nice(19)
    with Process(spin, log=Path(os.devnull)) as nice:
        deadline, before = Deadline(60, "the greedy program gets its share"), spent(greedy.pid)
        while spent(greedy.pid) < before + 0.3:
            deadline.sleep(0.02)
        print(spent(nice.pid))
    greedy.kill()
"""


def test_a_process_has_the_priority_that_its_caller_has() -> None:
    """With the other's share of the processor it would have used 0.3 s; at the lowest priority it is due 0.005."""
    command = [sys.executable, "-c", _SHARES]
    done = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True, timeout=90)
    assert float(done.stdout) < 0.1


def test_nothing_starts_a_session_of_its_own() -> None:
    """Each session would get an equal share of the processors. The agent runs on a node, which nobody works at."""
    source = Path(run.__file__).parents[1]
    found = {path for path in source.rglob("*.py") if re.search(r"start_new_session|\bsetsid\b", path.read_text())}
    assert found == {source / "node" / "agent.py"}


def test_deadline_counts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds))
    monkeypatch.setattr(run, "time", clock)
    deadline = run.Deadline(0.05, "tea")
    deadline.sleep(0.01)
    assert deadline.left == pytest.approx(0.04)
    deadline.sleep(1)
    assert now[0] == pytest.approx(100.05), "no longer than there is time"
    with pytest.raises(DeadlineExceeded, match="tea: not done within 0 s"):
        deadline.sleep(0.01)


def test_root_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(EnvironmentProblem, match="baking needs root"):
        run.need_root("baking")
