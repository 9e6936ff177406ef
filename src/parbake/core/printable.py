"""Words of others on the way to people: shown as what they are, and never obeyed by a terminal or a CI.

A tag, a media type, a registry's answer, a container's output may hold escape sequences (which move the cursor, write
to the clipboard or make links), control characters, marks that turn the direction of writing round, or what a CI takes
for a command to itself. Whatever is not a printable character is shown by its escape, as in Python and JSON.

Sources: ECMA-48 (control sequences); GitHub's runner, ActionCommand.cs (``::`` at the beginning of a line but for
white space, ``##[`` anywhere); Azure Pipelines' logging commands (``##vso[``); TeamCity's service messages
(``##teamcity[``).
"""

from __future__ import annotations

import json
import re
from typing import Any

# Colours and cursor movements of programs that take a log for a terminal: no information.
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_LEGACY_COMMAND = re.compile(r"##(?=[A-Za-z]*\[)")
_COMMAND = re.compile(r"^( *)(?=::)", re.MULTILINE)


def word(text: object) -> str:
    """Return a word of others for a sentence: on one line, whatever is in it. Pure."""
    return _escaped(str(text))


def lines(text: str) -> str:
    """Return text for people, which may quote others: its line breaks stay, and nothing else that does something. Pure.

    No line is a command to a CI: ``::`` at the beginning of a line gets a backslash before it, ``##[`` one inside.
    """
    if text.isascii() and text.isprintable() and "##" not in text and not text.lstrip().startswith("::"):
        return text  # as nearly all is
    plain = _CONTROL_SEQUENCE.sub("", text).replace("\r\n", "\n").expandtabs()
    shown = "\n".join(map(_escaped, plain.split("\n")))
    return _COMMAND.sub(r"\1\\", _LEGACY_COMMAND.sub(r"#\\#", shown))


def line(text: str) -> str:
    """Return text for people that is one line, whatever is in it. Pure."""
    return lines(word(text))


def dump(document: Any, *, indent: int | None = None) -> str:
    """Return a document as JSON, which escapes what does something in a terminal; it holds no command to a CI. Pure."""
    return json.dumps(document, indent=indent).replace("##", "#\\u0023")  # a # stands in strings alone


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def writable(text: str) -> str:
    """Return text that a file takes: JSON of others may hold halves of characters, which UTF-8 has not."""
    return text.encode(errors="replace").decode()


_LONGEST = 64 << 10  # characters


def bounded(text: object) -> object:
    """Return a text as one of at most 64 Ki characters that a record can hold; what is no text as it is."""
    return writable(text[:_LONGEST]) if isinstance(text, str) else text
