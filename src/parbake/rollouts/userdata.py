"""A part of a node class's user data that is parbake's, beside what its owner wrote there. Pure.

Facts: aws/karpenter-provider-aws, ``pkg/providers/amifamily/bootstrap`` (v0.32 to v1.14). User data that begins as MIME
is taken apart and joined with Karpenter's own; anything else is taken for a shell script or, on AL2023, for a
NodeConfig, so that a cloud-boothook must be a part of a MIME message. The family Custom is passed on as it is;
Bottlerocket takes TOML. EC2 takes 16 KiB, and only late versions compress what is larger.
"""

from __future__ import annotations

import email
import hashlib
import re

from parbake.core.errors import InputError
from parbake.core.yamltext import parse

BEYOND_REACH = ("Bottlerocket", "Windows2019", "Windows2022", "Windows2025")
"""Families whose user data is no MIME message."""
ROOM_FOR_KARPENTER = 3 << 10
"""What Karpenter adds itself, in bytes: the cluster's certificate, labels, the kubelet's settings."""
_NAME = "parbake-hydrate.sh"
_HEAD = f'Content-Type: text/cloud-boothook; charset="us-ascii"\nContent-Disposition: attachment; filename="{_NAME}"\n'
_BOUNDARY = "==parbake=="
_PART = re.compile(
    rf"^--(?P<boundary>[^\n]+)\n{re.escape(_HEAD)}\n(?P<text>.*?)\n(?=--(?P=boundary)(?:--)?\s*$)",
    re.DOTALL | re.MULTILINE,
)
_KINDS = (
    ("#!", 'text/x-shellscript; charset="us-ascii"'),
    ("#cloud-config", 'text/cloud-config; charset="us-ascii"'),
    ("#cloud-boothook", 'text/cloud-boothook; charset="us-ascii"'),
    ("#include", 'text/x-include-url; charset="us-ascii"'),
)


def part_of(text: str) -> str:
    """Return parbake's part of user data; empty where there is none."""
    match = _PART.search(text)
    return match["text"] if match else ""


def with_part(text: str, part: str) -> str:
    """Return user data with this as parbake's part, the first one; an empty part takes it out.

    All else stays as it is, letter by letter; taking the part out again gives back the very text that was there before
    it came in. Raises InputError for user data of a kind that is not known.
    """
    match = _PART.search(text)
    if match:
        text = _unwrapped(text[: match.start()] + text[match.end() :])
    if not part:
        return text
    if not _is_mime(text):
        text = _wrapped(text)
    boundary = email.message_from_string(text.lstrip()).get_boundary()
    first = re.search(rf"^--{re.escape(boundary or '')}(?:--)?\s*$", text, re.MULTILINE) if boundary else None
    if first is None:
        raise InputError(
            "the node class's user data begins as MIME, and has no parts", hint="correct it, or remove `hydrate`"
        )
    return f"{text[: first.start()]}--{boundary}\n{_HEAD}\n{part}\n{text[first.start() :]}"


def shown(text: str) -> list[str]:
    """Return user data as lines for people, with parbake's part in one of them."""
    part = part_of(text)
    if not part:
        return text.splitlines()
    digest = hashlib.sha256(part.encode()).hexdigest()
    return text.replace(part, f"(hydrate, {len(part)} bytes, sha256 {digest[:12]})").splitlines()


def _is_mime(text: str) -> bool:
    return text.lstrip().startswith(("MIME-Version:", "Content-Type:"))


def _wrapped(text: str) -> str:
    head = f'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="{_BOUNDARY}"\n\n'
    body = f"--{_BOUNDARY}\nContent-Type: {_kind(text)}\n\n{text}\n" if text else ""
    return f"{head}{body}--{_BOUNDARY}--\n"


def _unwrapped(text: str) -> str:
    """Undo ``_wrapped``; what was MIME before stays."""
    begin = re.escape(_wrapped("").partition(f"--{_BOUNDARY}")[0])
    match = re.fullmatch(
        rf"{begin}(?:--{_BOUNDARY}\nContent-Type: [^\n]+\n\n(?P<text>.*)\n)?--{_BOUNDARY}--\n", text, re.DOTALL
    )
    return (match["text"] or "") if match else text


def _kind(text: str) -> str:
    for sign, kind in _KINDS:
        if text.lstrip().startswith(sign):
            return kind
    if "NodeConfig" in text and all(isinstance(each.data, dict) for each in parse(text).documents):
        return "application/node.eks.aws"
    raise InputError(
        f"the node class's user data is of no known kind: {text.lstrip()[:40]!r}",
        hint="write it as MIME parts, or remove `hydrate`",
    )
