"""The commands of a document, run by a shell, whose programs are functions of the test's own process.

So a document is followed on stand-ins that live in this process, such as moto's AWS:

    programs = {"parbake": parbake, "aws": lambda words: …}        # arguments in, exit code out; they print
    said = follow(ROOT / "docs/how-to/migrate.md", folder, programs, change=str)
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from threading import Thread

from parbake import cli
from standins import documents

type Command = Callable[[list[str]], int]
_CLIENT = Path(__file__).with_name("preloaded_program.py")
_MOST = 1 << 20  # bytes of a request: an environment and arguments
_LOOK = 0.05


def parbake(words: list[str]) -> int:
    """Run a command of parbake through its door."""
    return cli.run(words)


def follow(document: Path, folder: Path, programs: Mapping[str, Command], *, change: Callable[[str], str] = str) -> str:
    """Run a document's shell blocks in a folder; ``change`` edits each. Returns what they said, fails as they do."""
    bin_ = folder.parent / "bin"
    bin_.mkdir(exist_ok=True)
    said: list[str | BaseException] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(folder.parent / "here.sock"))
        listening.listen(8)
        listening.settimeout(_LOOK)
        for name in programs:
            script = f"{sys.executable} -I -S {_CLIENT} {listening.getsockname()} {name}"
            (bin_ / name).write_text(f'#!/bin/sh\nexec {script} "$@"\n')
            (bin_ / name).chmod(0o755)
        env = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}"}

        def run() -> None:
            try:
                said.append(documents.run(documents.read(document), folder, env, change=change))
            except BaseException as error:  # noqa: BLE001  # the test is to fail with it
                said.append(error)

        shell = Thread(target=run)
        shell.start()
        while shell.is_alive():
            _serve(listening, programs)
        shell.join()
    [outcome] = said
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _serve(listening: socket.socket, programs: Mapping[str, Command]) -> None:
    """Do what the next caller asks for, if there is one, where it is and to its streams."""
    try:
        caller, _ = listening.accept()
    except TimeoutError:
        return
    with caller, ExitStack() as stack:
        caller.settimeout(None)
        asked, streams, *_ = socket.recv_fds(caller, _MOST, 3)
        request = json.loads(asked)
        os.close(streams[0])
        out, err = (stack.enter_context(os.fdopen(number, "w")) for number in streams[1:])
        with chdir(request["folder"]), redirect_stdout(out), redirect_stderr(err):
            name, *words = request["arguments"]
            code = programs[name](words)
        for stream in (out, err):
            stream.flush()
        caller.send(bytes([code % 256]))
