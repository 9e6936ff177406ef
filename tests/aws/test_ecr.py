"""Repositories of ECR: made when an image is pushed to one that is missing. AWS is moto, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import boto3
import botocore.client
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from parbake import build
from parbake.errors import CommandFailed, Denied
from parbake.events import Events
from parbake.model import Platform, RegistryOptions
from parbake.reference import Reference
from parbake.registry import ecr
from parbake.registry.client import _Repository
from parbake.registry.endpoint import Missing
from tests.support.specs import Spec

pytestmark = pytest.mark.usefixtures("aws_mock")

ACCOUNT = "123456789012"
HOST = f"{ACCOUNT}.dkr.ecr.eu-central-1.amazonaws.com"


@pytest.fixture
def there() -> Any:
    """The registry's region, which is not the configured one."""
    return boto3.client("ecr", region_name="eu-central-1")


def test_a_repository_is_made_once(there: Any) -> None:
    assert ecr.ensure_repository(HOST, "shop/api", RegistryOptions())
    (made,) = there.describe_repositories()["repositories"]
    assert (made["repositoryName"], made["registryId"]) == ("shop/api", ACCOUNT)
    assert made["imageScanningConfiguration"] == {"scanOnPush": True}
    assert made["imageTagMutability"] == "MUTABLE"
    assert not ecr.ensure_repository(HOST, "shop/api", RegistryOptions(immutable_tags=True))
    assert there.describe_repositories()["repositories"][0]["imageTagMutability"] == "MUTABLE"


def test_a_repository_is_made_as_the_bakefile_says(there: Any) -> None:
    assert ecr.ensure_repository(HOST, "shop/api", RegistryOptions(immutable_tags=True, scan_on_push=False))
    (made,) = there.describe_repositories()["repositories"]
    assert made["imageTagMutability"] == "IMMUTABLE"
    assert made["imageScanningConfiguration"] == {"scanOnPush": False}


@pytest.mark.parametrize(
    ("host", "options"),
    [
        (HOST, RegistryOptions(create=False)),
        ("public.ecr.aws", RegistryOptions()),
        ("ghcr.io", RegistryOptions()),
        ("localhost", RegistryOptions()),
    ],
)
def test_what_is_left_alone(host: str, options: RegistryOptions, there: Any) -> None:
    assert not ecr.ensure_repository(host, "shop/api", options)
    assert there.describe_repositories()["repositories"] == []


def refusing(monkeypatch: pytest.MonkeyPatch, **answers: Exception | None) -> list[str]:
    """Let calls to ECR fail, by operation; return the list of those that were made."""
    called: list[str] = []
    real = botocore.client.BaseClient._make_api_call

    def call(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        called.append(operation)
        if answer := answers.get(operation):
            raise answer
        return real(self, operation, arguments)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", call)
    return called


def denied(operation: str) -> ClientError:
    return ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, operation)


def test_who_may_not_look_may_still_push(monkeypatch: pytest.MonkeyPatch) -> None:
    called = refusing(monkeypatch, DescribeRepositories=denied("DescribeRepositories"))
    assert not ecr.ensure_repository(HOST, "shop/api", RegistryOptions())
    assert called == ["DescribeRepositories"]


def test_who_may_not_create_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, CreateRepository=denied("CreateRepository"))
    with pytest.raises(Denied, match=r"does not make the repository shop/api: AccessDeniedException") as caught:
        ecr.ensure_repository(HOST, "shop/api", RegistryOptions())
    assert "ecr:CreateRepository" in caught.value.hint


def test_another_run_was_faster(monkeypatch: pytest.MonkeyPatch, there: Any) -> None:
    real = botocore.client.BaseClient._make_api_call

    def call(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        if operation == "CreateRepository":
            real(self, operation, {"repositoryName": arguments["repositoryName"]})
        return real(self, operation, arguments)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", call)
    assert not ecr.ensure_repository(HOST, "shop/api", RegistryOptions(immutable_tags=True))
    assert there.describe_repositories()["repositories"][0]["imageTagMutability"] == "MUTABLE"


def test_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, DescribeRepositories=EndpointConnectionError(endpoint_url="https://x"))
    with pytest.raises(Denied, match="Could not connect"):
        ecr.ensure_repository(HOST, "shop/api", RegistryOptions())


class Tool:
    """A stand-in for a builder: builds nothing, and ends where a push would begin."""

    name = "stand-in"

    def __init__(self, place: Any) -> None:
        self.place = place
        self.seen = json.loads(place.auth_file.read_text())

    def build(self, request: Any) -> None:
        del request

    def push(self, tag: str, to: Reference) -> str:
        raise CommandFailed(f"pushing {tag} to {to}", code=1)


def test_a_build_makes_the_repository_before_it_pushes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Any
) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context/Containerfile").write_text("FROM scratch\n")
    tools: list[Tool] = []

    def choose(place: Any) -> Tool:
        tools.append(Tool(place))
        return tools[-1]

    monkeypatch.setattr(build, "choose", choose)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    notes: list[str] = []
    spec = Spec(context=tmp_path / "context", file=tmp_path / "context/Containerfile")
    with pytest.raises(CommandFailed, match=r"shop/api:1"):
        build.build(
            spec,
            Reference.parse(f"{HOST}/shop/api:1"),
            Platform(architecture="amd64"),
            options={HOST: RegistryOptions(immutable_tags=True)},
            events=Events(lambda event: notes.append(event.text)),
            work=tmp_path / "work",
            cache=tmp_path / "cache",
            force=True,
        )
    (made,) = there.describe_repositories()["repositories"]
    assert (made["repositoryName"], made["imageTagMutability"]) == ("shop/api", "IMMUTABLE")
    assert any("made the repository" in note for note in notes)
    # The login was there for the builder alone: nothing of it stays.
    assert list(tools[0].seen["auths"]) == [HOST]
    secret = tools[0].seen["auths"][HOST]["auth"]
    left = [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_text(errors="replace")]
    assert left == []


class Empty:
    """A registry that has no such repository."""

    def fetch(self, *_: object, **__: object) -> None:
        raise Missing("gone", "NAME_UNKNOWN")


@pytest.mark.parametrize(("host", "said"), [(HOST, "ecr:BatchImportUpstreamImage"), ("ghcr.io", "its first push")])
def test_a_pull_through_cache_may_lack_a_permission(host: str, said: str) -> None:
    reference = Reference.parse(f"{host}/docker-hub/library/nginx:1")
    endpoints: Any = (Empty(),)
    nothing: Any = None
    repository = _Repository(reference, endpoints, nothing, nothing, nothing)
    assert said in repository._no_such(reference).hint
