"""The instance metadata service, version 2: answers on a socket that is its standard input, as QEMU starts programs.

    python metadata.py FOLDER

``FOLDER/user-data`` is the user data (none: 404) and ``FOLDER/tree.json`` the rest, from each path below the version to
its text. Sources: EC2 user guide, "Use the Instance Metadata Service", "Instance metadata categories"; cloud-init's
Ec2 data source says what of it is asked for. Not modelled: hop limits, the lifetime of tokens, roles' credentials.
"""

from __future__ import annotations

import json
import re
import socket
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path

_TOKEN = "AQAEAParbakeToken=="
_VERSION = re.compile(r"/(latest|\d{4}-\d{2}-\d{2}|1\.0)/(.*)")


class Metadata(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def do_PUT(self) -> None:
        if self.path != "/latest/api/token" or not self.headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
            return self._answer(HTTPStatus.BAD_REQUEST)
        return self._answer(HTTPStatus.OK, _TOKEN.encode())

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != _TOKEN:
            return self._answer(HTTPStatus.UNAUTHORIZED)  # HttpTokens=required
        found = _VERSION.fullmatch(self.path)
        data = self._look(found[2]) if found else None
        return self._answer(HTTPStatus.NOT_FOUND) if data is None else self._answer(HTTPStatus.OK, data)

    def _look(self, path: str) -> bytes | None:
        if path == "user-data":
            file = self.folder / "user-data"
            return file.read_bytes() if file.exists() else None
        tree: dict[str, str] = json.loads((self.folder / "tree.json").read_text())
        if path in tree:
            return tree[path].encode()
        prefix = f"{path.rstrip('/')}/" if path else ""
        below = {name.removeprefix(prefix).partition("/") for name in tree if name.startswith(prefix)}
        return "\n".join(sorted({first + slash for first, slash, _ in below})).encode() if below else None

    def _answer(self, status: HTTPStatus, data: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
        with (self.folder / "requests").open("a") as log:
            log.write(f"{format % arguments}\n")


if __name__ == "__main__":
    Metadata.folder = Path(sys.argv[1])
    connection = socket.socket(fileno=0)
    Metadata(connection, ("guest", 0), None)  # type: ignore[arg-type]  # no server is behind it
