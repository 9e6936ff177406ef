"""The guest agent, run on this machine: a socket pair or a terminal stands in for the virtio port."""

from __future__ import annotations

import ast
import http.server
import importlib.util
import os
import pty
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parbake.core.errors import MachineError
from parbake.core.nodefiles import node_file
from parbake.machine.vm import Guest

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

SOURCE = node_file("agent.py")


def agent_module() -> Any:
    spec = importlib.util.spec_from_file_location("agent", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def serve(port: int) -> None:
    agent_module().Agent(port).serve()


@pytest.fixture
def guest() -> Iterator[Guest]:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve, args=(theirs.fileno(),), daemon=True)
    thread.start()
    guest = Guest([ours], grace=20)
    assert guest.wait_hello(20)
    yield guest
    guest.close()
    thread.join(120)
    assert not thread.is_alive(), "the agent outlives its port"
    theirs.close()


def test_a_machine_that_resumes_gets_the_time_and_random_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a machine in tests/vm does; this one keeps its clock, and the kernel is asked by what a test can see."""
    asked: list[tuple[int, bytes]] = []
    clocks: list[tuple[int, int]] = []
    module = agent_module()
    monkeypatch.setattr(module.fcntl, "ioctl", lambda _, request, data=b"": asked.append((request, data)))
    monkeypatch.setattr(module.time, "clock_settime_ns", lambda clock, wall: clocks.append((clock, wall)))
    before = time.time_ns()
    for _ in range(2):
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=module.Agent(theirs.fileno()).serve, daemon=True)
        thread.start()
        said = ours.recv(1 << 16)  # hello: this host is not the one that heard it
        assert b"hello" in said
        guest = Guest([ours], grace=20)
        guest.resume(20)
        assert guest.speaks_first
        assert guest.wait_hello(0)
        guest.close()
        thread.join(120)
        theirs.close()
    (add, first), (reseed, _), (again, second), _ = asked
    assert (add, again, reseed) == (0x40085203, 0x40085203, 0x5207)  # linux/random.h
    assert [struct.unpack("ii", data[:8]) for data in (first, second)] == [(256, 32)] * 2
    assert len({first[8:], second[8:]}) == 2
    assert [len(first), len(second)] == [40, 40]
    for clock, wall in clocks:
        assert clock == time.CLOCK_REALTIME
        assert before <= wall <= time.time_ns()


def test_who_does_not_answer_has_not_resumed() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        guest = Guest([ours], grace=1000)
        with pytest.raises(MachineError, match="did not answer resume"):
            guest.resume(0.05)
        assert not guest.wait_hello(0)
        guest.close()


def unix_echo(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def echo(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(1 << 16):
                if data.endswith(b"stop"):
                    return
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def test_it_needs_nothing_but_python_3_9() -> None:
    text = SOURCE.read_text()
    tree = ast.parse(text, feature_version=(3, 9))
    names = {
        alias.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names
    assert not any(isinstance(node, ast.Match) for node in ast.walk(tree))
    assert len(text.splitlines()) < 165


def test_a_program_runs_and_both_its_outputs_come_back(guest: Guest) -> None:
    ran = guest.run(["sh", "-c", "cat; echo oops >&2; exit 3"], stdin=b"given\n")
    assert (ran.code, ran.output) == (3, "given\noops\n")
    with pytest.raises(MachineError, match=r"(?s)ended with code 3.*oops"):
        guest.check(["sh", "-c", "echo oops >&2; exit 3"])
    assert guest.check(["echo", "fine"]) == "fine\n"


def test_output_is_cut_to_its_end(guest: Guest) -> None:
    ran = guest.run(["sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x; echo end"])
    assert ran.code == 0
    assert len(ran.output) == 1 << 16
    assert ran.output.endswith("xend\n")


def test_a_program_that_hangs_is_stopped_with_its_children(guest: Guest, tmp_path: Path) -> None:
    written = tmp_path / "child"
    for limit in (0.5, 5.0, 50.0):  # on a busy machine the shell may not have begun by then
        ran = guest.run(
            ["sh", "-c", f"sleep 1000 & echo $! >{tmp_path}/new; mv {tmp_path}/new {written}; wait"], timeout=limit
        )
        assert ran.code is None
        if written.exists():
            break
    child = int(written.read_text())
    deadline = time.monotonic() + 120
    while Path(f"/proc/{child}").exists() and _state(child) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(MachineError, match="was stopped after 0 s"):
        guest.check(["sleep", "1000"], timeout=0.2)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_a_program_that_is_missing_is_an_error_and_the_agent_goes_on(guest: Guest) -> None:
    with pytest.raises(MachineError, match=r"/no/such/program.*FileNotFoundError"):
        guest.run(["/no/such/program"])
    with pytest.raises(MachineError, match="could not do nothing"):
        guest.call("nothing")
    assert guest.now().wall > 0


def test_files_are_read_from_an_offset(guest: Guest, tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(bytes(range(256)) * 1000)
    assert guest.read(str(file), offset=255, limit=3) == b"\xff\x00\x01"
    assert guest.read(str(file), offset=256_000) == b""
    with pytest.raises(MachineError, match="No such file"):
        guest.read(str(tmp_path / "none"))


def test_waiting_for_a_port_ends_when_something_listens(guest: Guest) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        refused = guest.wait_tcp(port, 0.05)
        assert not refused.up
        assert "refused" in refused.why
        before = guest.now()
        threading.Timer(0.2, listener.listen).start()
        waited = guest.wait_tcp(port, 20)
        assert waited.up
        assert waited.at.monotonic > before.monotonic
        assert waited.at.wall > before.wall


class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response({"/fine": 200, "/moved": 302}.get(self.path, 503))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.mark.parametrize(
    ("path", "up", "why"), [("/fine", True, ""), ("/moved", True, ""), ("/bad", False, "HTTP status 503")]
)
def test_waiting_for_http_takes_200_to_399(guest: Guest, path: str, up: bool, why: str) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        waited = guest.wait_http(server.server_port, path, 0.1)
        server.shutdown()
    assert (waited.up, waited.why) == (up, why)


def test_waiting_for_a_unix_socket(guest: Guest, tmp_path: Path) -> None:
    assert not guest.wait_unix(str(tmp_path / "none"), 0.02).up
    with unix_echo(tmp_path / "socket"):
        assert guest.wait_unix(str(tmp_path / "socket"), 10).up


def test_waiting_takes_a_small_part_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulated one has nothing to spare while its boot is waited for."""
    module = agent_module()
    cost, attempts = 0.02, 0

    def attempt(*_: object) -> None:
        nonlocal attempts
        attempts += 1
        end = time.thread_time() + cost
        while time.thread_time() < end:
            pass
        raise OSError("nobody there")

    monkeypatch.setattr(module, "attempt", attempt)
    begun = time.monotonic()
    assert not module.wait("unix", timeout=1.0)["up"]
    assert attempts * cost * module.SHARE <= time.monotonic() - begun


def test_connections_are_carried_side_by_side_and_end_at_both_ends(guest: Guest, tmp_path: Path) -> None:
    deep = tmp_path / ("long" * 40)  # longer than a socket's name may be
    deep.mkdir()
    with unix_echo(tmp_path / "socket"):
        path = guest.forward(deep / "containerd.sock", str(tmp_path / "socket"))
        sent = os.urandom(3_000_000)
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            first.connect(str(path))
            second.connect(str(path))
            received = bytearray()

            def read() -> None:
                while len(received) < len(sent):
                    received.extend(first.recv(1 << 20))

            busy = [threading.Thread(target=first.sendall, args=(sent,)), threading.Thread(target=read)]
            for thread in busy:
                thread.start()
            second.sendall(b"between")
            assert second.recv(100) == b"between"
            for thread in busy:
                thread.join(120)
            assert received == sent
            second.sendall(b"stop")
            assert second.recv(100) == b""  # the far end closed
            first.sendall(b"still")
            assert first.recv(100) == b"still"
        with socket.socket(socket.AF_UNIX) as third:  # and a new one can be opened
            third.connect(str(path))
            third.sendall(b"again")
            assert third.recv(100) == b"again"


def test_a_connection_to_nothing_ends_at_once(guest: Guest, tmp_path: Path) -> None:
    path = guest.forward(tmp_path / "containerd.sock", str(tmp_path / "nobody"))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert client.recv(100) == b""


def test_a_request_fails_when_the_machine_goes_away() -> None:
    ours, theirs = socket.socketpair()
    guest = Guest([ours], grace=20)
    assert not guest.wait_hello(0.01)
    with pytest.raises(MachineError, match="has not started yet"):
        guest.now()
    theirs.sendall(b'noise\n{"hello": true}\n')
    assert guest.wait_hello(20)
    threading.Timer(0.1, theirs.close).start()
    with pytest.raises(MachineError, match="the machine ended before"):
        guest.now()
    guest.close()


def test_an_answer_that_never_comes_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    guest = Guest([ours], grace=0.05)
    theirs.sendall(b'{"hello": true}\n')
    assert guest.wait_hello(20)
    with pytest.raises(MachineError, match="did not answer now within"):
        guest.call("now", within=0.05)
    guest.close()
    theirs.close()


def test_a_serial_line_works_as_well() -> None:
    """A terminal mangles what passes through unless the agent makes it raw."""
    host, line = pty.openpty()
    agent = subprocess.Popen([sys.executable, str(SOURCE), os.ttyname(line)], stderr=subprocess.PIPE)
    ours, theirs = socket.socketpair()

    def copy(source: int, target: int) -> None:
        try:
            while data := os.read(source, 1 << 16):
                os.write(target, data)
        except OSError:
            pass

    for ends in ((host, theirs.fileno()), (theirs.fileno(), host)):
        threading.Thread(target=copy, args=ends, daemon=True).start()
    guest = Guest([ours], grace=20)
    try:
        assert guest.wait_hello(20)
        assert guest.run(["cat"], stdin=bytes(range(32, 127)) * 500).output == bytes(range(32, 127)).decode() * 500
    finally:
        agent.kill()
        agent.communicate()
        guest.close()
