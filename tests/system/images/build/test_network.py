"""What the RUN steps of a build reach, with buildah and for real."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from parbake.core.errors import EnvironmentProblem
from parbake.core.run import run
from standins.contexts import write_files
from tests.system.images.build.test_build import Harness, busybox, cache, harness

__all__ = ["cache", "harness"]

pytestmark = pytest.mark.root


REACHES = (
    'FROM scratch\nADD busybox /bin/busybox\nRUN {option} ["/bin/busybox", "sh", "-c", '
    '"/bin/busybox wget -T 5 -O - {url} 2>&1; echo ended $?; /bin/busybox ip -o -4 address"]\n'
)


@contextmanager
def service(address: str) -> Iterator[str]:
    """A service of this machine that says a secret."""
    with socket.create_server((address, 0)) as served:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = served.accept()
                    with connection:
                        connection.recv(1 << 16)
                        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nthe secret of this machine")

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://{address}:{served.getsockname()[1]}/"
        served.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def listener() -> Iterator[str]:
    with service("127.0.0.1") as url:
        yield url


@pytest.mark.parametrize("option", ["", "--network=host", "--network=default"])
def test_run_steps_do_not_reach_this_machines_loopback(
    tmp_path: Path, harness: Harness, listener: str, option: str
) -> None:
    """Not even a step that asks for the host's network, as a base image's ONBUILD may."""
    what = busybox(tmp_path / "context", REACHES.format(option=option, url=listener))
    harness.build(what, "localhost/reaches:1")
    assert "the secret of this machine" not in harness.log
    assert "Connection refused" in harness.log
    assert "10.0.2.100/24" in harness.log
    assert not [event for event in harness.said if event.kind == "warning"]


@pytest.mark.parametrize("address", ["169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200"])
def test_run_steps_do_not_reach_a_clouds_metadata_service(tmp_path: Path, harness: Harness, address: str) -> None:
    what = busybox(tmp_path / "context", REACHES.format(option="", url=f"http://{address}/latest/meta-data/"))
    harness.build(what, "localhost/reaches:1")
    assert f"can't connect to remote host ({address}): No route to host" in harness.log


def test_run_steps_have_the_network_that_the_bakefile_says(tmp_path: Path, harness: Harness, listener: str) -> None:
    what = busybox(tmp_path / "context", REACHES.format(option="", url=listener))
    harness.build(replace(what, network="host"), "localhost/reaches:1")
    assert "the secret of this machine" in harness.log
    harness.said.clear()
    what = busybox(tmp_path / "again", REACHES.format(option="--network=host", url=listener))
    harness.build(replace(what, network="none"), "localhost/none:1")
    assert "the secret of this machine" not in harness.log
    assert "10.0.2.100" not in harness.log


def test_run_steps_resolve_names_and_reach_the_network(tmp_path: Path, harness: Harness) -> None:
    """By this machine's own address, where something listens that is not of its loopback alone."""
    own = json.loads(run(["ip", "-json", "-4", "route", "get", "192.0.2.250"]).text)[0]["prefsrc"]
    with service(own) as url:
        command = f"/bin/busybox cat /etc/resolv.conf; /bin/busybox wget -T 5 -O - {url}"
        containerfile = f'FROM scratch\nADD busybox /bin/busybox\nRUN ["/bin/busybox", "sh", "-c", "{command}"]\n'
        harness.build(busybox(tmp_path / "context", containerfile), "localhost/out:1")
    assert "the secret of this machine" in harness.log
    assert "nameserver 10.0.2.3" in harness.log


@pytest.mark.parametrize("missing", ["slirp4netns", "runc"])
def test_where_steps_cannot_have_a_network_of_their_own_that_is_said(
    tmp_path: Path, harness: Harness, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    broken = tmp_path / "bin"
    write_files(broken, {missing: "#!/bin/sh\necho out of order >&2; exit 1\n"})
    (broken / missing).chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken}:{os.environ['PATH']}")
    what = busybox(tmp_path / "context", REACHES.format(option="", url="http://127.0.0.1:9/"))
    with pytest.raises(EnvironmentProblem, match=r"cannot have the network `private` here: .*out of order"):
        harness.build(replace(what, network="private"), f"localhost/{missing}:1")
    harness.build(what, f"localhost/{missing}:1")
    [warning] = [event.text for event in harness.said if event.kind == "warning"]
    assert "RUN steps reach all that this machine does" in warning
    assert "out of order" in warning
    assert not list(harness.work.iterdir())
