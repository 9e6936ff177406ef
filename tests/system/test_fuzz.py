"""A short run of the fuzzer, and that it finds what there is to find."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]


def fuzz(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_a_short_run(tmp_path: Path) -> None:
    done = fuzz("--seconds", 6, "--folder", tmp_path)
    assert done.returncode == 0, done.stdout
    runs = dict(re.findall(r"^(\w+): nothing found in (\d+) runs$", done.stdout, re.MULTILINE))
    assert set(runs) == {name for name, target in TARGETS.items() if target.usual}
    for name, count in runs.items():
        assert int(count) > len(list(TARGETS[name].seeds())), name


def test_a_finding_is_a_file_that_reproduces_it(tmp_path: Path) -> None:
    done = fuzz("--seconds", 60, "--folder", tmp_path, "planted")
    assert done.returncode == 1
    (file,) = (tmp_path / "found").glob("planted-crash-*")
    assert len(file.read_bytes()) > 3
    assert f"-m tests.fuzz --again {file} planted" in done.stdout
    again = fuzz("--again", file, "planted")
    assert again.returncode == 1
    assert "ValueError: planted" in again.stderr
    file.write_bytes(b"no")
    assert fuzz("--again", file, "planted").returncode == 0


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.usual])
def test_seeds_are_no_findings(name: str) -> None:
    for seed in TARGETS[name].seeds():
        TARGETS[name].function(seed)
