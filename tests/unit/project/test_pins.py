"""What others make and we run is named by its bytes: actions by commit, images by digest, packages by hash."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[3]
WORKFLOW = ROOT / "deploy/github-actions.yaml"
CONTAINERFILES = (
    ROOT / "deploy/Containerfile",
    ROOT / "deploy/agent.Containerfile",
    ROOT / "src/parbake/node/Containerfile",
)
MANIFESTS = (
    ROOT / "deploy/chart/files/agent.yaml",
    ROOT / "deploy/chart/values.yaml",
    ROOT / "src/parbake/node/daemonset.yaml",
    WORKFLOW,
)
LOCKS = {"developers": ROOT / "requirements.lock", "image": ROOT / "deploy/requirements.lock"}

COMMIT = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v[0-9.]+")
BY_DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
TO_FILL_IN = re.compile(r"([^@\s]+@sha256:DIGEST|IMAGE)?")  # no image: nothing starts before a user has written one


def images(value: Any) -> Iterator[str]:
    """Every value under a key `image`."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        if key == "image" and isinstance(item, str):
            yield item
        yield from images(item)


def locked(file: Path) -> dict[str, tuple[str, int]]:
    """What a lock file names: the version, and how many hashes."""
    blocks = re.split(r"^(?=[A-Za-z0-9])", file.read_text(), flags=re.MULTILINE)[1:]
    found = {}
    for block in blocks:
        named = re.match(r"([\w.-]+)==(\S+)", block)
        assert named, f"not pinned: {block[:80]}"
        found[named[1]] = (named[2], len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block)))
    return found


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-").replace(".", "-")


def test_actions_are_named_by_their_commit() -> None:
    used = re.findall(r"uses: *(.+)", WORKFLOW.read_text())
    assert used
    assert [line for line in used if not COMMIT.fullmatch(line)] == []


@pytest.mark.parametrize("file", CONTAINERFILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_images_that_others_build_on_are_named_by_their_digest(file: Path) -> None:
    text = file.read_text()
    usual = dict(re.findall(r"^ARG +(\w+)=(\S+)", text, re.MULTILINE))
    bases = [usual.get(base.strip("${}"), base) for base in re.findall(r"^FROM +(\S+)", text, re.MULTILINE)]
    stages = {"scratch", *re.findall(r"^FROM +\S+ +AS +(\w+)", text, re.MULTILINE)}
    assert bases
    assert [base for base in bases if base not in stages and not BY_DIGEST.fullmatch(base)] == []


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_images_that_run_are_named_by_their_digest(file: Path) -> None:
    found = [image for document in YAML(typ="safe").load_all(file.read_text()) for image in images(document)]
    assert found
    assert [image for image in found if not BY_DIGEST.fullmatch(image) and not TO_FILL_IN.fullmatch(image)] == []


@pytest.mark.parametrize("file", LOCKS.values(), ids=LOCKS)
def test_each_package_of_a_lock_file_has_its_hashes_and_no_place(file: Path) -> None:
    found = locked(file)
    assert found
    assert [name for name, (_, hashes) in found.items() if not hashes] == []
    assert not re.search(r"https?://|--(extra-)?index|--find-links", file.read_text())


def test_the_lock_files_hold_what_the_project_asks_for() -> None:
    """After a change of pyproject.toml: `make lock`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runs = [*project["project"]["dependencies"], *chain(*project["project"]["optional-dependencies"].values())]
    image, developers = locked(LOCKS["image"]), locked(LOCKS["developers"])
    assert {name_of(each) for each in (*runs, *project["build-system"]["requires"])} <= set(image)
    assert {name_of(each) for each in (*runs, *project["dependency-groups"]["dev"])} <= set(developers)
    assert [name for name in image if image[name][0] != developers.get(name, ("", 0))[0]] == [], "two versions"


def test_whatever_is_installed_comes_from_a_lock_file() -> None:
    lines = (ROOT / "deploy/Containerfile").read_text().splitlines()
    lines += (ROOT / "tools/make-venv").read_text().splitlines()
    installs = [line for line in lines if re.search(r"\bpip install\b", line)]
    assert len(installs) >= 4
    safe = re.compile(r"--require-hashes|--no-deps\b.*--no-build-isolation|--no-index\b")
    assert [line for line in installs if not safe.search(line)] == []


def test_what_tests_compare_with_is_named_by_its_version_and_bytes() -> None:
    lines = [line.split() for line in (ROOT / "packages.newer").read_text().splitlines()]
    packages = {fields[0]: fields[1:] for fields in lines if fields and not fields[0].startswith("#")}
    assert packages["containerd"][1].startswith("2.")
    for suite, version, checksum in packages.values():
        assert re.fullmatch(r"[a-z]+ \d\S+ [0-9a-f]{64}", f"{suite} {version} {checksum}")
