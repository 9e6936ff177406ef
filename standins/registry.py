"""A real registry (Debian's ``docker-registry``) on a free loopback port, for as long as a ``with`` block.

    with DockerRegistry(tmp_path) as registry:                       # plain HTTP
        registry.host                                                # "127.0.0.1:38741", as in an image reference
        registry.url                                                 # "http://127.0.0.1:38741"
        push(registry.url, "team/app", image(layer({"a": b"1"})))    # see images.py

    with DockerRegistry(tmp_path, tls=certificates(tmp_path), users={"ann": "secret"}) as registry:
        registry.ca                                                  # path of the PEM file to trust
        push(registry.url, "team/app", ..., user=("ann", "secret"), ca=registry.ca)

    with DockerRegistry(tmp_path, token={"realm": url, "service": ..., "issuer": ..., "rootcertbundle": ...}):
        ...                                                          # bearer tokens, as docker-registry's auth.token

``stop()`` and ``start()`` play an outage; the content stays in the folder, and the port the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from parbake.core.run import Deadline, Process, run

_LISTENING = re.compile(r"listening on ([0-9.]+:[0-9]+)")


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files: an authority, and a server's certificate (127.0.0.1, localhost) with its key."""

    ca: Path
    certificate: Path
    key: Path


def certificates(folder: Path, *, names: str = "IP:127.0.0.1,DNS:localhost") -> Certificates:
    """Make an authority of our own and a certificate for ``names`` signed by it."""
    folder.mkdir(parents=True, exist_ok=True)
    ca, ca_key, certificate, key = (folder / name for name in ("ca.pem", "ca.key", "server.pem", "server.key"))
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    authority = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
    run([*new, "-subj", "/CN=parbake test authority", *authority, "-keyout", str(ca_key), "-out", str(ca)])
    signed = ["-CA", str(ca), "-CAkey", str(ca_key), "-addext", f"subjectAltName={names}"]
    leaf = ["-addext", "basicConstraints=critical,CA:FALSE"]
    run([*new, "-subj", "/CN=registry", *signed, *leaf, "-keyout", str(key), "-out", str(certificate)])
    return Certificates(ca, certificate, key)


class DockerRegistry:
    """The registry; see the top of this file. Also usable with ``start`` and ``stop`` instead of ``with``."""

    def __init__(
        self,
        folder: Path,
        *,
        tls: Certificates | None = None,
        users: dict[str, str] | None = None,
        token: Mapping[str, str] | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self.folder = folder / "docker-registry"
        self.tls = tls
        self.host = ""
        self._address = address
        self._users = users
        self._token = token
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"{'https' if self.tls else 'http'}://{self.host}"

    @property
    def ca(self) -> str:
        """Path of the authority to trust; empty without TLS."""
        return str(self.tls.ca) if self.tls else ""

    @property
    def log(self) -> Path:
        """The registry's log, with one line for each request."""
        return self.folder / "log"

    def start(self) -> None:
        """Start it and wait until it listens."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        config = self.folder / "config.json"  # YAML is a superset of JSON
        config.write_text(json.dumps(self._config()))
        self._process = Process(["docker-registry", "serve", str(config)], log=self.log)
        self._process.__enter__()
        deadline = Deadline(120, "docker-registry listens")
        while not (found := _LISTENING.search(self.log.read_text())):
            self._process.check_alive()
            deadline.sleep(0.02)
        self.host = found[1]

    def stop(self) -> None:
        """Stop it; the content stays."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _config(self) -> dict[str, object]:
        http: dict[str, object] = {"addr": self.host or f"{self._address}:0", "secret": "test"}
        if self.tls:
            http["tls"] = {"certificate": str(self.tls.certificate), "key": str(self.tls.key)}
        config: dict[str, object] = {
            "version": 0.1,
            "log": {"level": "info", "formatter": "json"},
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "content")}, "delete": {"enabled": True}},
            "http": http,
        }
        if self._users:
            path = self.folder / "htpasswd"
            lines = [
                run(["htpasswd", "-niB", name], stdin=f"{word}\n".encode()).text for name, word in self._users.items()
            ]
            path.write_text("\n".join(line.strip() for line in lines) + "\n")
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(path)}}
        elif self._token:
            config["auth"] = {"token": dict(self._token)}
        return config

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
