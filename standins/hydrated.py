"""What a node's user data brings of the hydrate program, read without running it (tests/unit/coldstart runs it)."""

from __future__ import annotations

import base64
import json
import lzma


def brought(user_data: str) -> dict[str, str]:
    """Return the files that the hydrate part of user data writes, by name, however it is indented."""
    packed = "".join(user_data.partition('text = """')[2].partition('"""')[0].split())
    found: dict[str, str] = json.loads(lzma.decompress(base64.b85decode(packed.translate(_BACK))))
    return found


_BACK = str.maketrans(",./[]", "$%{}`")
