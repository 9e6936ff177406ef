"""Whatever the containerd of a guest answers: a verdict, or parbake's own error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, cast

from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from parbake.containerd import Client, Cri
from parbake.containerd.connection import Connection
from parbake.containerd.errors import fault
from parbake.containerd.proto import content_pb2
from parbake.core.errors import ParbakeError
from parbake.core.model import Platform, Startup
from parbake.machine.vm import Clock
from parbake.verify.starter import Starter
from parbake.verify.store import look
from parbake.verify.verify import conclude, images_in
from standins.odd import odd_bytes, with_something_odd

D = f"sha256:{'ab' * 32}"
DOCUMENTS: list[dict[str, Any]] = [
    {"manifests": [{"digest": D, "platform": {"os": "linux", "architecture": "amd64"}}]},
    {"config": {"digest": D}, "layers": []},
    {"os": "linux", "architecture": "amd64", "variant": "v1", "rootfs": {"diff_ids": [D, D]}, "config": {"digest": D}},
]
CODES = ["NOT_FOUND", "UNKNOWN", "UNAVAILABLE", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "no such code"]
SAID = ["", "no space left on device", "unexpected commit digest", "a\x00b\u202e\x1b[2J", "x" * 5000]
NUMBERS = [-(1 << 31), -1, 0, 1, 2, 3, (1 << 31) - 1]


class Answers:
    """Stands for the connection: each answer is of the right type, or an error, and says anything else."""

    patience = 1.0

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw

    def unary[R: Message](self, method: str, _: Message, reply: type[R], **__: object) -> R:
        if self._draw(st.integers(0, 9)) == 0:
            raise fault(self._draw(st.sampled_from(CODES)), self._draw(st.sampled_from(SAID)), method)
        answer = reply()
        self._fill(answer)
        return answer

    def stream[R: Message](self, _method: str, _request: Message, reply: type[R], **_: object) -> Iterator[R]:
        assert reply is content_pb2.ReadContentResponse
        odd = self._draw(odd_bytes | with_something_odd(self._draw(st.sampled_from(DOCUMENTS))))
        yield cast(R, content_pb2.ReadContentResponse(data=odd if isinstance(odd, bytes) else json.dumps(odd).encode()))

    def theirs(self, path: object) -> str:
        return str(path)

    ours = theirs

    def _fill(self, message: Message) -> None:
        for field in message.DESCRIPTOR.fields:
            if self._draw(st.integers(0, 3)) == 0:
                continue
            value = getattr(message, field.name)
            if field.is_repeated:
                continue
            if field.type == field.TYPE_MESSAGE:
                value.SetInParent()
                self._fill(value)
            elif field.type == field.TYPE_STRING:
                setattr(message, field.name, self._draw(st.sampled_from([D, *SAID])))
            elif field.type == field.TYPE_INT64:
                setattr(message, field.name, self._draw(st.sampled_from([*NUMBERS, 10**18, -(1 << 63), (1 << 63) - 1])))
            elif field.type == field.TYPE_INT32:
                setattr(message, field.name, self._draw(st.sampled_from(NUMBERS)))
            elif field.type == field.TYPE_BOOL:
                setattr(message, field.name, self._draw(st.booleans()))


class Machine:
    """Where the containers would be: it is as it should be, and quick."""

    def check(self, *_: object, **__: object) -> str:
        return "0"

    def read(self, *_: object, **__: object) -> bytes:
        return b""

    def now(self) -> Clock:
        return Clock(1, 1.0)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_runtime_that_answers_anything_gets_a_verdict_or_an_error(data: st.DataObject) -> None:
    connection = cast(Connection, Answers(data.draw))
    client, cri = Client(connection), Cri(connection)
    starter = Starter(cast(Any, Machine()), cri, stretch=1e-6, pause="pause")
    with suppress(ParbakeError):
        cri.status(), cri.version()
    with suppress(ParbakeError):
        seen = look(client, cri, "app", platform=Platform(architecture="amd64"), wanted=D)
        started = starter.start("app", Startup())
        (image,) = images_in({"app": seen.target.digest if seen.target else ""}, "")
        said = conclude(seen, image, started).model_dump_json()
        assert len(said.encode()) < 1 << 20


def test_a_document_without_end_is_not_kept_whole() -> None:
    class Endless(Answers):
        given = 0

        def stream(self, *_: object, **__: object) -> Iterator[Any]:
            while True:
                self.given += 1 << 20
                assert self.given < 64 << 20
                yield content_pb2.ReadContentResponse(data=bytes(1 << 20))

        def unary(self, *arguments: Any, **_: object) -> Any:
            return arguments[2]()

    connection = cast(Connection, Endless(lambda _: None))
    seen = look(Client(connection), Cri(connection), "app", platform=Platform(architecture="amd64"))
    assert "has more bytes" in seen.malformed
