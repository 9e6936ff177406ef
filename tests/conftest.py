"""What holds for every test."""

from __future__ import annotations

import signal

# Who starts the tests in the background may have these ignored, and programs inherit that: then nothing can be
# interrupted, and tests of interruptions would fail.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
