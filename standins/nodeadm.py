"""Reads user data as nodeadm of EKS's AMIs does: by the rules of Go's packages net/mail, mime and mime/multipart.

Written from RFC 2045 and 2046 and from what nodeadm (July 2026) answered to 24 inputs in three forms; the test beside
compares it with those answers. What it refuses, it refuses in nodeadm's words as far as they are Go's.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

NODE_CONFIG = "application/node.eks.aws"
_TOKEN = r"[!#$%&'*+\-.^_`{|}~0-9A-Za-z]+"
_PARAMETER = re.compile(rf';\s*(?P<name>{_TOKEN})=(?:"(?P<quoted>(?:[^"\\\r\n]|\\.)*)"|(?P<bare>{_TOKEN}))\s*')


class Refused(Exception):
    """Go does not read it: the node does not join."""


@dataclass(frozen=True)
class Part:
    """A part of a message: its headers by their names in small letters, and its content."""

    headers: Mapping[str, str]
    content: bytes


def node_config(user_data: bytes) -> dict[str, Any]:
    """Return the NodeConfig that nodeadm makes of user data; raises Refused."""
    user_data = _decoded(user_data)
    try:
        message = parts(user_data)
    except _NoMessage:
        return _merged({}, _config(user_data))
    found: list[dict[str, Any]] = []
    for part in message:
        kind = part.headers.get("content-type", "")
        if kind and media_type(kind)[0] == NODE_CONFIG:
            found.append(_config(_decoded(part.content)))
    if not found:
        raise Refused("could not find NodeConfig within UserData")
    merged: dict[str, Any] = {}
    for each in found:
        merged = _merged(merged, each)
    return merged


def karpenter_refuses(user_data: str) -> str:
    """Return why Karpenter makes no launch template of a node class with this user data; empty: it does."""
    if not user_data.strip().startswith(("MIME-Version:", "Content-Type:")):
        return ""
    try:
        list(parts(user_data.encode()))
    except Refused as error:
        missing = "archive doesn't have Content-Type header, " if isinstance(error, _NoMessage) else "parsing content, "
        return f"creating launch template, parsing custom UserData, {missing}{error}"
    return ""


class _NoMessage(Refused):
    """It is no multipart message."""


def parts(data: bytes) -> Iterator[Part]:
    """Yield the parts of a multipart message; raises Refused where Go's reader stops."""
    headers, body = _headers(data, _NoMessage)
    try:
        kind, parameters = media_type(headers.get("content-type", ""))
    except Refused as error:
        raise _NoMessage(str(error)) from error
    if not kind.startswith("multipart/"):
        raise _NoMessage("MIME type is not multipart")
    return _parts(body, b"--" + parameters.get("boundary", "").encode())


def _parts(body: bytes, dashed: bytes) -> Iterator[Part]:
    """One line end for the whole message: the one that ends the first boundary."""
    end, first, separated = b"\r\n", True, False
    while True:
        line, newline, rest = body.partition(b"\n")
        line += newline
        after = line[len(dashed) :].lstrip(b" \t") if line.startswith(dashed) else None
        if first and after == b"\n":
            end = b"\n"
        if _is_last(line, dashed, end):
            return
        if not newline:
            raise Refused("multipart: NextPart: EOF")
        if after == end:
            first = separated = False
            headers, content = _headers(rest, Refused)
            at = _end_of_part(content, dashed, end)
            yield Part(headers, content[:at])
            body = content[at:]
            continue
        if not first:
            _need_separator(line, end, separated=separated)
            separated = True
        body = rest


def _need_separator(line: bytes, end: bytes, *, separated: bool) -> None:
    """Between a part and the next boundary stands one line end."""
    said = json.dumps(line.decode())
    if separated:
        raise Refused(f"multipart: expecting a new Part; got line {said}")
    if line != end:
        raise Refused(f"multipart: unexpected line in Next(): {said}")


def _is_last(line: bytes, dashed: bytes, end: bytes) -> bool:
    return line.startswith(dashed + b"--") and line[len(dashed) + 2 :].lstrip(b" \t") in {b"", end}


def _end_of_part(content: bytes, dashed: bytes, end: bytes) -> int:
    """Return where a part's content ends: at a boundary that stands first, or after a line end of the message's."""
    boundary = re.compile(rb"(?:\A|" + end + rb")" + re.escape(dashed) + rb"(?=[ \t\r\n]|--|\Z)")
    match = boundary.search(content)
    if match is None:
        raise Refused("multipart: NextPart: unexpected EOF")
    return match.start()


def _headers(data: bytes, error: type[Refused]) -> tuple[dict[str, str], bytes]:
    """Read headers up to an empty line, whatever ends the lines, as net/textproto does."""
    found: dict[str, str] = {}
    name = ""
    while True:
        line, newline, data = data.partition(b"\n")
        text = line.removesuffix(b"\r").decode(errors="replace")
        if not text.strip():
            return found, data
        if text[0] in " \t":
            if not name:
                raise error(f"malformed MIME header initial line: {text!r}")
            found[name] += " " + text.strip()
        else:
            name, colon, value = text.partition(":")
            if not colon or not re.fullmatch(_TOKEN, name):
                raise error(f"malformed MIME header line: {text}")
            name = name.lower()
            found.setdefault(name, value.strip())
        if not newline:
            raise error("EOF")


def media_type(text: str) -> tuple[str, dict[str, str]]:
    """Read a Content-Type as Go's ``mime.ParseMediaType``: what is no token must stand in quotes."""
    kind, _, _ = text.partition(";")
    found: dict[str, str] = {}
    if not kind.strip():
        raise Refused("mime: no media type")
    if not re.fullmatch(rf"{_TOKEN}(?:/{_TOKEN})?", kind.strip()):
        raise Refused("mime: expected slash in media type")
    at = len(kind)
    while at < len(text):
        match = _PARAMETER.match(text, at)
        if match is None:
            if text[at:].strip() == ";":
                break
            raise Refused("mime: invalid media parameter")
        if match["name"].lower() in found:
            raise Refused("mime: duplicate parameter name")
        quoted = match["quoted"]
        found[match["name"].lower()] = match["bare"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        at = match.end()
    return kind.strip().lower(), found


def _decoded(data: bytes) -> bytes:
    """Undo base64 of the whole, and gzip, where it is that."""
    with suppress(binascii.Error):
        data = base64.b64decode(re.sub(rb"[\r\n]", b"", data), validate=True)
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def _config(data: bytes) -> dict[str, Any]:
    """Read the first document of a text, as sigs.k8s.io/yaml does."""
    failed = "failed to decode node config, "
    yaml = YAML(typ="safe", pure=True)
    try:
        found = next(iter(yaml.load_all(data.decode())), None)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise Refused(f"{failed}yaml: line {line}: {error.problem}") from error
    except YAMLError as error:
        raise Refused(f"{failed}yaml: {error}") from error
    if found is not None and not isinstance(found, dict):
        raise Refused(f"{failed}couldn't get version/kind; json parse error: json: cannot unmarshal")
    if not found or not found.get("kind"):
        raise Refused(f"{failed}Object 'Kind' is missing in {json.dumps(data.decode())}")
    if (found.get("apiVersion"), found["kind"]) != ("node.eks.aws/v1alpha1", "NodeConfig"):
        raise Refused(f'{failed}no kind "{found["kind"]}" is registered')
    return dict(found)


def _merged(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The later one wins where it says something."""
    found = dict(before)
    for key, value in after.items():
        old = found.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        if value not in (None, "", [], {}):
            found[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return found
