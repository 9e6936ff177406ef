"""The parts of a node's user data that are parbake's, beside what its owner wrote there. Pure.

Facts: aws/karpenter-provider-aws, ``pkg/providers/amifamily/bootstrap`` (v0.32 to v1.14). User data that begins as MIME
is taken apart and joined with Karpenter's own; anything else is taken for a shell script or, on AL2023, for a
NodeConfig, so that a cloud-boothook must be a part of a MIME message. The family Custom is passed on as it is;
Bottlerocket takes TOML. EC2 takes 16 KiB, and only late versions compress what is larger.

Karpenter and nodeadm read by Go's rules (mime/multipart): the line end of a message's first boundary is that of all
its boundaries, and Terraform's cloudinit_config writes CRLF. cloud-init reads with Python's email, whatever ends the
lines, and takes for a message what has ``mime-version:`` in its first 4 KiB (cloudinit/user_data.py).
"""

from __future__ import annotations

import base64
import binascii
import email
import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress

from parbake.aws.limits import USER_DATA_LIMIT
from parbake.core.errors import InputError
from parbake.core.yamltext import parse

ROOM = 3 << 10
"""What Karpenter and EKS add themselves, in bytes: the cluster's certificate, labels, the kubelet's settings."""
_HINT = "write it as MIME parts, or leave out parbake's: `mount: false`, `remedy: nothing`"
NAMES = ("mount", "hydrate", "store")
"""What parbake's parts are for, in their order: they come before all others."""
KEEP_STORE = """\
apiVersion: node.eks.aws/v1alpha1
kind: NodeConfig
spec: {instance: {localStorage: {disabledMounts: [Containerd]}}}
"""
"""The part ``store``: nodeadm leaves containerd's store where it is, whatever becomes of the local disks."""
NODE_CONFIG = "application/node.eks.aws"
"""The media type of nodeadm's NodeConfigs."""
_HEAD = ('Content-Type: {kind}; charset="us-ascii"', 'Content-Disposition: attachment; filename="{name}"', "")
_LARGEST = 1 << 20  # bytes of a part when it is unpacked
_SEEN_BY_CLOUD_INIT = 4096
_BOUNDARY = "==parbake=="
_BARE = r"[!#$%&'*+\-.^_`{|}~0-9A-Za-z]+"  # RFC 2045, section 5.1: what needs no quotes
_KARPENTERS = ("MIME-Version:", "Content-Type:")
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
    first = next(_boundaries(bare), None)
    if first is None:
        raise InputError("the node's user data begins as MIME, and has no parts", hint=_HINT)
    end = first["end"] or "\n"
    ours = (end.join((f"--{first['name']}", *_head(name), f"{part}{end}")) for name, part in wanted.items() if part)
    return f"{bare[: first.start()]}{''.join(ours)}{bare[first.start() :]}"


def bodies(text: str) -> list[tuple[str, str]]:
    """Return the parts of user data as nodeadm unpacks them: media type (empty: no MIME message) and text. Pure."""
    if not _is_mime(text):
        return [("", text)]
    message = email.message_from_bytes(text.lstrip().encode())
    leaves = [part for part in message.walk() if not part.is_multipart()]
    return [(part.get_content_type(), _unpacked(part.get_payload(decode=True))) for part in leaves]


def unreadable(text: str, *, by_karpenter: bool = False) -> list[str]:
    """Return why nodes that get this user data do not take it, whoever wrote it. Pure.

    ``by_karpenter``: it is Karpenter that reads it first, and joins it with its own. Else cloud-init does.
    """
    found = _unreadable_message(text, by_karpenter=by_karpenter) if _is_mime(text) else []
    for kind, body in bodies(text):
        if kind == NODE_CONFIG or (not kind and _is_config(body)):
            parsed = parse(body)
            if parsed.syntax_error and not parsed.documents:  # nodeadm reads the first document alone
                line, says = parsed.syntax_error.line, parsed.syntax_error.message
                found.append(f"nodeadm does not read the NodeConfig, so that no node joins: line {line}: {says}")
    return found


def _unreadable_message(text: str, *, by_karpenter: bool) -> list[str]:
    if text != text.lstrip():
        return ["the user data begins with an empty line, so that nodeadm and Karpenter find no MIME header: remove it"]
    boundaries = list(_boundaries(text))
    quoted = re.search(r'(?i)\bboundary="', text)
    if boundaries and not quoted and not re.fullmatch(_BARE, boundaries[0]["name"]):
        return [f'nodeadm and Karpenter take such a boundary in quotes alone: write boundary="{boundaries[0]["name"]}"']
    found = []
    if len({each["end"] for each in boundaries if each["end"]}) > 1:
        found.append(
            "some MIME boundaries of the user data end with CRLF and some with LF, and nodeadm and Karpenter read one "
            "line end in a message: write all of them alike"
        )
    elif boundaries and not any(each["last"] for each in boundaries):
        found.append(
            f"the user data lacks its last boundary, --{boundaries[0]['name']}--, and nodeadm reads no part of it"
        )
    if by_karpenter and not text.startswith(_KARPENTERS):
        found.append(
            "Karpenter knows MIME by a first line with `MIME-Version:` or `Content-Type:`, in these letters; it takes "
            "the user data for a script, of which nothing runs"
        )
    if not by_karpenter and "mime-version:" not in text[:_SEEN_BY_CLOUD_INIT].lower():
        found.append("cloud-init takes the user data for no MIME message: add the header `MIME-Version: 1.0`")
    return found


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


def _head(name: str) -> tuple[str, ...]:
    kind, file = "text/cloud-boothook", f"parbake-{name}.sh"
    if name == "store":
        kind, file = NODE_CONFIG, "parbake-store.yaml"
    return tuple(line.format(kind=kind, name=file) for line in _HEAD)


def _part(name: str) -> re.Pattern[str]:
    """Find a part of ours with the line end that its message had; what is in it ends its lines with LF."""
    head = "".join(f"{re.escape(line)}(?P=end)" for line in _head(name))
    return re.compile(
        rf"^--(?P<boundary>[^\r\n]+)(?P<end>\r?\n){head}(?P<text>.*?)(?P=end)"
        r"(?=--(?P=boundary)(?:--)?[ \t]*\r?$)",
        re.DOTALL | re.MULTILINE,
    )


def _is_mime(text: str) -> bool:
    return text.lstrip()[:13].lower() in {"mime-version:", "content-type:"}


def _boundaries(text: str) -> Iterator[re.Match[str]]:
    """Yield the boundaries of a message in their order: ``name``, whether it is the ``last``, and its line ``end``."""
    name = email.message_from_string(text.lstrip()).get_boundary()
    if name:
        pattern = rf"^--(?P<name>{re.escape(name)})(?P<last>--)?[ \t]*(?P<end>\r?\n|\Z)"
        yield from re.finditer(pattern, text, re.MULTILINE)


def _is_config(text: str) -> bool:
    return "NodeConfig" in text and not text.lstrip().startswith(("#!", "#cloud-", "#include"))


def _unpacked(payload: object) -> str:
    """Undo base64 and gzip of a part, which nodeadm knows by their looks."""
    data = payload if isinstance(payload, bytes) else b""
    with suppress(binascii.Error):
        data = base64.b64decode(data.replace(b"\r", b"").replace(b"\n", b""), validate=True)
    if data.startswith(b"\x1f\x8b"):
        with suppress(zlib.error):
            data = zlib.decompressobj(31).decompress(data, _LARGEST)
    return data.decode(errors="replace")


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
    if _is_config(text) and all(isinstance(each.data, dict) for each in parse(text).documents[:1]):
        return NODE_CONFIG
    raise InputError(
        f"the node's user data has an unknown format: {text.lstrip()[:40]!r}",
        hint=_HINT,
    )
