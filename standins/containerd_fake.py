"""A gRPC server that answers like a containerd, or as badly as a test wants."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf.message import Message

Metadata = dict[str, str]
Unary = Callable[[bytes], Message]
Duplex = Callable[[Iterator[bytes]], Iterator[Message]]


class Abort(Exception):
    """End the call with a status."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(details)
        self.code = grpc.StatusCode[code]
        self.details = details


class FakeContainerd(grpc.GenericRpcHandler):
    """Serves ``unary`` and ``duplex`` (method path to function) on ``socket``; notes each call's metadata."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.unary: dict[str, Unary] = {}
        self.duplex: dict[str, Duplex] = {}
        self.calls: list[tuple[str, Metadata]] = []
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(4), handlers=[self])
        self._server.add_insecure_port(f"unix:{socket}")

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        with self._lock:
            self.calls.append((method, dict(handler_call_details.invocation_metadata)))
        if method in self.unary:
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: _answer(context, lambda: self.unary[method](request).SerializeToString())
            )
        if method in self.duplex:
            return grpc.stream_stream_rpc_method_handler(
                lambda requests, context: _stream(context, self.duplex[method](requests))
            )
        return None

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()


def _answer(context: grpc.ServicerContext, make: Callable[[], bytes]) -> bytes:
    try:
        return make()
    except Abort as abort:
        context.abort(abort.code, abort.details)


def _stream(context: grpc.ServicerContext, messages: Iterator[Message]) -> Iterator[bytes]:
    try:
        for message in messages:
            yield message.SerializeToString()
    except Abort as abort:
        context.abort(abort.code, abort.details)
