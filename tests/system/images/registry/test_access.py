"""Who may come in, and by which way: TLS, users, tokens, redirects."""

from __future__ import annotations

import base64
import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from parbake.core.errors import Denied, EnvironmentProblem, RegistryError, Unreachable
from parbake.core.model import RegistryOptions
from parbake.core.roles import Role
from parbake.images.registry import Registry, auth, ecr
from parbake.images.registry.credentials import find_credentials
from standins.faulty_proxy import FaultyProxy, Redirect, Status, error_body
from standins.images import push
from standins.registry import DockerRegistry, certificates
from standins.registry_client import (
    AMD64,
    BOTH,
    PLAIN,
    QUICK,
    log_in,
    nobody,
    not_loopback,
    read_all,
    ref,
    registry,
    user,
)
from standins.tokens import TokenServer

__all__ = ["nobody", "registry"]  # fixtures: the first for every test here


class TestTls:
    def test_our_own_authority(self, tmp_path: Path) -> None:
        with DockerRegistry(tmp_path, tls=certificates(tmp_path)) as own:
            push(own.url, "team/app", BOTH, "v1", ca=own.ca)
            with Registry({own.host: RegistryOptions(ca=own.ca)}) as client:
                assert client.resolve(ref(own.host), AMD64).target.digest == BOTH.digest
            with Registry(patience=QUICK) as client, pytest.raises(Unreachable, match="not trusted") as caught:
                client.resolve(ref(own.host), AMD64)
            assert f"registries.{own.host}.ca" in caught.value.hint
            with Registry({own.host: PLAIN}, patience=QUICK) as client, pytest.raises(Unreachable, match="speaks TLS"):
                client.resolve(ref(own.host), AMD64)

    def test_a_certificate_for_another_name(self, tmp_path: Path) -> None:
        with DockerRegistry(tmp_path, tls=certificates(tmp_path, names="DNS:elsewhere.test")) as own:
            options = {own.host: RegistryOptions(ca=own.ca)}
            with (
                Registry(options, patience=QUICK) as client,
                pytest.raises(Unreachable, match="not trusted: IP address"),
            ):
                client.resolve(ref(own.host), AMD64)

    def test_an_authority_that_cannot_be_read(self, registry: DockerRegistry, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").write_text("nothing")
        for path in (tmp_path / "ca.pem", tmp_path / "missing.pem"):
            options = {registry.host: RegistryOptions(ca=str(path))}
            with Registry(options) as client, pytest.raises(EnvironmentProblem, match="certificates"):
                client.resolve(ref(registry.host), AMD64)

    def test_tls_to_a_plain_port(self) -> None:
        with socket.create_server(("0.0.0.0", 0)) as server, ThreadPoolExecutor(1) as threads:

            def answer() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

            threads.submit(answer)
            host = f"{not_loopback()}:{server.getsockname()[1]}"
            with Registry(patience=QUICK) as client, pytest.raises(Unreachable, match="speaks plain HTTP") as caught:
                client.resolve(ref(host), AMD64)
        assert caught.value.hint == f"set registries.{host}.plain_http: true"


class TestUsers:
    @pytest.fixture
    def own(self, tmp_path: Path) -> Iterator[DockerRegistry]:
        with DockerRegistry(tmp_path, tls=certificates(tmp_path), users={"ann": "se:cret"}) as running:
            push(running.url, "team/app", BOTH, "v1", user=("ann", "se:cret"), ca=running.ca)
            yield running

    def test_basic(self, own: DockerRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
        trusted = RegistryOptions(ca=own.ca)
        with Registry({own.host: trusted}) as client, pytest.raises(Denied, match="there are none") as caught:
            client.resolve(ref(own.host), AMD64)
        assert f"docker login {own.host}" in caught.value.hint
        log_in(own.host, user("ann", "wrong-word"))
        with (
            Registry({own.host: trusted}) as client,
            pytest.raises(Denied, match=r"access denied to the login from .*config.json: ") as refused,
        ):
            client.resolve(ref(own.host), AMD64)
        assert refused.value.hint.startswith("that login is wrong or over, or has no right to this repository: log in")
        assert "wrong-word" not in json.dumps(refused.value.to_json())
        log_in(own.host, user("ann", "se:cret"))
        with Registry({own.host: trusted}) as client:
            found = client.resolve(ref(own.host), AMD64)
            assert read_all(client, found, 1) == BOTH.children[0].layers[1].data
        with Registry({own.host: trusted.model_copy(update={"credentials": "none"})}) as client, pytest.raises(Denied):
            client.resolve(ref(own.host), AMD64)
        log_in(own.host, {})
        monkeypatch.setenv("PARBAKE_USERNAME", "ann")
        monkeypatch.setenv("PARBAKE_PASSWORD", "se:cret")
        with Registry({own.host: trusted.model_copy(update={"credentials": "environment"})}) as client:
            assert client.head(ref(own.host)).digest == BOTH.digest


class TestTokens:
    def test_the_whole_dance(self, tmp_path: Path) -> None:
        with (
            TokenServer(tmp_path, users={"ann": "secret-word"}, refresh={"refresh-word"}) as tokens,
            DockerRegistry(tmp_path, token=tokens.settings) as own,
        ):
            self._push(tmp_path)
            with Registry(patience=QUICK) as client, pytest.raises(Denied, match="token server"):
                client.resolve(ref(own.host), AMD64)
            assert tokens.requests[-1] == (
                "GET", {"service": "registry.test", "scope": "repository:team/app:pull"}, ""
            )  # fmt: skip
            log_in(own.host, user("ann", "secret-word"))
            tokens.requests.clear()
            tokens.faults = [503]
            with Registry(patience=QUICK) as client:
                found = client.resolve(ref(own.host), AMD64)
                assert read_all(client, found, 1) == BOTH.children[0].layers[1].data
            assert [request[2] for request in tokens.requests] == ["Basic", "Basic"]  # one failed, one token for all
            log_in(own.host, {"identitytoken": "refresh-word"})
            tokens.requests.clear()
            with Registry(patience=QUICK) as client:
                client.resolve(ref(own.host), AMD64)
            assert [request[0] for request in tokens.requests] == ["POST"]
            assert tokens.requests[0][1]["client_id"] == "parbake"
            log_in(own.host, {"registrytoken": tokens.token("repository:team/app:pull")})
            tokens.requests.clear()
            with Registry(patience=QUICK) as client:
                client.resolve(ref(own.host), AMD64)
            assert tokens.requests == []

    def test_an_expired_token_is_replaced(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 1000.0
        monkeypatch.setattr(auth, "time", SimpleNamespace(monotonic=lambda: now))
        with (
            TokenServer(tmp_path, anonymous=True, lifetime=3600) as tokens,
            DockerRegistry(tmp_path, token=tokens.settings) as own,
        ):
            self._push(tmp_path)
            with Registry(patience=QUICK) as client:
                client.head(ref(own.host))
                client.head(ref(own.host))
                assert len(tokens.requests) == 1
                now += 3600
                client.head(ref(own.host))
            assert len(tokens.requests) == 2

    def _push(self, tmp_path: Path) -> None:
        """Push while nobody has to ask for a token; the content stays in the folder."""
        with DockerRegistry(tmp_path) as before:
            push(before.url, "team/app", BOTH, "v1")

    @pytest.mark.parametrize(
        ("realm", "error", "message"),
        [
            ("http://192.0.2.9/token", Denied, "plain HTTP"),
            ("", RegistryError, "names no (usable )?realm"),
            ("file:///etc/passwd", RegistryError, "names no (usable )?realm"),
        ],
    )
    def test_where_credentials_do_not_go(
        self, registry: DockerRegistry, realm: str, error: type[Exception], message: str
    ) -> None:
        with FaultyProxy(registry.url) as proxy, Registry(patience=QUICK) as client:
            proxy.only = ""
            log_in(proxy.host, user("ann", "secret-word"))
            # The probe for TLS takes no fault: it is no request.
            proxy.faults.extend([Status(401, {"WWW-Authenticate": f'Bearer realm="{realm}"'})])
            with pytest.raises(error, match=message):
                client.resolve(ref(proxy.host), AMD64)

    @pytest.mark.parametrize("answer", [b"no json", b"[]", b"{}", b'{"token": "a\\nb"}'])
    def test_answers_that_are_no_token(self, registry: DockerRegistry, answer: bytes) -> None:
        with FaultyProxy(registry.url) as proxy, Registry({proxy.host: PLAIN}, patience=QUICK) as client:
            proxy.only = ""
            challenge = {"WWW-Authenticate": f'Bearer realm="{proxy.url}/token",service="x"'}
            proxy.faults.extend([Status(401, challenge), Status(200, body=answer)])
            with pytest.raises(RegistryError, match="token server"):
                client.resolve(ref(proxy.host), AMD64)

    def test_a_scheme_nobody_speaks(self, registry: DockerRegistry) -> None:
        with FaultyProxy(registry.url) as proxy, Registry({proxy.host: PLAIN}, patience=QUICK) as client:
            proxy.only = ""
            proxy.faults.append(Status(401, {"WWW-Authenticate": "Negotiate"}))
            with pytest.raises(Denied, match="asks for negotiate"):
                client.resolve(ref(proxy.host), AMD64)

    def test_a_server_that_repeats_secrets(self, registry: DockerRegistry) -> None:
        with FaultyProxy(registry.url) as proxy, Registry({proxy.host: PLAIN}, patience=QUICK) as client:
            proxy.only = ""
            log_in(proxy.host, user("ann", "secret-word"))
            packed = user("ann", "secret-word")["auth"]
            proxy.faults.append(Status(401, {"WWW-Authenticate": "Basic"}))
            proxy.faults.append(
                Status(403, body=error_body("DENIED", f"you sent {packed}, that is secret-word\x1b[2J"))
            )
            with pytest.raises(Denied, match=r"you sent \*\*\*, that is \*\*\*") as caught:
                client.resolve(ref(proxy.host), AMD64)
            assert "\x1b" not in caught.value.message


class TestRedirects:
    def test_credentials_stay_at_home(self, registry: DockerRegistry) -> None:
        with (
            FaultyProxy(registry.url) as front,
            FaultyProxy(registry.url) as storage,
            Registry({front.host: PLAIN}, patience=QUICK) as client,
        ):
            log_in(front.host, user("ann", "secret-word"))
            log_in_once = Status(401, {"WWW-Authenticate": "Basic"})
            front.only = ""
            front.faults.append(log_in_once)
            found = client.resolve(ref(front.host), AMD64)
            front.faults.append(Redirect(storage.url + "{path}?X-Amz-Signature=signature-word"))
            assert read_all(client, found) == BOTH.children[0].layers[0].data
            assert "authorization" in front.requests[-1][2]
            assert storage.requests
            assert not any("authorization" in headers for _, _, headers in storage.requests)
            front.faults.append(Redirect(storage.url + "{path}?X-Amz-Signature=signature-word"))
            storage.only = ""
            storage.faults.append(Status(403))
            with pytest.raises(Denied) as caught:
                read_all(client, found)
            assert "signature-word" not in json.dumps(caught.value.to_json())

    def test_storage_cannot_ask_for_credentials(self, registry: DockerRegistry) -> None:
        with (
            FaultyProxy(registry.url) as front,
            FaultyProxy(registry.url) as storage,
            Registry({front.host: PLAIN}, patience=QUICK) as client,
        ):
            log_in(front.host, user("ann", "secret-word"))
            found = client.resolve(ref(front.host), AMD64)
            front.faults.append(Redirect(storage.url + "{path}"))
            storage.faults.append(Status(401, {"WWW-Authenticate": f'Bearer realm="{storage.url}/token"'}, b""))
            with pytest.raises(Denied, match=f"{storage.host} answers 401"):
                read_all(client, found)
            assert len(storage.requests) == 1

    def test_an_endless_redirect(self, registry: DockerRegistry) -> None:
        with FaultyProxy(registry.url) as front, Registry({front.host: PLAIN}, patience=QUICK) as client:
            found = client.resolve(ref(front.host), AMD64)
            front.faults.extend([Redirect(front.url + "{path}")] * 100)
            with pytest.raises(RegistryError, match="redirects in a row"):
                read_all(client, found)

    def test_away_from_http(self, registry: DockerRegistry) -> None:
        with FaultyProxy(registry.url) as front, Registry({front.host: PLAIN}, patience=QUICK) as client:
            front.only = ""
            front.faults.append(Redirect("ftp://x.test/"))
            with pytest.raises(RegistryError, match="not HTTP"):
                client.resolve(ref(front.host), AMD64)
            front.faults.append(Redirect("http://x.test:port/"))
            with pytest.raises(RegistryError, match="does not follow"):
                client.resolve(ref(front.host), AMD64)


def test_a_proxy_from_the_environment(registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyProxy(registry.url) as forward:
        monkeypatch.setenv("http_proxy", f"http://ann:word@{forward.host}")
        monkeypatch.setenv("no_proxy", "direct.invalid")
        with Registry(dict.fromkeys(("far.invalid", "direct.invalid"), PLAIN), patience=QUICK) as client:
            assert client.head(ref("far.invalid")).digest == BOTH.digest
            _, path, headers = forward.requests[0]
            assert path == "http://far.invalid/v2/team/app/manifests/v1"
            assert headers["proxy-authorization"].startswith("Basic ")
            with pytest.raises(Unreachable, match="does not resolve"):
                client.head(ref("direct.invalid"))
            assert client.head(ref(registry.host)).digest == BOTH.digest
            assert len(forward.requests) == 1  # loopback is never asked of a proxy


class TestEcr:
    """AWS is a stand-in that answers with what the API reference says."""

    HOST = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
    DATA: ClassVar = {"authorizationToken": base64.b64encode(b"AWS:token-word").decode()}

    @pytest.fixture
    def aws(self, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        with FaultyProxy(registry.url) as running:
            running.only = ""
            monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
            monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            yield running

    def find(self, host: str, options: RegistryOptions | None = None) -> tuple[str, str] | None:
        found = find_credentials(host, "team/app", options or RegistryOptions())
        return (found.username, found.password) if found else None

    def test_private(self, aws: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
        aws.faults.append(Status(200, body=json.dumps({"authorizationData": [self.DATA]}).encode()))
        assert self.find(self.HOST) == ("AWS", "token-word")
        assert "/eu-central-1/ecr/" in aws.requests[0][2]["authorization"]

    def test_public(self, aws: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.find("public.ecr.aws") is None  # it serves everybody
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
        aws.faults.append(Status(200, body=json.dumps({"authorizationData": self.DATA}).encode()))
        assert self.find("public.ecr.aws", RegistryOptions(credentials="ecr")) == ("AWS", "token-word")
        assert "/us-east-1/ecr-public/" in aws.requests[0][2]["authorization"]

    def test_aws_says_no(self, aws: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(Denied, match=r"no registry token.*credentials") as caught:
            self.find(self.HOST)
        assert "AWS_PROFILE" in caught.value.hint
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
        aws.faults.append(Status(400, body=b'{"__type": "AccessDeniedException", "message": "no"}'))
        with pytest.raises(Denied, match="AccessDeniedException") as denied:
            self.find(self.HOST)
        assert "ecr:GetAuthorizationToken" in denied.value.hint


OVER = error_body("DENIED", "Your authorization token has expired. Reauthenticate and try again.")


class TestEcrLogins:
    """A login for ECR ends after twelve hours. The registry is Docker's own; AWS's answer is put in its place."""

    @pytest.fixture
    def logins(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Take every host for one of ECR's; return the hosts for which AWS was asked."""
        asked: list[str] = []

        def login(host: str, _target: ecr.EcrHost, role: Role | None) -> tuple[str, str]:
            asked.append(f"{host}{f' as {role.arn}' if role else ''}")
            return "AWS", "fresh"

        monkeypatch.setattr(ecr, "parse", lambda _host: ecr.EcrHost("eu-west-1", "123456789012"))
        monkeypatch.setattr(ecr, "login", login)
        return asked

    @pytest.fixture
    def private(self, tmp_path: Path) -> Iterator[DockerRegistry]:
        with DockerRegistry(tmp_path / "own", users={"AWS": "fresh", "ann": "secret"}) as own:
            push(own.url, "team/app", BOTH, "v1", user=("ann", "secret"))
            yield own

    def test_a_stale_login_in_a_file_is_replaced(self, private: DockerRegistry, logins: list[str]) -> None:
        log_in(private.host, user("AWS", "of yesterday"))
        with Registry(patience=QUICK) as client:
            assert client.resolve(ref(private.host), AMD64).target.digest == BOTH.digest
        assert logins == [private.host]

    def test_in_the_role_of_a_bake(self, private: DockerRegistry, logins: list[str]) -> None:
        with Registry(patience=QUICK, role=Role("arn:aws:iam::1:role/bake")) as client:
            assert client.resolve(ref(private.host), AMD64).target.digest == BOTH.digest
        assert logins == [f"{private.host} as arn:aws:iam::1:role/bake"]

    def test_one_that_is_over_meanwhile_is_replaced(self, private: DockerRegistry, logins: list[str]) -> None:
        with FaultyProxy(private.url) as proxy:
            log_in(proxy.host, user("ann", "secret"))
            proxy.only = "/manifests/"
            with Registry(patience=QUICK) as client:
                client.resolve(ref(proxy.host), AMD64)
                proxy.faults.append(Status(403, body=OVER))
                assert client.resolve(ref(proxy.host), AMD64).target.digest == BOTH.digest
                assert logins == [proxy.host]

    def test_what_is_denied_all_the_same_is_said_once(self, private: DockerRegistry, logins: list[str]) -> None:
        with FaultyProxy(private.url) as proxy:
            log_in(proxy.host, user("ann", "secret"))
            proxy.only = "/manifests/"
            with Registry(patience=QUICK) as client:
                client.resolve(ref(proxy.host), AMD64)
                proxy.faults.extend([Status(403, body=OVER)] * 9)
                with pytest.raises(Denied, match="authorization token has expired"):
                    client.resolve(ref(proxy.host), AMD64)
        assert (len(logins), len(proxy.faults)) == (1, 7)

    def test_who_has_sent_no_login_is_told_of_none(self, private: DockerRegistry) -> None:
        with FaultyProxy(private.url) as proxy:
            proxy.faults.extend([Status(401, {"WWW-Authenticate": "Basic"}, body=OVER)] * 9)
            with (
                Registry({proxy.host: RegistryOptions(credentials="none")}, patience=QUICK) as client,
                pytest.raises(Denied, match="access denied: it asks for a user name") as nobody,
            ):
                client.resolve(ref(proxy.host), AMD64)
        assert nobody.value.hint.startswith("log in with")

    def test_who_said_docker_gets_dockers_login(self, private: DockerRegistry, logins: list[str]) -> None:
        log_in(private.host, user("AWS", "of yesterday"))
        options = {private.host: RegistryOptions(credentials="docker")}
        with Registry(options, patience=QUICK) as client, pytest.raises(Denied, match="access denied"):
            client.resolve(ref(private.host), AMD64)
        assert logins == []
