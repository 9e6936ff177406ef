"""Small words for tests that ask a registry.

ref(host)                          # host/team/app:v1
read_all(client, image, number)    # the bytes of one layer, read in odd pieces
log_in(host, user("ann", "word"))  # writes ~/.docker/config.json; take the ``nobody`` fixture first
"""

from __future__ import annotations

import base64
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parbake.core.model import Descriptor, Image, Platform, RegistryOptions
from parbake.core.reference import Reference
from parbake.images.registry import Patience, Registry
from standins.images import image, index, layer, push
from standins.registry import DockerRegistry

ONE, TWO = layer({"a": b"1"}), layer({"b": os.urandom(100_000)})
BOTH = index(image(ONE, TWO), image(TWO, platform="linux/arm64/v8", compression="zstd"))
"""Two layers, and the index of two images with them; ``registry`` has it as team/app:v1, and an image as v1.1."""
AMD64, ARM64 = Platform.parse("linux/amd64"), Platform.parse("linux/arm64")
PLAIN = RegistryOptions(plain_http=True)
QUICK = Patience(tries=3, first=0.01, longest=0.02, total=10, connect=2, stall=5)

_SETTINGS = ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "HTTP_PROXY", "http_proxy")


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a user who is logged in nowhere."""
    for name in _SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Run a registry with ``BOTH`` and an image of ``ONE``."""
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as running:
        push(running.url, "team/app", BOTH, "v1")
        push(running.url, "team/app", image(ONE), "v1.1")
        yield running


def not_loopback() -> str:
    """Return an address of this machine that is not a loopback one; skips the test where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: only asks for the way there
        except OSError:
            pytest.skip("the machine has no network interface besides loopback")
        return str(probe.getsockname()[0])


def log_in(host: str, entry: dict[str, Any]) -> None:
    """Write what ``docker login`` would; replaces what was there."""
    folder = Path(os.environ["HOME"]) / ".docker"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"auths": {host: entry}}))


def user(name: str, password: str) -> dict[str, str]:
    """Return a config.json entry."""
    return {"auth": base64.b64encode(f"{name}:{password}".encode()).decode()}


def ref(host: str, name: str = "team/app:v1") -> Reference:
    """Return a reference at ``host``."""
    return Reference.parse(f"{host}/{name}")


def layer_of(image: Image, number: int) -> Descriptor:
    """Return the descriptor of a layer."""
    layer = image.layers[number]
    return Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size)


def read_all(client: Registry, image: Image, number: int = 0, *, offset: int = 0) -> bytes:
    """Return the bytes of a layer from ``offset`` on."""
    out = bytearray()
    buffer = memoryview(bytearray(70_000))
    with client.source(image).open(layer_of(image, number), offset=offset) as stream:
        while count := stream.readinto(buffer):
            out += buffer[:count]
    return bytes(out)
