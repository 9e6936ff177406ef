"""TCP ports of this machine's loopback."""

from __future__ import annotations

import socket
from typing import Final

_HOST: Final = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a server could listen on a port of the loopback now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: connections that end do not count
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True
