"""moto's EC2 of this process for programs beside it: passes their HTTP requests on, and the answers back.

    with lean.mock_aws(), Endpoint("eu-west-1") as endpoint: run(["packer", …, f"custom_endpoint_ec2={endpoint.url}"])

Unlike moto's own server it needs no further library, and tests ask the same memory with boto3. Instances have the
address 127.0.0.1, so that whoever asks for one connects to what the test started there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Self, override
from urllib.parse import parse_qs

import requests

_PUBLIC_ADDRESS = re.compile(rb"<ipAddress>[^<]*</ipAddress>")


class Endpoint:
    """Serves one region of EC2; ``calls`` are the actions and parameters, ``after`` is told of each answered one."""

    def __init__(self, region: str, after: Callable[[str, dict[str, str]], None] = lambda *_: None) -> None:
        self.calls: list[tuple[str, dict[str, str]]] = []
        self._after = after
        self._real = f"https://ec2.{region}.amazonaws.com/"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def named(self, action: str) -> list[dict[str, str]]:
        """Return the parameters of each call of an action."""
        return [parameters for called, parameters in self.calls if called == action]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        here = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                parameters = {name: values[0] for name, values in parse_qs(body.decode()).items()}
                passed = {name: self.headers[name] for name in ("Content-Type", "Authorization", "X-Amz-Date")}
                answer = requests.post(here._real, data=body, headers=passed, timeout=60)
                content = _PUBLIC_ADDRESS.sub(b"<ipAddress>127.0.0.1</ipAddress>", answer.content)
                here.calls.append((parameters["Action"], parameters))
                if answer.ok:
                    here._after(parameters["Action"], parameters)
                self.send_response(answer.status_code)
                self.send_header("Content-Type", "text/xml")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            @override
            def log_message(self, *_: object) -> None:
                pass

        return Handler
