"""Asks the server of `preloaded` for a command of parbake: ``preloaded_program.py SOCKET ARGUMENTS...``.

It starts for each command: what it imports is built into Python, or is small.
"""

import _socket
import array
import json
import os
import sys

umask = os.umask(0)
os.umask(umask)
request = {
    "arguments": sys.argv[2:],
    "environment": dict(os.environ),
    "folder": os.getcwd(),  # noqa: PTH109
    "umask": umask,
}
server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
server.connect(sys.argv[1])
streams = array.array("i", [0, 1, 2])
server.sendmsg([json.dumps(request).encode()], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
answer = server.recv(1)
sys.exit(answer[0] if answer else "the server of copies has ended")
