"""A copy as a piece of work of its own, on EC2's stand-in: for an AMI, a volume, another account, others' shares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from standins.aws.ec2 import Cloud
from standins.aws.ec2_support import cloud
from standins.runs import Done, parbake, private_places
from tests.aws.builders.test_ec2_story import file
from tests.aws.conftest import REGION

__all__ = ["cloud", "file", "private_places"]

OTHER, THIRD = "us-east-1", "eu-central-1"
ACCOUNT, ROLE = "210987654321", "arn:aws:iam::210987654321:role/copies"


@pytest.fixture
def store(file: Path, private_places: Path) -> Path:
    """The store of the Bakefile, which is baked."""
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "store": str(private_places / "store")}))
    parbake("bake", "-f", file, "--json", "--progress", "none").good()
    return private_places / "store"


def copy(file: Path, region: str, *more: str) -> Done:
    return parbake("copy", "node", region, "-f", file, *more, "--json", "--progress", "none")


def published(file: Path) -> dict[str, dict[str, object]]:
    return dict(parbake("show", "node", "-f", file, "--json").good()["parbake"]["published"])


def test_one_more_place(cloud: Cloud, file: Path, store: Path) -> None:
    made = copy(file, OTHER, "--share-with", ACCOUNT).good()
    assert (made["changed"], made["shared_with"], made["region"]) == (True, [ACCOUNT], OTHER)
    [image] = cloud.left(OTHER)["images"]
    assert made["image"] == image
    again = copy(file, OTHER, "--share-with", ACCOUNT).good()
    assert (again["changed"], again["image"]) == (False, image)
    more = copy(file, OTHER, "--share-with", "444444444444").good()
    assert (more["changed"], more["image"], more["shared_with"]) == (True, image, [ACCOUNT, "444444444444"])
    home = copy(file, REGION, "--share-with", ACCOUNT).good()
    assert (home["changed"], home["shared_with"]) == (True, [ACCOUNT])
    assert list(published(file)) == [REGION, OTHER], "the home region stays the first"
    assert cloud.left(OTHER)["images"] == [image]
    assert parbake("bake", "-f", file, "--json", "--progress", "none").good()["changed"] is False
    assert not list((store / "leases").glob("*")) or "free" in next((store / "leases").iterdir()).read_text()


def test_a_place_of_another_account_is_that_ones(cloud: Cloud, file: Path, store: Path) -> None:
    """It is made in its role, and is looked for, compared and pruned in it where commands are told of it."""
    del cloud, store
    made = copy(file, OTHER, "--role", ROLE).good()
    assert made["account"] == ACCOUNT
    assert published(file)[OTHER]["account"] == ACCOUNT
    told = ("--copy-role", f"{OTHER}={ROLE}")
    again = parbake("bake", "-f", file, *told, "--json", "--progress", "none").good()
    assert (again["changed"], list(again["published"])) == (False, [REGION, OTHER])
    done = copy(file, OTHER, "--role", ROLE.replace(ACCOUNT, "444444444444"))
    assert (done.code, done.document["error"]) == (2, "InputError")
    assert f"belongs to {ACCOUNT}" in done.err
    done = copy(file, REGION, "--role", ROLE)
    assert done.code == 2
    assert "was baked in eu-west-1 itself, where nothing is copied" in done.err
    done = parbake("prune", "-f", file, "--copy-role", "ireland", "--dry-run")
    assert done.code == 2
    assert "'ireland' is not a region and its role" in done.err
