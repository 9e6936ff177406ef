"""The parts of a node's user data that are parbake's, beside what its owner wrote there. Pure.

Facts: aws/karpenter-provider-aws, ``pkg/providers/amifamily/bootstrap`` (v0.32 to v1.14). User data that begins as MIME
is taken apart and joined with Karpenter's own; anything else is taken for a shell script or, on AL2023, for a
NodeConfig, so that a cloud-boothook must be a part of a MIME message. The family Custom is passed on as it is;
Bottlerocket takes TOML. EC2 takes 16 KiB, and only late versions compress what is larger.
"""

from __future__ import annotations

import email
import hashlib
import re
from collections.abc import Mapping

from parbake.aws.limits import USER_DATA_LIMIT
from parbake.core.errors import InputError
from parbake.core.yamltext import parse

BEYOND_REACH = ("Bottlerocket", "Windows2019", "Windows2022", "Windows2025")
"""Families whose user data is not a MIME message."""
ROOM = 3 << 10
"""What Karpenter and EKS add themselves, in bytes: the cluster's certificate, labels, the kubelet's settings."""
_HINT = "write it as MIME parts, or leave out parbake's: `mount: false`, `hydrate: false`"
NAMES = ("mount", "hydrate", "store")
"""What parbake's parts are for, in their order: they come before all others."""
KEEP_STORE = """\
apiVersion: node.eks.aws/v1alpha1
kind: NodeConfig
spec: {instance: {localStorage: {disabledMounts: [Containerd]}}}
"""
"""The part ``store``: nodeadm leaves containerd's store where it is, whatever becomes of the local disks."""
_HEAD = 'Content-Type: {kind}; charset="us-ascii"\nContent-Disposition: attachment; filename="{name}"\n'
_BOUNDARY = "==parbake=="
_KINDS = (
    ("#!", 'text/x-shellscript; charset="us-ascii"'),
    ("#cloud-config", 'text/cloud-config; charset="us-ascii"'),
    ("#cloud-boothook", 'text/cloud-boothook; charset="us-ascii"'),
    ("#include", 'text/x-include-url; charset="us-ascii"'),
)


def part_of(text: str, name: str) -> str:
    """Return one of parbake's parts of user data; empty where it is not there."""
    match = _part(name).search(text)
    return match["text"] if match else ""


def with_parts(text: str, parts: Mapping[str, str]) -> str:
    """Return user data with these of parbake's parts, by name, before all others; an empty one is taken out.

    All else stays as it is, letter by letter; taking the parts out again gives back the very text that was there before
    they came in. Raises InputError for user data of a kind that is not known.
    """
    wanted = {name: parts.get(name, part_of(text, name)) for name in NAMES}
    bare = text
    for name in NAMES:
        match = _part(name).search(bare)
        if match:
            bare = bare[: match.start()] + bare[match.end() :]
    if bare != text:
        bare = _unwrapped(bare)
    if not any(wanted.values()):
        return bare
    if not _is_mime(bare):
        bare = _wrapped(bare)
    boundary = email.message_from_string(bare.lstrip()).get_boundary()
    first = re.search(rf"^--{re.escape(boundary or '')}(?:--)?\s*$", bare, re.MULTILINE) if boundary else None
    if first is None:
        raise InputError("the node's user data begins as MIME, and has no parts", hint=_HINT)
    ours = (f"--{boundary}\n{_head(name)}\n{part}\n" for name, part in wanted.items() if part)
    return f"{bare[: first.start()]}{''.join(ours)}{bare[first.start() :]}"


def shown(text: str) -> list[str]:
    """Return user data as lines for people, with each of parbake's parts in one of them."""
    for name in NAMES:
        part = part_of(text, name)
        if part:
            digest = hashlib.sha256(part.encode()).hexdigest()
            text = text.replace(part, f"({name}, {len(part)} bytes, sha256 {digest[:12]})")
    return text.splitlines()


def too_large(text: str, room: int) -> list[str]:
    """Return what speaks against user data with parbake's parts: that EC2's 16 KiB leave no ``room`` (bytes)."""
    size = len(text.encode())
    there = " and ".join(name for name in NAMES if part_of(text, name))
    if not there or size <= USER_DATA_LIMIT - room:
        return []
    return [
        f"with the parts for {there} the user data has {size} bytes, and EC2 takes {USER_DATA_LIMIT - room} of them"
    ]


def _head(name: str) -> str:
    if name == "store":
        return _HEAD.format(kind="application/node.eks.aws", name="parbake-store.yaml")
    return _HEAD.format(kind="text/cloud-boothook", name=f"parbake-{name}.sh")


def _part(name: str) -> re.Pattern[str]:
    return re.compile(
        rf"^--(?P<boundary>[^\n]+)\n{re.escape(_head(name))}\n(?P<text>.*?)\n(?=--(?P=boundary)(?:--)?\s*$)",
        re.DOTALL | re.MULTILINE,
    )


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
        f"the node's user data has an unknown format: {text.lstrip()[:40]!r}",
        hint=_HINT,
    )
