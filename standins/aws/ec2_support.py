"""Bakes on EC2's stand-in, for the tests of the builder: a plan, and a function that bakes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parbake.bakefile import AwsSection
from parbake.builders import Ingredients, Publication
from parbake.builders.ec2 import Ec2Builder, launch
from parbake.core.claim import Claim
from parbake.core.events import Event, Events
from parbake.core.model import GIB, Artefact, Base, ExitProbe, Plan, Platform, RegistryOptions, Startup
from parbake.core.plan import make_plan
from standins.aws.ec2 import Cloud, refuse
from standins.aws.iam_recorder import allowed_by, caller
from standins.aws.instances import Notes
from standins.plans import bake_remotely, image
from tests.aws.conftest import REGION

APP = image("registry.example/app:1", startup=Startup(up=ExitProbe()))
OTHER = "us-east-1"


@pytest.fixture
def cloud(aws_mock: None, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    del aws_mock
    monkeypatch.setattr(launch, "_POLL", 0.001)
    monkeypatch.setattr(launch, "_AFTER_STOP", 0.01)
    made = Cloud()
    made.install(monkeypatch)
    return made


def plan_for(base: str, **more: Any) -> Plan:
    usual: dict[str, Any] = {
        "name": "shop",
        "platform": Platform(architecture="amd64"),
        "base": Base(kind="ami", identity=base, size=8 * GIB),
        "artefact": Artefact(kind="machine-image", format="ami"),
        "images": [APP],
        "sandbox": None,
    }
    return make_plan(**{**usual, **more})


@pytest.fixture
def plan(cloud: Cloud) -> Plan:
    return plan_for(cloud.base(REGION))


@pytest.fixture
def volume(cloud: Cloud) -> Plan:
    return plan_for(cloud.base(REGION), artefact=Artefact(kind="volume", format="snapshot"))


type Bake = Callable[..., Publication]


@pytest.fixture
def bake(plan: Plan, tmp_path: Path) -> Bake:
    """Return what bakes; the policy that `parbake iam` prints for it must allow every call."""

    def run(
        *,
        verify: bool = True,
        fresh: bool = False,
        of: Plan | None = None,
        registries: Mapping[str, RegistryOptions] | None = None,
        seen: list[Event] | None = None,
        claim: Claim | None = None,
        **settings: Any,
    ) -> Publication:
        aws = AwsSection(region=REGION, **settings)
        builder = Ec2Builder(aws, registries or {}, limit=600.0, verify=verify, fresh=fresh)
        ingredients = Ingredients(None, _no_source, tmp_path, Events(_silent if seen is None else seen.append))
        if claim:
            ingredients = replace(ingredients, claim=claim)
        with allowed_by(policy_for(of or plan, settings)):
            return bake_remotely(builder, of or plan, ingredients)

    return run


def policy_for(plan: Plan, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the policy of whoever bakes a plan with settings."""
    more = {"artefact": {"kind": "volume"}} if plan.artefact.kind == "volume" else {}
    return caller("ec2", {"region": REGION, **settings}, base=plan.base.identity, image=str(APP.reference), **more)


def _silent(_event: Event) -> None:
    return


def _no_source(_image: object) -> Any:
    raise AssertionError("the instance pulls, nobody else")


def notes(cloud: Cloud) -> Notes:
    """Return the hardware of a stand-in whose machines are folders."""
    assert isinstance(cloud.hardware, Notes)
    return cloud.hardware


def failing(cloud: Cloud, operation: str, code: str, message: str = "no", times: int = 1000) -> None:
    left = [times]

    def fault(_service: str, called: str, _arguments: dict[str, Any]) -> None:
        if called == operation and left[0]:
            left[0] -= 1
            raise refuse(code, message, operation)

    cloud.before.append(fault)


def named(cloud: Cloud, *operations: str) -> list[dict[str, Any]]:
    """Return the arguments of the calls of these names."""
    return [arguments for _, operation, arguments in cloud.calls if operation in operations]
