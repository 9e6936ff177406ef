"""The QMP client against a server that speaks QEMU's protocol."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from parbake.core.errors import MachineError
from parbake.machine.vm.qmp import Qmp

GREETING = {"QMP": {"version": {}, "capabilities": ["oob"]}}
Script = dict[str, list[dict[str, Any]]]


class Server:
    """Answers each command with the lines that a script has for it; an empty list hangs up."""

    def __init__(self) -> None:
        self.client, self._end = socket.socketpair()
        self.asked: list[dict[str, Any]] = []

    def start(self, greeting: dict[str, Any], script: Script) -> None:
        threading.Thread(target=self._serve, args=(greeting, script), daemon=True).start()

    def _serve(self, greeting: dict[str, Any], script: Script) -> None:
        with self._end, self._end.makefile("rwb") as lines:
            lines.write(json.dumps(greeting).encode() + b"\r\n")
            lines.flush()
            for line in lines:
                request = json.loads(line)
                self.asked.append(request)
                answers = {"qmp_capabilities": [{"return": {}}], **script}[request["execute"]]
                if not answers:
                    return
                lines.write(b"".join(json.dumps(answer).encode() + b"\r\n" for answer in answers))
                lines.flush()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.client.close()


def test_commands_carry_arguments_and_events_are_noted(server: Server) -> None:
    event = {"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}}
    server.start(GREETING, {"query-status": [event, {"return": {"status": "running"}}], "device_add": [{"return": {}}]})
    qmp = Qmp(server.client).greet()
    assert qmp.execute("query-status") == {"status": "running"}
    assert qmp.events == ["RESUME"]
    qmp.execute("device_add", driver="virtio-net-pci", bus="b")
    assert server.asked[-1] == {"execute": "device_add", "arguments": {"driver": "virtio-net-pci", "bus": "b"}}
    qmp.close()


def test_a_refusal_says_why(server: Server) -> None:
    server.start(GREETING, {"device_add": [{"error": {"class": "GenericError", "desc": "Bus 'x' not found"}}]})
    with pytest.raises(MachineError, match=r"refused device_add .*Bus 'x' not found"):
        Qmp(server.client).greet().execute("device_add", bus="x")


def test_an_end_in_the_middle_is_an_error(server: Server) -> None:
    server.start(GREETING, {"query-status": []})
    qmp = Qmp(server.client).greet()
    with pytest.raises(MachineError, match=r"QEMU (ended|did not answer).*query-status"):
        qmp.execute("query-status")
    with pytest.raises(MachineError, match="QEMU ended before quit"):
        qmp.execute("quit")


def test_something_else_than_qemu_is_refused(server: Server) -> None:
    server.start({"hello": 1}, {})
    with pytest.raises(MachineError, match="instead of a greeting"):
        Qmp(server.client).greet()
