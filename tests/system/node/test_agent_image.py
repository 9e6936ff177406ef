"""The agent as its image has it: small, with nothing else in it, as nobody, against an API server that speaks TLS."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from parbake.core.model import MIB
from parbake.core.run import need, run
from standins.kubernetes.server import Handler, Server, store_of
from standins.kubernetes.store import Refused
from standins.registry import Certificates, certificates
from tools.agent_root import lay_out

pytestmark = pytest.mark.root

READY = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
DONE = {"version": 1, "phase": "done", "since": "2026-12-03T09:00:00Z", "uptime": 1.0, "state": "done"}
LIMIT = 20 * MIB


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("agent") / "root"
    root.mkdir(mode=0o755)
    lay_out(root, Path("/usr/bin/python3"))
    return root


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with speaking_tls(certificates(tmp_path / "tls", names="DNS:kubernetes.default.svc")) as server:
        server.create("nodes", "node-1", status={"conditions": [READY]})
        yield server


@contextmanager
def speaking_tls(authority: Certificates) -> Iterator[Server]:
    """Serve the nodes of a cluster as pods find its API server."""
    store = store_of()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"store": store}))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate, authority.key)
    http.socket = context.wrap_socket(http.socket, server_side=True)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield Server(store, f"https://127.0.0.1:{http.server_port}", authority.ca)
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


@contextmanager
def agent(image: Path, server: Server, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the program in its image's root, as its container would; ``folder`` is shown to it as /run/parbake."""
    account = folder.parent / "account"
    account.mkdir(exist_ok=True)
    (account / "token").write_text("a token\n")
    (account / "ca.crt").write_bytes(server.kubeconfig.read_bytes())
    for path in (folder.parent, folder, account):
        path.chmod(0o755)
    places = {"/run/parbake": folder, "/account": account, "/proc": Path("/proc"), "/dev": Path("/dev")}
    script = f"mount --bind {image} {image}\n"
    for inside, outside in places.items():
        script += f"mkdir -p {image}{inside} && mount --rbind {outside} {image}{inside}\n"
    # chroot gives all capabilities up with its user; no new ones come by a program's file.
    script += (
        "exec setpriv --no-new-privs --bounding-set -all,+sys_chroot,+setuid,+setgid "
        f"chroot --userspec 65532:65532 {image} "
        "/usr/bin/python3 -I -u /condition.py --account /account --node node-1 --every 0.05 --patience 0"
    )
    env = {
        "PATH": os.environ["PATH"],
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": server.url.rpartition(":")[2],
    }
    process = subprocess.Popen(
        [need("unshare"), "--mount", "--propagation", "private", "sh", "-ec", script],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


def conditions(server: Server) -> dict[str, tuple[str, str]]:
    found = server.get("nodes", "node-1")["status"]["conditions"]
    return {each["type"]: (each["status"], each["reason"]) for each in found}


def wait_for(what: Callable[[], Any], wanted: Any) -> None:
    deadline = time.monotonic() + 30
    while what() != wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    assert what() == wanted


def tell(folder: Path, **state: Any) -> None:
    (folder / "new").write_text(json.dumps({**DONE, **state}))
    (folder / "new").replace(folder / "hydrate.json")


def now() -> float:
    return float(Path("/proc/uptime").read_text().split()[0])


def test_the_image_is_small_and_holds_no_other_program(image: Path) -> None:
    files = [path for path in image.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < LIMIT
    assert [path.name for path in files if path.parent.name == "bin"] == [Path("/usr/bin/python3").resolve().name]
    assert not [path for path in files if path.stat().st_mode & 0o6000]


def test_a_nodes_conditions_follow_its_state_beside_those_of_others(
    image: Path, server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "run/parbake"
    folder.mkdir(parents=True)
    tell(folder, phase="loading", uptime=now(), bytes=MIB, wanted=2 * MIB)
    with agent(image, server, folder):
        wait_for(lambda: conditions(server).get("parbake.dev/Hydrating"), ("True", "Loading"))
        tell(folder, uptime=now())
        wait_for(lambda: conditions(server).get("parbake.dev/Hydrated"), ("True", "Done"))
    assert conditions(server)["parbake.dev/Hydrating"] == ("False", "Done")
    assert conditions(server)["Ready"] == ("True", "KubeletReady")
    [found] = [
        each for each in server.get("nodes", "node-1")["status"]["conditions"] if each["type"] == "parbake.dev/Hydrated"
    ]
    assert found["lastTransitionTime"] == DONE["since"], "as the state tells it, whenever the agent began"


def test_it_goes_on_whatever_the_api_server_says(image: Path, server: Server, tmp_path: Path) -> None:
    folder, says = tmp_path / "run/parbake", [Refused(403, "Forbidden", "no right"), Refused(500, "Internal", "oops")]

    def refuse() -> None:
        if says:
            raise says.pop(0)

    server.store.before_answer = refuse
    folder.mkdir(parents=True)
    (folder / "misses.trace").write_text('{"parbake-trace":1}\n')
    tell(folder, uptime=now())
    with agent(image, server, folder) as process:
        wait_for(lambda: conditions(server).get("parbake.dev/Hydrated"), ("True", "Done"))
    assert process.stdout is not None
    said = process.stdout.read()
    assert "cannot write the conditions of node-1, next try in 0 s: the API server says 403: " in said
    assert "no right" in said
    assert said.splitlines().count('{"parbake-trace":1}') == 1, "for `parbake trace --misses`"
    assert (process.returncode, "a token" in said) == (0, False)


def test_it_tells_no_token_to_a_server_of_another_authority(image: Path, server: Server, tmp_path: Path) -> None:
    seen: list[object] = []
    server.store.before_answer = lambda: seen.append(1)
    server.kubeconfig.write_bytes(certificates(tmp_path / "other").ca.read_bytes())
    folder = tmp_path / "run/parbake"
    folder.mkdir(parents=True)
    with agent(image, server, folder) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
    assert "certificate verify failed" in line
    assert seen == []


def test_a_clusters_authority_needs_no_key_identifier(image: Path, tmp_path: Path) -> None:
    """As those of EKS have none, and Python 3.13 asks for one unless it is told not to."""
    folder, tls = tmp_path / "run/parbake", tmp_path / "tls"
    folder.mkdir(parents=True)
    made = certificates(tls, names="DNS:kubernetes.default.svc")
    anew = ["openssl", "req", "-x509", "-new", "-key", str(tls / "ca.key"), "-subj", "/CN=parbake test authority"]
    added = ("basicConstraints=critical,CA:TRUE", "authorityKeyIdentifier=none", "subjectKeyIdentifier=none")
    run([*anew, "-days", "2", *(word for each in added for word in ("-addext", each)), "-out", str(made.ca)])
    tell(folder, uptime=now())
    with speaking_tls(made) as server:
        server.create("nodes", "node-1", status={"conditions": [READY]})
        with agent(image, server, folder):
            wait_for(lambda: conditions(server).get("parbake.dev/Hydrated"), ("True", "Done"))
