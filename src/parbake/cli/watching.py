"""What is shown again and again: on a terminal in its place, elsewhere as it changes, for programs a line each time."""

from __future__ import annotations

import shutil
import sys
from typing import Any, Self

from parbake.core import printable

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # another page, without a cursor; the one of before
_HOME, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"


class Screen:
    """Use with ``with``; a terminal looks afterwards as it did before."""

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json, self._terminal = as_json, sys.stdout.isatty() and not as_json
        self._shown = ""

    def __enter__(self) -> Self:
        if self._terminal:
            self._write(_ENTER)
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            self._write(_LEAVE)

    def show(self, document: Any, text: str) -> None:
        """Show how it is now."""
        if self._as_json:
            self._write(printable.dump(document) + "\n")
            return
        said = printable.lines(text)
        if self._terminal:
            size = shutil.get_terminal_size()
            lines = [line[: size.columns] + _REST_OF_LINE for line in said.splitlines()[: size.lines - 1]]
            self._write(_HOME + "\r\n".join(lines) + "\r\n" + _REST)
        elif said != self._shown:
            self._write(f"{said}\n\n")
        self._shown = said

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
