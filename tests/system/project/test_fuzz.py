"""A short run of the fuzzer, and that it finds what there is to find."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import usual
from tests.fuzz.stacks import COMPARISONS
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[3]


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
    """Of one target of each kind: what all of them do with seeds is below."""
    compared = list(COMPARISONS) if os.geteuid() == 0 else []
    assert usual() == [*compared, *(name for name, target in TARGETS.items() if target.usual)]
    some = [*compared[-1:], "files"]
    done = fuzz("--seconds", 1, "--folder", tmp_path, *some)
    assert done.returncode == 0, done.stdout
    runs = dict(re.findall(r"^(\w+): nothing found in (\d+) runs", done.stdout, re.MULTILINE))
    assert set(runs) == set(some)
    for name, count in runs.items():
        assert int(count) > (0 if name in COMPARISONS else len(list(TARGETS[name].seeds()))), name


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


@pytest.mark.root
@pytest.mark.parametrize("name", COMPARISONS)
def test_a_finding_of_a_comparison_is_a_number_that_reproduces_it(name: str, tmp_path: Path) -> None:
    """With a rule taken away by which parbake is stricter, a stack soon fails; with the rule it is no finding."""
    without = "from standins import comparison; comparison.STRICTER.clear(); from tests.fuzz import stacks, __main__"
    code = f"{without}; __main__.inside({name!r}, ['120', {str(tmp_path)!r}])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stdout
    (file,) = tmp_path.iterdir()
    assert file.name == f"{name}-{file.read_text().strip()}"
    assert "parbake alone refuses it" in done.stdout
    assert "Spec(" in done.stdout
    assert f"Test unit written to {file}" in done.stdout
    again = fuzz("--again", file, name)
    assert again.returncode == 0, again.stderr
    assert "is no finding (any more)" in again.stdout


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.usual])
def test_seeds_are_no_findings(name: str) -> None:
    for seed in TARGETS[name].seeds():
        TARGETS[name].function(seed)
