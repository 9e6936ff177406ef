"""Repositories of ECR: made when an image is pushed to one that is missing. AWS is moto, in this process."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import boto3
import botocore.client
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from parbake.core.errors import CommandFailed, Denied, InputError
from parbake.core.events import Events
from parbake.core.model import Platform, RegistryOptions
from parbake.core.reference import Reference
from parbake.images.build import build
from parbake.images.registry import ecr
from parbake.images.registry.client import _Repository
from parbake.images.registry.credentials import find_credentials
from parbake.images.registry.endpoint import Missing
from standins.contexts import Spec

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


@pytest.fixture(autouse=True)
def no_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no pull-through cache rules, of which moto knows nothing."""
    real = botocore.client.BaseClient._make_api_call

    def call(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        empty: dict[str, Any] = {"pullThroughCacheRules": []}
        return empty if operation == "DescribePullThroughCacheRules" else real(self, operation, arguments)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", call)


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
    with pytest.raises(Denied, match=r"did not create the repository shop/api: AccessDeniedException") as caught:
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


def test_another_account_in_another_region(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where to ask, and for whose registry, follows from the host name alone."""
    asked: list[tuple[str, str, Any]] = []

    def call(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        asked.append((self.meta.region_name, operation, arguments.get("registryId")))
        if operation == "GetAuthorizationToken":
            token = base64.b64encode(b"AWS:word").decode()
            return {"authorizationData": [{"authorizationToken": token}]}
        if operation == "DescribeRepositories":
            raise self.exceptions.RepositoryNotFoundException({"Error": {"Code": "RepositoryNotFoundException"}}, "x")
        return {}

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", call)
    host = "210987654321.dkr.ecr.ap-south-1.amazonaws.com"
    target = ecr.parse(host)
    assert target
    assert ecr.login(host, target) == ("AWS", "word")
    assert ecr.ensure_repository(host, "shop/api", RegistryOptions())
    theirs = ("DescribeRepositories", "DescribePullThroughCacheRules", "CreateRepository")
    assert asked == [
        ("ap-south-1", "GetAuthorizationToken", None),  # one token is good for every registry of a region
        *(("ap-south-1", operation, "210987654321") for operation in theirs),
    ]


def test_ecr_public_signs_in_one_region_and_wants_no_login_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def call(self: Any, operation: str, _arguments: dict[str, Any]) -> Any:
        asked.append((self.meta.region_name, self.meta.service_model.service_name))
        assert operation == "GetAuthorizationToken"
        return {"authorizationData": {"authorizationToken": base64.b64encode(b"AWS:word").decode()}}

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", call)
    assert find_credentials("public.ecr.aws", "docker/library/nginx", RegistryOptions()) is None
    found = find_credentials("public.ecr.aws", "docker/library/nginx", RegistryOptions(credentials="ecr"))
    assert found
    assert (found.username, found.password, asked) == ("AWS", "word", [("us-east-1", "ecr-public")])


@pytest.mark.parametrize("code", ["ExpiredTokenException", "UnrecognizedClientException"])
def test_aws_credentials_that_are_over(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    over = ClientError({"Error": {"Code": code, "Message": "The security token is expired"}}, "x")
    refusing(monkeypatch, GetAuthorizationToken=over)
    target = ecr.parse(HOST)
    assert target
    with pytest.raises(Denied, match=code) as caught:
        ecr.login(HOST, target)
    assert "aws sso login" in caught.value.hint


RULES = [
    {"ecrRepositoryPrefix": "ecr-public", "upstreamRegistryUrl": "public.ecr.aws"},
    {"ecrRepositoryPrefix": "ROOT", "upstreamRegistryUrl": "registry-1.docker.io"},
]


@pytest.mark.parametrize(
    ("repository", "cached"),
    [("ecr-public/docker/library/nginx", True), ("ecr-public", False), ("ecr-publications/api", False), ("a/b", False)],
)
def test_no_repository_is_made_in_a_pull_through_cache(
    monkeypatch: pytest.MonkeyPatch, there: Any, repository: str, cached: bool
) -> None:
    real = botocore.client.BaseClient._make_api_call

    def call(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        if operation == "DescribePullThroughCacheRules":
            assert arguments == {"registryId": ACCOUNT}
            return {"pullThroughCacheRules": RULES}
        return real(self, operation, arguments)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", call)
    if cached:
        with pytest.raises(InputError, match=r"ecr-public is a cache of public\.ecr\.aws"):
            ecr.ensure_repository(HOST, repository, RegistryOptions())
    else:
        assert ecr.ensure_repository(HOST, repository, RegistryOptions())
    made = [each["repositoryName"] for each in there.describe_repositories()["repositories"]]
    assert made == ([] if cached else [repository])


def test_rules_that_may_not_be_read_are_in_no_way(monkeypatch: pytest.MonkeyPatch, there: Any) -> None:
    refusing(monkeypatch, DescribePullThroughCacheRules=denied("DescribePullThroughCacheRules"))
    assert ecr.ensure_repository(HOST, "shop/api", RegistryOptions())
    assert there.describe_repositories()["repositories"]
