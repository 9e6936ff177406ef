"""What parbake and its workers say to each other: small JSON messages over a socket, and bytes in shared memory.

Layers' compressed bytes lie in ``SLOTS`` slots of the shared memory, which are filled and freed in turns.
"""

from __future__ import annotations

import json
import mmap
import socket
import struct
import threading
import traceback
from collections.abc import Mapping
from typing import Any, Final

from parbake.core import errors
from parbake.core.errors import ParbakeError

SLOTS: Final = 4
SLOT: Final = 1 << 20
_LENGTH: Final = struct.Struct("<I")

type Message = Mapping[str, Any]
"""``is`` says what it is."""


class Wire:
    """One end of a socket. ``send`` from any thread, ``receive`` from one."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._file = end.makefile("rb")
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Send a message; raises OSError when the other end is gone."""
        data = json.dumps(message, separators=(",", ":")).encode()
        with self._lock:
            self._socket.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self) -> Message | None:
        """Return the next message, None when the other end is gone."""
        try:
            head = self._file.read(_LENGTH.size)
            if len(head) < _LENGTH.size:
                return None
            (size,) = _LENGTH.unpack(head)
            data = self._file.read(size)
        except OSError:
            return None
        found: dict[str, Any] | None = json.loads(data) if len(data) == size else None
        return found


def slots(memory: int) -> list[memoryview]:
    """Return the slots of the shared memory, which is an open file."""
    whole = memoryview(mmap.mmap(memory, SLOTS * SLOT))
    return [whole[at : at + SLOT] for at in range(0, SLOTS * SLOT, SLOT)]


def failure(error: BaseException) -> Message:
    """Return the message that an error makes."""
    found: dict[str, Any] = {"is": "failed", "trace": "".join(traceback.format_exception(error))}
    if isinstance(error, ParbakeError):
        return {**found, "error": type(error).__name__, "message": error.message, "hint": error.hint}
    if isinstance(error, OSError) and error.errno:
        return {**found, "errno": error.errno, "message": error.strerror}
    return found


def raised(message: Message) -> Exception:
    """Return the error that a message tells of; ``--debug`` shows where in the worker it happened."""
    if kind := message.get("error"):
        error: Exception = getattr(errors, kind, ParbakeError)(message["message"], hint=message["hint"])
    elif number := message.get("errno"):
        error = OSError(number, message["message"])
    else:
        error = RuntimeError("a worker process failed")
    error.add_note(f"In a worker process:\n{message['trace']}")
    return error
