"""Nothing of the engine's library reaches users but words: whatever it raises, and whichever command asks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, override

import pytest
from google.protobuf.message import Message
from temporalio import exceptions
from temporalio.client import Client
from temporalio.service import ConnectConfig, RPCError, RPCStatusCode, ServiceClient

from parbake import cli
from parbake.fleet import preview
from parbake.fleet.engine import connect, worker
from parbake.fleet.engine.failures import describe, told, unreachable, wrong_settings
from parbake.fleet.engine.sealing import converter, make_key, read_keys
from tests.unit.fleet.test_engine import in_activity

OF_PROGRAMS = re.compile(
    r"tonic|hyper|temporalio|rpc|RPC|grpc|Traceback|Os \{|\w+Error\(|::|NOT_FOUND|UNAVAILABLE|"
    + "|".join(name for name, each in vars(exceptions).items() if inspect.isclass(each) and name.endswith("Error"))
)
ADDRESS = "engine.example.com:7233"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "Failed client connect: Server connection error: tonic::transport::Error(Transport, ConnectError("
            'ConnectError("tcp connect error", 127.0.0.1:7999, Os { code: 111, kind: ConnectionRefused, message: '
            '"Connection refused" })))',
            "does not answer: nobody listens there",
        ),
        (
            'tonic::transport::Error(Transport, ConnectError(ConnectError("dns error", Custom { kind: Uncategorized, '
            'error: "failed to lookup address information: Name or service not known" })))',
            "does not answer: its name is not known here",
        ),
        (
            "tonic::transport::Error(Transport, ConnectError(Custom { kind: InvalidData, error: "
            "InvalidMessage(InvalidContentType) }))",
            "does not speak TLS",
        ),
        (
            "tonic::transport::Error(Transport, ConnectError(Custom { kind: InvalidData, error: "
            "InvalidCertificate(Other(OtherError(CaUsedAsEndEntity))) }))",
            "has a certificate that is not trusted here",
        ),
        ("tonic::transport::Error(Transport, PrivateKeyParseError)", "this machine's certificate cannot be read"),
        (
            '`get_system_info` call error after connection: Status { code: Unknown, message: "transport error", source:'
            " Some(tonic::transport::Error(Transport, hyper::Error(Io, Kind(ConnectionReset)))) }",
            "does not answer: it ended the connection",
        ),
        ("tonic::transport::Error(Transport, SomethingNew)", "does not answer"),
    ],
)
def test_a_connection_that_fails_is_told_in_words(said: str, words: str) -> None:
    error = unreachable(ADDRESS, RuntimeError(said))
    assert error.message.startswith(f"the engine at {ADDRESS} ")
    assert words in error.message
    assert not OF_PROGRAMS.search(f"{error.message} {error.hint}")


def failures() -> Iterator[exceptions.FailureError]:
    """Yield one of each failure that the library knows, as it would be made."""
    for kind in vars(exceptions).values():
        if inspect.isclass(kind) and issubclass(kind, exceptions.FailureError):
            error = kind.__new__(kind)
            exceptions.FailureError.__init__(error, "the engine's words")
            error.__dict__.setdefault("_details", ())
            error.__dict__.setdefault("_type", None)
            outer = in_activity(error)
            yield from (error, outer)


def test_every_failure_of_the_engine_is_told_in_words() -> None:
    for error in failures():
        found = describe("a@amd64", error)
        if isinstance(error, exceptions.ApplicationError) or isinstance(error.__cause__, exceptions.ApplicationError):
            continue  # its type and its words are ours
        assert not OF_PROGRAMS.search(f"{found.error} {found.message} {found.hint}"), error
        assert found.hint
        assert not OF_PROGRAMS.search(told(error))


class Broken(ServiceClient):
    """A connection on which every call fails in the same way."""

    def __init__(self, error: Exception) -> None:
        super().__init__(ConnectConfig(target_host=ADDRESS))
        self.error = error

    @property
    @override
    def worker_service_client(self) -> Any:
        raise self.error

    @override
    def update_rpc_metadata(self, metadata: Mapping[str, str | bytes]) -> None: ...

    @override
    def update_api_key(self, api_key: str | None) -> None: ...

    @override
    async def _rpc_call(
        self, rpc: str, req: Message, resp_type: Any, *, service: str, retry: bool, metadata: Any,
        timeout: timedelta | None,
    ) -> Any:  # fmt: skip
        raise self.error


COMMANDS = [
    "run", "run --wait", "status", "pause", "resume", "cancel", "pause --rollout", "resume --rollout",
    "cancel --rollout", "apply", "apply --dry-run", "drain", "doctor", "worker --queues control", "rollout", "approve",
    "rollback", "rollback --wait", "logs --rollout", "report",
]  # fmt: skip
SAID = [
    RPCError("tonic::transport::Error(Transport, hyper::Error(Io))", RPCStatusCode.UNAVAILABLE, b""),
    RPCError("Namespace nope is not found.", RPCStatusCode.NOT_FOUND, b""),
    RPCError("workflow not found for ID: fleet/shop", RPCStatusCode.NOT_FOUND, b""),
    RPCError("Request unauthorized.", RPCStatusCode.PERMISSION_DENIED, b""),
    RPCError("", RPCStatusCode.UNKNOWN, b""),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "parbake.yaml").write_text("version: 1\nimages: [r.example/app:1]\nbase: none\n")
    (tmp_path / "fleet.yaml").write_text(
        "version: 1\nname: shop\nstore: store\nbakefiles: [parbake.yaml]\nrollout: {waves: [{name: all, rest: true}]}\n"
    )
    bakefile = (tmp_path / "parbake.yaml").read_text()
    (tmp_path / "parbake.yaml").write_text(f"{bakefile}rollout: [{{file: image.json}}]\n")
    (tmp_path / ".fleet").mkdir()
    make_key(tmp_path / ".fleet/key")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preview, "look", lambda *_: [])
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_in_words_what_the_engine_refuses(
    command: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in SAID:
        client = Client(Broken(error), data_converter=converter(read_keys(here / ".fleet/key")))

        async def connected(_: object, client: Client = client, **_more: str) -> Client:
            return client

        for module in (connect, worker):
            monkeypatch.setattr(module, "connect", connected)
        code = cli.run(["fleet", *command.split()])
        said = "".join(capsys.readouterr())
        assert not OF_PROGRAMS.search(said), said
        if "workflow not found" not in error.message:
            assert f"engine at {ADDRESS}" in said
            assert code == (0 if command == "report" else 1), said
            assert command == "report" or "next: " in said, said


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("TEMPORAL_ADDRESS", "a b:c", "the settings of the engine cannot be read: invalid target URL"),
        ("TEMPORAL_PROFILE", "nope", "the settings of the engine cannot be read: Profile 'nope' not found"),
        ("TEMPORAL_CONFIG_FILE", "fleet.yaml", "the settings of the engine cannot be read: "),
        ("TEMPORAL_TLS_CLIENT_CERT_PATH", "/no/such", "No such file or directory: /no/such"),
    ],
)
def test_settings_that_cannot_be_read_are_wrong_input(
    variable: str,
    value: str,
    words: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if variable != "TEMPORAL_ADDRESS":
        monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv(variable, str(here / value) if variable == "TEMPORAL_CONFIG_FILE" else value)
    assert cli.run(["fleet", "status"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert not OF_PROGRAMS.search(said)
    assert wrong_settings(ValueError("x::y")).message.endswith("it does not say why")
