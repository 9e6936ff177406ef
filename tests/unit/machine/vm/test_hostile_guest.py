"""Whatever a guest says, on its agent's channel, its console or in its logs: a result or parbake's own error."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parbake.builders.guest import Console
from parbake.core.errors import MachineError, ParbakeError
from parbake.machine.vm import console
from parbake.machine.vm.guest import Clock, Guest
from parbake.machine.vm.qmp import Qmp
from parbake.verify.starter import Log
from parbake.verify.within import proof
from standins.odd import odd_bytes, odd_values, with_something_odd

GOOD: dict[str, dict[str, Any]] = {
    "now": {"wall": 1, "monotonic": 1.0},
    "wait": {"up": True, "wall": 1, "monotonic": 1.0, "why": "x"},
    "run": {"code": 0, "output": "said"},
    "read": {"data": base64.b64encode(b"bytes").decode()},
}
ASKED: dict[str, Callable[[Guest], object]] = {
    "now": lambda guest: guest.now(),
    "wait": lambda guest: guest.wait_tcp(80, 0.1),
    "run": lambda guest: guest.run(["true"]),
    "read": lambda guest: guest.read("/etc/passwd"),
}


class Agent:
    """The guest's end of the channel: it says what it is told to before it answers, and answers as it is told."""

    def __init__(self) -> None:
        ours, self.port = socket.socketpair()
        self.guest = Guest([ours], grace=5.0)
        self.noise: list[bytes] = []
        self.answer: Callable[[dict[str, Any]], object] = lambda request: {"result": GOOD[request["op"]]}
        threading.Thread(target=self._serve, daemon=True).start()
        self.say({"hello": 1})
        assert self.guest.wait_hello(5)

    def say(self, message: object) -> None:
        self.port.sendall(json.dumps(message).encode() + b"\n")

    def _serve(self) -> None:
        with suppress(OSError), self.port.makefile("rb") as lines:
            for line in lines:
                request = json.loads(line)
                for noise in self.noise:
                    self.port.sendall(noise.replace(b"\n", b" ") + b"\n")
                answer = self.answer(request)
                self.say({"request": request["request"], **answer} if isinstance(answer, dict) else answer)


@contextmanager
def agent() -> Iterator[Agent]:
    talking = Agent()
    try:
        yield talking
    finally:
        talking.guest.close()
        talking.port.close()


MESSAGES = [
    {"request": 1, "result": {}},
    {"request": 1, "error": "no"},
    {"stream": 1, "data": "eA=="},
    {"stream": 1, "end": True},
    {"hello": 1},
]


@given(data=st.data(), op=st.sampled_from(sorted(GOOD)))
@settings(max_examples=150)
def test_an_agent_that_says_anything_gets_a_result_or_an_error(data: st.DataObject, op: str) -> None:
    with agent() as talking:
        made = data.draw(st.sampled_from(["answer", "error", "nothing"]))
        odd = data.draw(with_something_odd(GOOD[op]) if made == "answer" else odd_values)
        talking.answer = lambda _: {"error" if made == "error" else "result": odd}
        for _ in range(data.draw(st.integers(0, 3))):
            message = data.draw(odd_bytes | with_something_odd(data.draw(st.sampled_from(MESSAGES))))
            talking.noise.append(message if isinstance(message, bytes) else json.dumps(message).encode())
        with suppress(MachineError):
            said = ASKED[op](talking.guest)
            str(said).encode()  # it can be shown, and written
            if isinstance(said, Clock):
                assert abs(float(said.wall) * 1e-9 + said.monotonic) < 1e30
        talking.answer, talking.noise = lambda request: {"result": GOOD[request["op"]]}, []
        assert talking.guest.now() == Clock(1, 1.0), "the channel lives on"


def test_a_line_without_end_is_not_kept_whole() -> None:
    with agent() as talking:
        talking.noise = [b"x" * (9 << 20)]
        assert talking.guest.now() == Clock(1, 1.0)


@given(data=st.data())
@settings(max_examples=100)
def test_what_a_console_says_is_judged_or_left(data: st.DataObject) -> None:
    heard = Console("run")
    lines = []
    for number in range(1, 6):
        kind = data.draw(st.sampled_from(["begin", "stage", "baked", "proved", "warn", "log", "fail", "done"]))
        number_ = data.draw(st.sampled_from([str(number), "9" * 5000, "0", "٣"]))
        document = with_something_odd({"name": "a", "pinned": True, "problems": [], "start_seconds": 1.0})
        odd = data.draw(odd_bytes | document)
        said = odd if isinstance(odd, bytes) else json.dumps(odd).encode()
        lines.append(f"@parbake run {number_} {kind} ".encode() + said.replace(b"\n", b" "))
    heard.read(console.clean(b"\n".join([*lines, b""]).decode(errors="replace")))
    with suppress(ParbakeError):
        heard.judge([], "the end", mode="verify")
    for said_of in heard.proved.values():
        json.loads(proof("app", "sha256:0", said_of).model_dump_json())


@given(said=with_something_odd({
    "name": "a", "pinned": True, "problems": ["x"], "start_seconds": 1.0, "sandbox_seconds": 1.0, "output": "y",
}))  # fmt: skip
def test_what_a_program_reports_on_an_image_is_a_verdict(said: Any) -> None:
    verdict = proof("app", "sha256:0", said)
    assert isinstance(verdict.problems, tuple)
    verdict.model_dump_json()


@given(parts=st.lists(st.one_of(
    st.binary(max_size=40), odd_bytes,
    st.sampled_from([b"0001-01-01T00:00:00 stdout F x\n", b"9999-12-31T23:59:59-23:59 stderr P x\n",
                     b"now stdout F\n"]),
), max_size=5))  # fmt: skip
def test_a_log_may_hold_anything(parts: list[bytes]) -> None:
    log = Log()
    for part in parts:
        for at, text in log.feed(part):
            assert isinstance(at, float)
            assert isinstance(text, str)


def test_a_log_without_an_end_is_not_kept_whole() -> None:
    log = Log()
    for _ in range(64):
        log.feed(b"x" * (64 << 10))
        log.feed(b"\n2026-01-01T00:00:00Z stdout P " + b"y" * (64 << 10) + b"\n")
    assert len(log._rest) <= 1 << 20
    assert len(log._pieces["stdout"]) <= 1 << 20


def test_a_console_of_any_length_is_read_from_its_end(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, 2)
        file.write(b"\nKernel panic - not syncing\n")
    text = console.read(tmp_path / "log")
    assert len(text) <= 4 << 20
    assert console.diagnosis(text) == "the kernel panicked"
    assert console.read(tmp_path / "none") == ""


@given(
    said=odd_bytes
    | st.builds(lambda value: json.dumps(value).encode(), odd_values | with_something_odd({"error": {"desc": "x"}}))
)
def test_a_qemu_that_was_taken_over_says_anything(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        qmp = Qmp.__new__(Qmp)
        qmp._connection, qmp._lines, qmp._lock, qmp.events = ours, ours.makefile("rb"), threading.Lock(), []
        theirs.sendall(said.replace(b"\n", b" ") + b"\n")
        theirs.shutdown(socket.SHUT_WR)
        with suppress(MachineError):
            qmp.execute("query-status")
        qmp.close()


@pytest.mark.parametrize("said", ["", "x\n", "9" * 5000])
def test_a_docker_without_a_version_is_named(said: str) -> None:
    from parbake.verify import within

    class Answers:
        stretch = 1.0

        class guest:  # noqa: N801
            @staticmethod
            def check(*_: object, **__: object) -> str:
                return said

    assert within.wait_docker(Answers).startswith("docker ")  # type: ignore[arg-type]
