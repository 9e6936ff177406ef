"""Credentials are found where Docker, Podman and AWS users have them, and are never shown."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from parbake.core.errors import Denied, EnvironmentProblem
from parbake.core.extras import how_to_add
from parbake.core.model import RegistryOptions
from parbake.images.registry import ecr
from parbake.images.registry.credentials import Credentials, find_credentials

AUTO = RegistryOptions()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has nothing yet."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "PARBAKE_USERNAME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))


def helper(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def found(host: str, repository: str = "team/app", options: RegistryOptions = AUTO) -> tuple[str, str] | None:
    credentials = find_credentials(host, repository, options)
    return (credentials.username, credentials.password) if credentials else None


def test_nothing_is_known() -> None:
    assert found("reg.test") is None


@pytest.mark.parametrize(
    "key", ["reg.test", "https://reg.test", "http://reg.test/", "https://reg.test/v1/", "reg.test/v2/"]
)
def test_docker_config_however_the_key_is_written(home: Path, key: str) -> None:
    write(home / ".docker/config.json", {"auths": {key: auth("ann", "pass:word")}})
    assert found("reg.test") == ("ann", "pass:word")
    assert found("other.test") is None


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_has_many_names(home: Path, key: str) -> None:
    write(home / ".docker/config.json", {"auths": {key: auth("ann", "word")}})
    assert found("docker.io", "library/busybox") == ("ann", "word")


def test_the_first_file_that_knows_the_host_wins(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".docker/config.json", {"auths": {"reg.test": auth("docker", "1")}})
    write(home / ".config/containers/auth.json", {"auths": {"late.test": auth("config", "4")}})
    assert found("reg.test") == ("docker", "1")
    assert found("late.test") == ("config", "4")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    write(tmp_path / "run/containers/auth.json", {"auths": {"late.test": auth("podman", "3")}})
    assert found("late.test") == ("podman", "3")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    write(tmp_path / "docker/config.json", {"auths": {"reg.test": auth("moved", "2")}})
    assert found("reg.test") == ("moved", "2")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    write(tmp_path / "auth.json", {"auths": {"reg.test": auth("explicit", "0")}})
    assert found("reg.test") == ("explicit", "0")


def test_the_most_specific_entry_wins(home: Path) -> None:
    entries = {"reg.test": auth("host", "1"), "reg.test/team": auth("team", "2"), "reg.test/team/app": auth("app", "3")}
    write(home / ".config/containers/auth.json", {"auths": entries})
    assert found("reg.test", "team/app") == ("app", "3")
    assert found("reg.test", "team/other") == ("team", "2")
    assert found("reg.test", "teammate/app") == ("host", "1")


def test_identity_and_registry_tokens(home: Path) -> None:
    entries = {
        "one.test": {**auth("00000000", ""), "identitytoken": "refresh"},
        "two.test": {"registrytoken": "ready"},
        "three.test": {"username": "ann", "password": "plain"},
        "empty.test": {},
    }
    write(home / ".docker/config.json", {"auths": entries})
    one, two = find_credentials("one.test", "a", AUTO), find_credentials("two.test", "a", AUTO)
    assert one is not None
    assert two is not None
    assert one.identity_token == "refresh"
    assert two.bearer == "ready"
    assert found("three.test") == ("ann", "plain")
    assert found("empty.test") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ('{"auths": {"reg.test": {"auth": "%%%"}}}', "not base64")],
)
def test_a_broken_file_is_named(home: Path, text: str, message: str) -> None:
    write(home / ".docker/config.json", text)
    with pytest.raises(EnvironmentProblem, match=message) as caught:
        found("reg.test")
    assert str(home) in caught.value.message


def test_odd_but_valid_json_is_nothing(home: Path) -> None:
    write(home / ".docker/config.json", [])
    assert found("reg.test") is None


@pytest.mark.parametrize("choice", [{"credHelpers": {"https://reg.test": "fake"}}, {"credsStore": "fake"}])
def test_helpers_get_the_host_on_standard_input(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: dict[str, Any]
) -> None:
    script = f"""
[ "$1" = get ] && cat > {tmp_path}/asked && env > {tmp_path}/env
echo '{{"ServerURL": "reg.test", "Username": "ann", "Secret": "from helper"}}'
"""
    helper(tmp_path / "bin", "fake", script, monkeypatch)
    monkeypatch.setenv("AWS_PROFILE", "dev")
    monkeypatch.setenv("PARBAKE_PASSWORD", "not for helpers")
    write(home / ".docker/config.json", {**choice, "auths": {"reg.test": {}}})
    assert found("reg.test") == ("ann", "from helper")
    assert (tmp_path / "asked").read_text() == "reg.test"
    environment = (tmp_path / "env").read_text()
    assert "AWS_PROFILE=dev" in environment
    assert "not for helpers" not in environment


def test_a_helper_may_return_an_identity_token(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path / "bin", "fake", """echo '{"Username": "<token>", "Secret": "refresh"}'""", monkeypatch)
    write(home / ".docker/config.json", {"credsStore": "fake"})
    assert find_credentials("docker.io", "library/a", AUTO) == Credentials(
        identity_token="refresh", source=f"docker-credential-fake (named by {home}/.docker/config.json)"
    )


def test_a_helper_that_knows_nothing_leads_on(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path / "bin", "fake", "echo credentials not found in native keychain; exit 1", monkeypatch)
    write(home / ".docker/config.json", {"credsStore": "fake", "auths": {"reg.test": auth("ann", "word")}})
    assert found("reg.test") == ("ann", "word")
    assert found("other.test") is None


def test_a_helper_that_fails_is_named_but_not_quoted(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path / "bin", "fake", "echo a-secret-word; exit 3", monkeypatch)
    write(home / ".docker/config.json", {"credsStore": "fake"})
    with pytest.raises(Denied, match="docker-credential-fake") as caught:
        found("reg.test")
    assert "a-secret-word" not in str(caught.value.to_json())


def test_a_helper_that_babbles(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path / "bin", "fake", "echo a-secret-word", monkeypatch)
    write(home / ".docker/config.json", {"credsStore": "fake"})
    with pytest.raises(EnvironmentProblem, match="something other") as caught:
        found("reg.test")
    assert "a-secret-word" not in str(caught.value.to_json())


@pytest.mark.parametrize("name", ["nowhere", "../evil"])
def test_a_helper_that_is_not_there(home: Path, name: str) -> None:
    write(home / ".docker/config.json", {"credsStore": name})
    with pytest.raises(EnvironmentProblem, match="not installed"):
        found("reg.test")


def test_the_environment_when_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    options = RegistryOptions(credentials="environment")
    with pytest.raises(EnvironmentProblem, match="PARBAKE_USERNAME"):
        found("reg.test", options=options)
    monkeypatch.setenv("PARBAKE_USERNAME", "ann")
    monkeypatch.setenv("PARBAKE_PASSWORD", "word")
    assert found("reg.test", options=options) == ("ann", "word")
    assert found("reg.test") is None


def test_none_is_none(home: Path) -> None:
    write(home / ".docker/config.json", {"auths": {"reg.test": auth("ann", "word")}})
    assert found("reg.test", options=RegistryOptions(credentials="none")) is None
    assert found("reg.test", options=RegistryOptions(credentials="docker")) == ("ann", "word")


def test_secrets_have_no_representation() -> None:
    credentials = Credentials("ann", "pass-word", "identity-word", "bearer-word")
    assert "word" not in repr(credentials)
    assert set(credentials.secrets) >= {"pass-word", "identity-word", "bearer-word"}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("123456789012.dkr.ecr.eu-central-1.amazonaws.com", ecr.EcrHost("eu-central-1", "123456789012")),
        ("123456789012.dkr.ecr.us-east-1.amazonaws.com:443", ecr.EcrHost("us-east-1", "123456789012")),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", ecr.EcrHost("cn-north-1", "123456789012")),
        (
            "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com",
            ecr.EcrHost("us-gov-west-1", "123456789012", fips=True),
        ),
        ("123456789012.dkr-ecr.eu-west-1.on.aws", ecr.EcrHost("eu-west-1", "123456789012", dual_stack=True)),
        (
            "123456789012.dkr-ecr-fips.us-east-2.on.aws",
            ecr.EcrHost("us-east-2", "123456789012", fips=True, dual_stack=True),
        ),
        (
            "123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
            ecr.EcrHost("cn-north-1", "123456789012", dual_stack=True),
        ),
        ("123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu", ecr.EcrHost("eusc-de-east-1", "123456789012")),
        ("public.ecr.aws", ecr.EcrHost("us-east-1", public=True)),
        ("ecr-public.aws.com", ecr.EcrHost("us-east-1", public=True)),
        ("12345.dkr.ecr.eu-central-1.amazonaws.com", None),
        ("123456789012.dkr.ecr.eu-central-1.amazonaws.com.evil.test", None),
        ("evil.test/123456789012.dkr.ecr.eu-central-1.amazonaws.com", None),
        ("123456789012.dkr.ecr..amazonaws.com", None),
        ("docker.io", None),
    ],
)
def test_ecr_hosts(host: str, expected: ecr.EcrHost | None) -> None:
    assert ecr.parse(host) == expected


def test_ecr_must_be_ecr() -> None:
    with pytest.raises(EnvironmentProblem, match="not an ECR host"):
        found("reg.test", options=RegistryOptions(credentials="ecr"))


def test_ecr_without_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)  # what an import of a missing package looks like
    with pytest.raises(EnvironmentProblem, match="boto3") as caught:
        found("123456789012.dkr.ecr.eu-central-1.amazonaws.com")
    assert caught.value.hint.startswith(how_to_add("aws"))
