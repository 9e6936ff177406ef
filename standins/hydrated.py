"""What a node's user data brings of the hydrate program, read without running it (tests/unit/coldstart runs it)."""

from __future__ import annotations

import base64
import lzma


def brought(user_data: str) -> dict[str, str]:
    """Return the files that the hydrate part of user data writes, by name, however it is indented."""
    packed = "".join(user_data.partition('text = """')[2].partition('"""')[0].split())
    files = lzma.decompress(base64.b85decode(packed.translate(_BACK))).decode().split("\0")
    return {name: text for name, _, text in (file.partition(" ") for file in files)}


_BACK = str.maketrans(",./[]", "$%{}`")
