"""What tests use where the real thing costs money, has no place on a machine that tests, or will not fail."""

import os
from typing import Final

PLAIN: Final = "PARBAKE_TESTS_PLAIN" in os.environ
"""Whether programs start as users start them (``make test-plain``), and not as copies of what has loaded already."""
