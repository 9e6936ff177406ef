"""The client against the real docker-registry, and beside skopeo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import urllib3

from parbake.core.errors import BadContent, InputError, NoSuchImage, RegistryError, Unreachable
from parbake.core.events import Event, Events
from parbake.core.model import Platform, RegistryOptions
from parbake.core.reference import Reference
from parbake.core.run import run
from parbake.images.registry import Layout, Patience, Registry, open_source
from standins.faulty_proxy import Chunked, FaultyProxy, Header, Stall, Status, WholeAnswer
from standins.images import OCI_MANIFEST, Built, image, index, layer, push, sha256, write_layout
from standins.registry import DockerRegistry
from standins.registry_client import (
    AMD64,
    ARM64,
    BOTH,
    ONE,
    PLAIN,
    QUICK,
    TWO,
    layer_of,
    nobody,
    read_all,
    ref,
    registry,
)

__all__ = ["nobody", "registry"]  # fixtures: the first for every test here


class TestPlain:
    def test_resolving(self, registry: DockerRegistry) -> None:
        with Registry() as client:
            amd = client.resolve(ref(registry.host), AMD64)
            arm = client.resolve(ref(registry.host), ARM64)
            assert client.platforms(ref(registry.host)) == (AMD64, ARM64)
            assert client.head(ref(registry.host)) == amd.target
            assert amd.target.digest == BOTH.digest
            assert str(amd.reference) == f"{registry.host}/team/app:v1"
            assert [amd.manifest.digest, arm.manifest.digest] == [child.digest for child in BOTH.children]
            assert [entry.raw_size for entry in amd.layers] == [len(ONE), len(TWO)]
            assert [entry.raw_size for entry in arm.layers] == [len(TWO)]
            assert client.source(amd).read(amd.config) == BOTH.children[0].config.data
            assert read_all(client, amd, 1) == BOTH.children[0].layers[1].data

    def test_digests(self, registry: DockerRegistry) -> None:
        child = BOTH.children[1]
        with Registry() as client:
            pinned = client.resolve(ref(registry.host, f"team/app:v1@{child.digest}"), ARM64)
            assert pinned.target == pinned.manifest
            assert pinned.manifest.digest == child.digest
            assert client.head(ref(registry.host, f"team/app@{BOTH.digest}")).digest == BOTH.digest
            with pytest.raises(NoSuchImage, match="no such digest"):
                client.resolve(ref(registry.host, f"team/app@sha256:{'0' * 64}"), AMD64)

    def test_what_is_missing_is_said(self, registry: DockerRegistry) -> None:
        with Registry() as client:
            with pytest.raises(NoSuchImage, match=r"no tag v1\.2") as tag:
                client.resolve(ref(registry.host, "team/app:v1.2"), AMD64)
            assert "did you mean v1.1" in tag.value.hint
            with pytest.raises(NoSuchImage, match="no tag zzz") as far:
                client.head(ref(registry.host, "team/app:zzz"))
            assert "v1.1" in far.value.hint
            with pytest.raises(NoSuchImage, match="no repository team/nothing"):
                client.resolve(ref(registry.host, "team/nothing:v1"), AMD64)
            with pytest.raises(NoSuchImage, match="linux/amd64, linux/arm64"):
                client.resolve(ref(registry.host), Platform.parse("linux/s390x"))

    def test_local_names_cannot_be_pulled(self) -> None:
        with Registry() as client, pytest.raises(NoSuchImage, match="cannot be pulled"):
            client.resolve(Reference.parse("localhost/app:v1"), AMD64)

    def test_ten_threads(self, registry: DockerRegistry) -> None:
        with Registry() as client, ThreadPoolExecutor(10) as threads:
            images = list(threads.map(lambda _: client.resolve(ref(registry.host), AMD64), range(30)))
            contents = list(threads.map(lambda found: read_all(client, found, 1), images))
        assert set(contents) == {BOTH.children[0].layers[1].data}
        assert len({found.model_dump_json() for found in images}) == 1

    def test_a_blob_from_the_middle(self, registry: DockerRegistry) -> None:
        with Registry() as client:
            found = client.resolve(ref(registry.host), AMD64)
            descriptor = layer_of(found, 1)
            buffer = memoryview(bytearray(descriptor.size))
            with client.source(found).open(descriptor, offset=50_000) as stream:
                count = stream.readinto(buffer)
                assert stream.readinto(buffer) == 0
            assert bytes(buffer[:count]) == BOTH.children[0].layers[1].data[50_000:]
            with client.source(found).open(descriptor, offset=descriptor.size) as stream:
                assert stream.readinto(buffer) == 0

    def test_a_layer_that_is_gone(self, tmp_path: Path) -> None:
        with DockerRegistry(tmp_path) as own, Registry(patience=QUICK) as client:
            built = image(ONE, compression="none")
            push(own.url, "team/app", built, "v1")
            found = client.resolve(ref(own.host), AMD64)
            run(["curl", "-fsS", "-X", "DELETE", f"{own.url}/v2/team/app/blobs/{built.layers[0].digest}"])
            with pytest.raises(RegistryError, match="does not have it"):
                read_all(client, found)
            run(["curl", "-fsS", "-X", "DELETE", f"{own.url}/v2/team/app/blobs/{built.config.digest}"])
            with pytest.raises(RegistryError, match="does not have it"):
                client.resolve(ref(own.host), AMD64)

    def test_an_outage(self, tmp_path: Path) -> None:
        own = DockerRegistry(tmp_path)
        own.start()
        own.stop()
        with Registry(patience=QUICK) as client, pytest.raises(Unreachable, match="refused") as caught:
            client.resolve(ref(own.host), AMD64)
        assert own.host in caught.value.hint

    def test_a_host_that_does_not_exist(self) -> None:
        with Registry(patience=QUICK) as client, pytest.raises(Unreachable, match=r"no-such-host\.invalid"):
            client.resolve(ref("no-such-host.invalid"), AMD64)

    def test_a_layout_and_a_registry_side_by_side(self, registry: DockerRegistry, tmp_path: Path) -> None:
        layout = Layout(write_layout(tmp_path / "layout", {"v1": BOTH}))
        local = layout.resolve(ref(registry.host), AMD64)
        with Registry() as client:
            remote = client.resolve(ref(registry.host), AMD64)
            assert local.model_copy(update={"layout": ""}) == remote
            contents = [open_source(client, found).read(found.config) for found in (local, remote)]
        assert contents[0] == contents[1]


class TestDocuments:
    def case(self, registry: DockerRegistry, *faults: Any, path: str = "/manifests/") -> None:
        with FaultyProxy(registry.url) as proxy, Registry({proxy.host: PLAIN}, patience=QUICK) as client:
            proxy.only = path
            proxy.faults.extend(faults)
            client.resolve(ref(proxy.host), AMD64)

    def test_the_digest_in_the_header_must_fit(self, registry: DockerRegistry) -> None:
        with pytest.raises(BadContent, match="has the digest"):
            self.case(registry, Header("Docker-Content-Digest", f"sha256:{'0' * 64}"))

    def test_another_digest_method_is_no_contradiction(self, registry: DockerRegistry) -> None:
        self.case(registry, Header("Docker-Content-Digest", f"sha512:{'0' * 128}"))

    def test_what_the_header_calls_it(self, registry: DockerRegistry) -> None:
        with pytest.raises(BadContent, match="calls itself"):
            self.case(registry, Header("Content-Type", OCI_MANIFEST))
        self.case(registry, Header("Content-Type", "application/octet-stream"))

    def test_a_web_page(self, registry: DockerRegistry) -> None:
        with pytest.raises(BadContent, match="did not deliver a manifest"):
            self.case(registry, Status(200, {"Content-Type": "text/html"}, b"<html>"))
        with pytest.raises(BadContent, match="not a JSON object"):
            self.case(registry, Status(200, body=b"[]"))

    def test_endless_documents(self, registry: DockerRegistry) -> None:
        with pytest.raises(BadContent, match="larger than"):
            self.case(registry, Chunked(b" " * (5 << 20)))
        with pytest.raises(BadContent, match="larger than"):
            self.case(registry, Status(200, body=b" " * (5 << 20)))

    def test_no_answer_the_protocol_knows(self, registry: DockerRegistry) -> None:
        with pytest.raises(RegistryError, match="answers 418"):
            self.case(registry, Status(418))

    def test_a_registry_that_ignores_ranges_leaves_sizes_unknown(self, registry: DockerRegistry) -> None:
        with FaultyProxy(registry.url) as proxy, Registry({proxy.host: PLAIN}, patience=QUICK) as client:
            proxy.only = BOTH.children[0].layers[1].digest
            proxy.faults.append(WholeAnswer())
            found = client.resolve(ref(proxy.host), AMD64)
            assert [entry.raw_size for entry in found.layers] == [len(ONE), 0]

    @pytest.mark.parametrize("name", ["Docker-Content-Digest", "Content-Type"])
    def test_a_head_that_says_too_little_is_followed_by_a_get(self, registry: DockerRegistry, name: str) -> None:
        with FaultyProxy(registry.url) as proxy, Registry({proxy.host: PLAIN}, patience=QUICK) as client:
            proxy.only = ""
            proxy.faults.append(Header(name, ""))
            assert client.head(ref(proxy.host)).digest == BOTH.digest
            assert [request[0] for request in proxy.requests] == ["HEAD", "GET"]

    def test_a_head_that_lies(self, registry: DockerRegistry) -> None:
        with FaultyProxy(registry.url) as proxy, Registry({proxy.host: PLAIN}, patience=QUICK) as client:
            proxy.only = ""
            proxy.faults.append(Header("Docker-Content-Digest", f"sha256:{'0' * 64}"))
            with pytest.raises(BadContent, match="another digest"):
                client.head(ref(proxy.host, f"team/app@{BOTH.digest}"))


class TestMirrors:
    def test_first_the_mirror_then_the_registry(self, registry: DockerRegistry, tmp_path: Path) -> None:
        notes: list[Event] = []
        with DockerRegistry(tmp_path) as mirror, FaultyProxy(mirror.url) as watched:
            watched.only = ""
            push(mirror.url, "cache/team/app", BOTH, "v1")
            options = {registry.host: RegistryOptions(mirrors=(f"http://{watched.host}/cache",))}
            with Registry(options, events=Events(notes.append)) as client:
                found = client.resolve(ref(registry.host), AMD64)
                assert str(found.reference) == f"{registry.host}/team/app:v1"
                assert read_all(client, found, 1) == BOTH.children[0].layers[1].data
                assert all(path.startswith("/v2/cache/team/app/") for _, path, _ in watched.requests)
                assert all(f"ns={registry.host.replace(':', '%3A')}" in path for _, path, _ in watched.requests)
                assert not notes
                client.resolve(ref(registry.host, "team/app:v1.1"), AMD64)  # the mirror does not have this one
                assert any("does not help" in event.text for event in notes)

    def test_a_mirror_that_breaks_off(self, registry: DockerRegistry) -> None:
        with FaultyProxy(registry.url) as mirror:
            options = {registry.host: RegistryOptions(mirrors=(f"http://{mirror.host}",))}
            with Registry(options, patience=QUICK) as client:
                found = client.resolve(ref(registry.host), AMD64)
                mirror.faults.extend([Status(500)] * 3)
                assert read_all(client, found, 1) == BOTH.children[0].layers[1].data

    def test_a_dead_mirror_is_asked_once(self, registry: DockerRegistry) -> None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            dead = f"127.0.0.1:{gone.getsockname()[1]}"
        notes: list[Event] = []
        options = {registry.host: RegistryOptions(mirrors=(dead,))}
        with Registry(options, patience=QUICK, events=Events(notes.append)) as client:
            client.resolve(ref(registry.host), AMD64)
        assert len([event for event in notes if "will not be used any more" in event.text]) == 1

    @pytest.mark.parametrize("text", ["", "ftp://x.test", "user:word@x.test"])
    def test_what_is_no_mirror(self, registry: DockerRegistry, text: str) -> None:
        options = {registry.host: RegistryOptions(mirrors=(text,))}
        with Registry(options) as client, pytest.raises(InputError, match="mirrors"):
            client.resolve(ref(registry.host), AMD64)


class TestPeers:
    """skopeo sees what we see."""

    @pytest.mark.parametrize("docker", [False, True])
    def test_skopeo(self, registry: DockerRegistry, tmp_path: Path, *, docker: bool) -> None:
        built = index(image(ONE, TWO, docker=docker), image(ONE, platform="linux/arm64", docker=docker), docker=docker)
        repository = "peers/docker" if docker else "peers/oci"
        push(registry.url, repository, built, "v1")
        where = f"docker://{registry.host}/{repository}:v1"
        raw = run(["skopeo", "inspect", "--raw", "--tls-verify=false", where]).stdout
        inspected = json.loads(run(["skopeo", "inspect", "--tls-verify=false", "--override-arch=amd64", where]).text)
        with Registry() as client:
            found = client.resolve(ref(registry.host, f"{repository}:v1"), AMD64)
            source = client.source(found)
            assert source.read(found.target) == raw
            assert [entry.digest for entry in found.layers] == inspected["Layers"]
            config = run(
                ["skopeo", "inspect", "--raw", "--config", "--tls-verify=false", "--override-arch=amd64", where]
            )
            assert source.read(found.config) == config.stdout
        run(
            ["skopeo", "copy", "--insecure-policy", "--all", "--src-tls-verify=false", where, f"oci:{tmp_path}/copy:v1"]
        )
        layout = Layout(tmp_path / "copy").resolve(ref(registry.host, f"{repository}:v1"), AMD64)
        assert [entry.chain_id for entry in layout.layers] == [entry.chain_id for entry in found.layers]
        if not docker:
            assert layout.model_copy(update={"layout": ""}) == found

    @pytest.mark.parametrize("method", ["gzip", "zstd"])
    def test_what_skopeo_pushes(self, registry: DockerRegistry, tmp_path: Path, method: str) -> None:
        layers = [layer({method: b"1"}), layer({method: os.urandom(200_000)})]
        folder = write_layout(tmp_path / "layout", {"v1": image(*layers, compression="none")})
        where = f"docker://{registry.host}/peers/{method}:v1"
        run(
            ["skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false", "--dest-compress-format", method,
             f"oci:{folder}:v1", where]
        )  # fmt: skip
        with Registry() as client:
            found = client.resolve(ref(registry.host, f"peers/{method}:v1"), AMD64)
        assert all(entry.media_type.endswith(method) for entry in found.layers)
        assert all(entry.raw_size in {len(data), 0} for entry, data in zip(found.layers, layers, strict=True))
        assert [entry.diff_id for entry in found.layers] == [sha256(data) for data in layers]


SILENT = """
import sys
from parbake.core.model import Platform
from parbake.core.reference import Reference
from parbake.images.registry import Registry
with Registry() as client:
    print("asking", flush=True)
    client.resolve(Reference.parse(sys.argv[1]), Platform.parse("linux/amd64"))
"""


def test_ctrl_c_does_not_wait_for_a_silent_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        with subprocess.Popen(  # the signal must reach this very process, not one that starts it
            [sys.executable, "-c", SILENT, f"{host}/a:v1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == "asking\n"
            server.accept()[0].close()  # the question whether we speak TLS
            connection, _ = server.accept()
            with connection:
                assert b"GET /v2/a/manifests/v1" in connection.recv(4096)
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=120)
    assert process.returncode in {1, -signal.SIGINT}
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_closing_cuts_other_threads_off(registry: DockerRegistry) -> None:
    with FaultyProxy(registry.url) as proxy, ThreadPoolExecutor(1) as threads:
        client = Registry({proxy.host: PLAIN}, patience=Patience(stall=60))
        found = client.resolve(ref(proxy.host), AMD64)
        proxy.faults.append(Stall(100, 60))
        reading = threads.submit(read_all, client, found, 1)
        wait_until(lambda: "/blobs/" in proxy.requests[-1][1] and not proxy.faults)
        client.close()
        with pytest.raises(Unreachable):
            reading.result(timeout=120)
        with pytest.raises(Unreachable, match="closed"):
            client.head(ref(proxy.host))


def test_closing_cuts_off_who_is_about_to_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    reached, closed = threading.Event(), threading.Event()
    connect = urllib3.util.connection.create_connection

    def slowly(*arguments: Any, **options: Any) -> socket.socket:
        found = connect(*arguments, **options)
        reached.set()
        assert closed.wait(120)
        return found

    monkeypatch.setattr(urllib3.util.connection, "create_connection", slowly)
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as threads:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        client = Registry({host: PLAIN}, patience=Patience(stall=150))
        asking = threads.submit(client.head, ref(host))
        assert reached.wait(120)
        client.close()
        closed.set()
        with pytest.raises(Unreachable):
            asking.result(timeout=120)


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_many_images_in_one_repository(registry: DockerRegistry) -> None:
    built: list[Built] = [image(layer({"n": str(number).encode()})) for number in range(20)]
    for number, one in enumerate(built):
        push(registry.url, "team/many", one, f"v{number}")
    with Registry() as client, ThreadPoolExecutor(8) as threads:
        found = list(
            threads.map(
                lambda number: client.resolve(ref(registry.host, f"team/many:v{number}"), AMD64), range(len(built))
            )
        )
    assert [one.manifest.digest for one in found] == [one.digest for one in built]
