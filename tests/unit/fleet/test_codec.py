"""What opens sealed payloads for the engine's pages: for whom, what, and what it refuses."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Iterator
from threading import Thread

import pytest
from google.protobuf.json_format import MessageToDict, Parse
from temporalio.api.common.v1 import Payload, Payloads

from parbake import cli
from parbake.core.errors import EnvironmentProblem
from parbake.fleet.engine.codec import server, word
from parbake.fleet.engine.sealing import Seal, opened_for_view
from tests.unit.fleet.test_engine import FIRST, SECOND, places

PAGES = "http://127.0.0.1:8233"
PLAIN = Payload(metadata={"encoding": b"json/plain"}, data=b'"said"')


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with server((FIRST, SECOND), 0, [PAGES]) as listening:
        Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield listening.server_address[1]
        listening.shutdown()


def sealed(key: bytes = FIRST, place: str = "rollout/shop") -> Payload:
    seal = Seal((key,)).with_context(places()[place])
    (payload,) = asyncio.run(seal.encode([PLAIN]))
    return payload


def ask(
    port: int, *payloads: Payload, path: str = "", method: str = "POST", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], list[Payload]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    usual = {"Content-Type": "application/json", "X-Namespace": "default", "Origin": PAGES}
    asked = json.dumps(MessageToDict(Payloads(payloads=payloads))).encode() if body is None else body
    connection.request(method, path or f"/{word(FIRST)}/decode", asked, {**usual, **headers})
    answer = connection.getresponse()
    said = answer.read()
    found = Parse(said, Payloads()).payloads if said else []
    return answer.status, dict(answer.headers), list(found)


@pytest.mark.parametrize("place", places())
def test_what_was_sealed_anywhere_is_opened_for_people(port: int, place: str) -> None:
    status, headers, found = ask(port, sealed(place=place), PLAIN, sealed(SECOND, place))
    assert (status, found) == (200, [PLAIN] * 3), "what is plain comes back as it is"
    assert headers["Access-Control-Allow-Origin"] == PAGES
    assert headers["Cache-Control"] == "no-store"
    assert ask(port, sealed(SECOND), path=f"/{word(SECOND)}/decode")[2] == [PLAIN], "of either key, while it is changed"


def test_what_another_fleet_has_sealed_or_somebody_changed_stays_sealed(port: int) -> None:
    theirs, moved, cut = sealed(b"x" * 32), sealed(), sealed()
    moved.metadata["place"] = sealed(place="fleet/shop").metadata["place"]
    cut.data = cut.data[:20]
    assert ask(port, theirs, moved, cut)[2] == [theirs, moved, cut]
    assert opened_for_view(moved, (FIRST,)) is None


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"path": "/decode"}, 404),
        ({"path": f"/{'0' * 32}/decode"}, 404),
        ({"path": f"/{word(FIRST)}/encode"}, 404),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"method": "GET"}, 501),
        ({"body": b"{"}, 400),
        ({"body": b'{"payloads": [' + b'{"data": "' * 3}, 400),
        ({"body": b"[" * 100_000}, 400),
        ({"body": b""}, 413),
        ({"Content-Length": "99999999999"}, 413),
        ({"Content-Length": "-1"}, 413),
    ],
)
def test_whoever_may_not_ask_gets_nothing(port: int, changed: dict[str, str], status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    body = json.dumps(MessageToDict(Payloads(payloads=[sealed()]))).encode()
    headers = {"Content-Length": str(len(body)), "Origin": PAGES, **changed}
    given: bytes = headers.pop("body", body)  # type: ignore[assignment]
    path, method = headers.pop("path", f"/{word(FIRST)}/decode"), headers.pop("method", "POST")
    if "body" in changed:
        headers.pop("Content-Length")
    connection.request(method, path, given, headers)
    answer = connection.getresponse()
    assert answer.status == status
    assert b"said" not in answer.read()
    assert "Access-Control-Allow-Origin" not in answer.headers or headers["Origin"] == PAGES


def test_a_browser_asks_first(port: int) -> None:
    status, headers, _ = ask(port, method="OPTIONS", body=b"")
    assert (status, headers["Access-Control-Allow-Origin"]) == (204, PAGES)
    assert "X-Namespace" in headers["Access-Control-Allow-Headers"]
    assert ask(port, method="OPTIONS", body=b"", Origin="https://evil.example")[0] == 403


def test_a_port_that_is_taken_and_pages_that_nobody_named(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot be listened on: Address already in use"):
        server((FIRST,), port, [PAGES])
    assert FIRST.hex() not in word(FIRST)
    assert cli.run(["fleet", "codec", "--state", "/no/such"]) == 2
    assert "there is no key" in capsys.readouterr().err
