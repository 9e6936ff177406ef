"""Run parbake and let it die by SIGKILL, with its process group, right before a certain system call.

    python killer.py os.rename /artefacts/x.raw.json bake --no-verify

The first two arguments are a Python audit event (docs.python.org, "Audit events table") and how one of its paths ends.
``os.rename:2`` is the second such event.
"""

from __future__ import annotations

import os
import signal
import sys

from parbake.__main__ import main

event, _, nth = sys.argv[1].partition(":")
end, left = sys.argv[2], [int(nth or 1)]


def watch(name: str, arguments: tuple[object, ...]) -> None:
    # A name that is relative to an opened folder stands alone.
    paths = (f"/{os.fsdecode(word)}" for word in arguments if isinstance(word, str | bytes))
    if name == event and any(path.endswith(end) for path in paths):
        left[0] -= 1
        if left[0] == 0:
            os.killpg(0, signal.SIGKILL)


sys.argv[1:] = sys.argv[3:]
sys.addaudithook(watch)
main()
