"""The workflow for GitHub Actions in `deploy/`: its form is GitHub's, its commands are real, and it ends as they do."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from parbake import cli

WORKFLOW = Path(__file__).parents[3] / "deploy/github-actions.yaml"


def taken(*arguments: str) -> None:
    """Fail unless parbake reads these arguments."""
    assert cli.run([*arguments, "--help"]) == 0, arguments


def step() -> str:
    workflow = YAML(typ="safe").load(WORKFLOW.read_text())
    (found,) = [step for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    return str(found["run"])


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_verification_that_said_no_fails_the_workflow(tmp_path: Path, code: int) -> None:
    """The step as a runner runs it (``bash -e``), with a stand-in for parbake that ends so."""
    (tmp_path / "parbake").write_text(f"#!/bin/sh\necho '{{}}'\nexit {code}\n")
    (tmp_path / "parbake").chmod(0o755)
    (tmp_path / "step.sh").write_text(step())
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(
        ["/bin/bash", "-e", "step.sh"], cwd=tmp_path, env=path, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert (tmp_path / "baked.json").read_text() == done.stdout == "{}\n"


def test_the_workflow_is_one_and_calls_what_there_is() -> None:
    check = Path(sys.executable).with_name("check-jsonschema")
    command = [str(check), "--builtin-schema", "vendor.github-workflows", str(WORKFLOW)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    (line,) = [line for line in step().splitlines() if line.startswith("parbake ")]
    taken(*shlex.split(line.partition(">")[0])[1:])
