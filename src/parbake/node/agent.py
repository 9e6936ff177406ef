"""The guest's end of a verification: does what the host asks over a serial port, one JSON object a line.

A request is ``{"request", "op", ...}`` and gets ``{"request", "result" or "error"}``; the first line out says hello.
``{"stream", "data" or "end"}`` lines carry the bytes (base64) of the connections that ``connect`` opened. The port is
virtio-serial, found by its name, or the second serial line. Python 3.9 or later, standard library only.
"""

import base64
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tty
from contextlib import closing, suppress
from pathlib import Path

NAME = "dev.parbake.agent"
CHUNK = 1 << 16
ADD_ENTROPY, RESEED = 0x40085203, 0x5207  # RNDADDENTROPY and RNDRESEEDCRNG of random(4)
POLL, SHARE = 0.005, 4  # between two attempts of a wait: seconds, or more: times what the last cost (in emulation)


def now():
    """Return the two clocks: wall (nanoseconds, as in container logs) and monotonic (seconds)."""
    return {"wall": time.time_ns(), "monotonic": time.monotonic()}


def run(argv, timeout=60.0, limit=CHUNK, stdin=""):
    """Run a program in its own session; return its code (None: stopped by the time limit) and the end of its output."""
    pipe, late = subprocess.PIPE, False
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(argv, stdin=pipe, stdout=output, stderr=output, start_new_session=True)
        try:
            process.communicate(base64.b64decode(stdin), timeout)
        except subprocess.TimeoutExpired:
            late = True
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        output.seek(max(0, output.seek(0, os.SEEK_END) - limit))
        return {"code": None if late else process.returncode, "output": output.read().decode(errors="replace")}


def read(path, offset=0, limit=CHUNK):
    """Return up to ``limit`` bytes of a file from ``offset``."""
    with Path(path).open("rb", buffering=0) as file:
        file.seek(offset)
        return {"data": base64.b64encode(file.read(limit)).decode()}


def attempt(what, path, port, timeout):
    """Connect to a Unix socket or a port of this machine, or GET a path of it; raises OSError or HTTPException."""
    if what == "unix":
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
    elif what == "tcp":
        socket.create_connection(("localhost", port), timeout=timeout).close()
    else:
        import http.client  # half a second of a boot in emulation, for those alone who ask

        with closing(http.client.HTTPConnection("localhost", port, timeout=timeout)) as client:
            client.request("GET", path)
            status = client.getresponse().status
            if not 200 <= status <= 399:
                raise OSError(f"HTTP status {status}")


def wait(what, timeout=2.0, path="/", port=0):
    """Attempt every few milliseconds until it works, for ``timeout`` seconds at most; say when that was."""
    end = time.monotonic() + timeout
    while True:
        spent = time.thread_time()
        try:
            attempt(what, path, port, max(timeout, POLL))
            return {"up": True, **now()}
        except Exception as error:  # noqa: BLE001 - HTTP's own are known once somebody asks by HTTP
            if time.monotonic() > end:
                return {"up": False, "why": str(error) or type(error).__name__, **now()}
        time.sleep(max(POLL, SHARE * (time.thread_time() - spent)))


def resume(wall, seed):
    """Set the clock, and make the kernel's random numbers new: a machine that is resumed has them from another run."""
    time.clock_settime_ns(time.CLOCK_REALTIME, wall)
    data = base64.b64decode(seed)
    with Path("/dev/urandom").open("wb") as pool:
        fcntl.ioctl(pool, ADD_ENTROPY, struct.pack("ii", 8 * len(data), len(data)) + data)
        fcntl.ioctl(pool, RESEED)
    return now()


class Agent:
    """Serves one port until it ends."""

    def __init__(self, port):
        self.port, self.lock, self.streams = port, threading.Lock(), {}
        functions = (run, read, wait, now, resume, self.connect)
        self.operations = {function.__name__: function for function in functions}

    def send(self, **message):
        """Write one line, whole; where the port has ended nobody is there to hear it."""
        data = json.dumps(message).encode() + b"\n"
        with self.lock, suppress(OSError):
            while data:
                data = data[os.write(self.port, data) :]

    def answer(self, request, op, **arguments):
        """Do one request and report its result or its error."""
        try:
            self.send(request=request, result=self.operations[op](**arguments))
        except Exception as error:  # noqa: BLE001 - whatever it is, the host must hear of it
            self.send(request=request, error=f"{type(error).__name__}: {error}")

    def connect(self, stream, path):
        """Open a connection to a Unix socket; its bytes travel as lines of this stream."""
        client = self.streams[stream] = socket.socket(socket.AF_UNIX)
        client.connect(path)
        threading.Thread(target=self.pump, args=(stream, client), daemon=True).start()

    def pump(self, stream, client):
        """Send what arrives on a connection to the host; a broken connection is an end."""
        with suppress(OSError), client:
            for data in iter(lambda: client.recv(CHUNK), b""):
                self.send(stream=stream, data=base64.b64encode(data).decode())
        self.send(stream=stream, end=True)

    def forward(self, stream, data="", end=False):
        """Hand bytes from the host to a connection; one that broke has told the host so already."""
        with suppress(KeyError, OSError):
            if end:
                self.streams.pop(stream).shutdown(socket.SHUT_RDWR)
            else:
                self.streams[stream].sendall(base64.b64decode(data))

    def serve(self):
        """Say hello, then serve requests, each in its own thread, until the port ends."""
        self.send(hello=True, **now())
        rest = b""
        while data := os.read(self.port, CHUNK):
            *lines, rest = (rest + data).split(b"\n")
            for message in map(json.loads, lines):
                if "op" in message:
                    threading.Thread(target=self.answer, kwargs=message, daemon=True).start()
                else:
                    self.forward(**message)


def find_port():
    """Return the path of the host's port."""
    named = (path for path in Path("/sys/class/virtio-ports").glob("*/name") if path.read_text().strip() == NAME)
    return next((f"/dev/{path.parent.name}" for path in named), "/dev/ttyS1")


if __name__ == "__main__":
    port = os.open(sys.argv[1] if sys.argv[1:] else find_port(), os.O_RDWR | os.O_NOCTTY)
    if os.isatty(port):
        tty.setraw(port)
    Agent(port).serve()
