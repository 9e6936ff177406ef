"""The identity of a store: folders of one path on two machines are two stores, and must not be taken for one."""

from __future__ import annotations

import os
import re

from parbake.core.errors import BadContent
from parbake.records.store.port import Store

_NAME = "identity"
_WORD = re.compile(rb"[0-9a-f]{16}\n")


def identity_of(store: Store, *, make: bool = False) -> str:
    """Return the word that names a store; empty where it has none yet, unless one is to be made.

    Raises BadContent, and what asking raises.
    """
    held = store.get(_NAME)
    if held is None and make:
        store.add(_NAME, f"{os.urandom(8).hex()}\n".encode())
        held = store.get(_NAME)
    if held is None:
        return ""
    if not _WORD.fullmatch(held.content):
        raise BadContent(f"{_NAME} in {store.url} is not a valid store identity", hint="remove it")
    return held.content.decode().strip()
