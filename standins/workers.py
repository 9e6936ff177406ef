"""Workers that are threads of this process: the same code and the same messages, without a start of Python for each."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import override

from parbake.builders.workers.pool import Workers
from parbake.builders.workers.wire import Wire
from parbake.builders.workers.worker import Worker
from parbake.core.run import Process


class ThreadWorkers(Workers):
    """What they are patched with (buffers' sizes) holds in these workers too."""

    def __init__(self, count: int = 1) -> None:
        super().__init__(Path(os.devnull), count)

    @override
    @contextmanager
    def _process(self, files: tuple[int, int]) -> Iterator[Process]:
        with socket.socket(fileno=os.dup(files[0])) as end:
            worker = Worker(Wire(end), files[1])
            threads = [
                threading.Thread(target=worker.listen, args=(lambda: None,)),
                threading.Thread(target=worker.work),
            ]
            for thread in threads:
                thread.start()
            yield Process([], log=Path(os.devnull))
            for thread in threads:
                thread.join()
