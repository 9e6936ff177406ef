"""`make` offers what its help says, and packages.apt brings what parbake runs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest

from parbake.core.programs import PROGRAMS, package_of
from parbake.core.run import run

ROOT = Path(__file__).parents[3]
PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]+")
LISTED = [line for line in (ROOT / "packages.apt").read_text().splitlines() if line and not line.startswith("#")]
# Left to the user: another builder in buildah's place, a cluster's client, another architecture's machines.
NOT_INSTALLED = {"docker", "podman", "kubectl"}


def make(*arguments: str) -> str:
    return run(["make", "-C", str(ROOT), *arguments]).text


def test_help_shows_every_target() -> None:
    help_ = make("help")
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) - {"packages"}
    shown = {line.split()[0] for line in help_.splitlines() if "  " in line and not line.startswith("make")}
    assert targets == shown
    assert {"setup", "lint", "test", "test-unit", "demo", "clean", "help"} <= targets


@pytest.mark.parametrize("target", re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
def test_every_target_is_understood(target: str) -> None:
    """It would run something, in words that its shell understands, and every file and module of ours is there."""
    commands = make("--dry-run", "--always-make", target)
    assert [line for line in commands.splitlines() if not line.startswith("make: ")]
    run(["/bin/bash", "-n"], stdin=commands.encode())
    for module in re.findall(r" -m ((?:bench|tests|tools)\.[\w.]+)", commands):
        assert importlib.util.find_spec(module), module
    for path in re.findall(r"(?<=\s)(?:src|tests|tools)(?:/[\w.-]+)+", commands):
        assert (ROOT / path).exists(), path


def test_every_script_that_make_runs_is_there() -> None:
    scripts = set(re.findall(r"\btools/[\w-]+", (ROOT / "Makefile").read_text())) | {".ci/run"}
    for script in scripts:
        assert os.access(ROOT / script, os.X_OK), script


def test_packages_are_names() -> None:
    assert len(LISTED) == len(set(LISTED))
    for name in LISTED:
        assert PACKAGE_NAME.fullmatch(name)


def test_packages_bring_every_program() -> None:
    for program in (*(program.name for program in PROGRAMS), "ctr"):
        package = package_of(program)
        assert package in LISTED or program in NOT_INSTALLED, f"{program} needs {package} in packages.apt"


def install(tmp_path: Path, packages: str, apt: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run tools/install-packages with stand-ins for dpkg and apt; only `there` is installed."""
    tools = {
        "dpkg-query": '#!/bin/sh\n[ "$4" = there ] && echo installed\n',
        "apt-get": apt,
        "id": "#!/bin/sh\necho 0\n",
    }
    for name, script in tools.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "packages").write_text(packages)
    policy = tmp_path / "policy-rc.d"
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "POLICY": str(policy), "TMPDIR": str(tmp_path)}
    command = [str(ROOT / "tools/install-packages"), str(tmp_path / "packages")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False), policy


def test_only_missing_packages_are_installed_and_no_service_starts(tmp_path: Path) -> None:
    apt = f'#!/bin/sh\necho "$@" >> {tmp_path}/log\n[ $2 = update ] || sh $POLICY || echo refused >> {tmp_path}/log\n'
    done, policy = install(tmp_path, "# why\nthere\nmissing\n\nalso # because\n", apt)
    assert done.returncode == 0, done.stderr
    update, installation, verdict = (tmp_path / "log").read_text().splitlines()
    assert update.endswith("update")
    assert installation.endswith("install missing also")
    assert verdict == "refused"
    assert not policy.exists()


def test_nothing_missing_runs_nothing(tmp_path: Path) -> None:
    done, _ = install(tmp_path, "there\n", "#!/bin/sh\nexit 1\n")
    assert (done.returncode, done.stdout) == (0, "")


def test_a_failing_installation_is_shown_and_leaves_no_policy(tmp_path: Path) -> None:
    done, policy = install(tmp_path, "missing\n", "#!/bin/sh\necho E: no network; exit 100\n")
    assert done.returncode == 1
    assert "E: no network" in done.stderr
    assert not policy.exists()


def test_the_machines_own_policy_stays(tmp_path: Path) -> None:
    (tmp_path / "policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    _, policy = install(tmp_path, "missing\n", "#!/bin/sh\nexit 0\n")
    assert policy.read_text() == "#!/bin/sh\nexit 101\n"


def test_a_policy_that_a_killed_run_left_goes(tmp_path: Path) -> None:
    (tmp_path / "policy-rc.d").write_text("#!/bin/sh\n# made by parbake's make setup; it removes it again\nexit 101\n")
    _, policy = install(tmp_path, "there\n", "#!/bin/sh\nexit 1\n")
    assert not policy.exists()
