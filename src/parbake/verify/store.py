"""Is an image in the runtime's store as a kubelet needs it: looked at through the runtime's own API, judged purely."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parbake.containerd import labels
from parbake.core.errors import BadContent, ContainerdError, InputError
from parbake.core.model import Descriptor, Image, Platform
from parbake.images.registry import strictjson

if TYPE_CHECKING:
    from parbake.containerd import Client, Cri


@dataclass(frozen=True, slots=True)
class Seen:
    """What the store holds under a name. ``target`` is None when there is no such name.

    ``manifest``, ``config`` and ``chain_id`` (the top layer's) are digests, empty as far as content is ``missing``
    (digests) or ``malformed`` (a reason); ``foreign`` names the platform when it is not the machine's.
    ``known`` and ``pinned`` are the answer of the CRI's ImageStatus, ``refusal`` its error.
    """

    reference: str
    target: Descriptor | None = None
    manifest: str = ""
    config: str = ""
    chain_id: str = ""
    missing: tuple[str, ...] = ()
    malformed: str = ""
    foreign: str = ""
    unpacked: bool = False
    known: bool = False
    pinned: bool = False
    refusal: str = ""


def judge(seen: Seen, expected: Image | None) -> tuple[str, ...]:
    """Return what is wrong with an image in the store, in plain words; ``expected`` None compares no digests. Pure."""
    if seen.target is None:
        return ("the runtime's store (namespace k8s.io) has no image of this name",)
    problems = []
    if expected is not None and seen.target.digest != expected.target.digest:
        problems.append(f"the name points to {seen.target.digest}, the plan says {expected.target.digest}")
    elif expected is not None and seen.manifest and seen.manifest != expected.manifest.digest:
        problems.append(f"its manifest is {seen.manifest}, the plan says {expected.manifest.digest}")
    problems += [f"its content {digest} is not in the store" for digest in seen.missing]
    if seen.malformed:
        problems.append(seen.malformed)
    if seen.foreign:
        problems.append(f"the image is for {seen.foreign}, which this machine does not run")
    if seen.chain_id and not seen.unpacked:
        problems.append(f"it is not unpacked: the overlayfs snapshotter has no snapshot {seen.chain_id}")
    if not seen.known:
        reason = f": {seen.refusal}" if seen.refusal else ""
        problems.append(f"kubelet would not find it (CRI ImageStatus){reason}")
    elif not seen.pinned:
        problems.append("it is not pinned: kubelet's image garbage collection may remove it")
    return tuple(problems)


def look(client: Client, cri: Cri, reference: str, *, platform: Platform, wanted: str = "") -> Seen:
    """Look up an image by its exact name; ``wanted`` is the manifest's digest to prefer in an index.

    Raises what the client raises for a runtime that does not answer.
    """
    record = client.images.get(reference)
    if record is None:
        return Seen(reference)
    try:
        status = cri.image_status(reference)
        refusal = ""
    except ContainerdError as error:
        status, refusal = None, error.message
    fields: dict[str, Any] = {
        "target": record.target,
        "known": status is not None,
        "pinned": status is not None and status.pinned,
        "refusal": refusal,
    }
    return Seen(reference, **fields, **_content(client, record.target.digest, platform, wanted))


def _content(client: Client, target: str, platform: Platform, wanted: str) -> dict[str, Any]:
    """Follow a name's target to the manifest, the config and the top snapshot."""
    found: dict[str, Any] = {}
    digest = target
    try:
        document = _read(client, digest)
        if "manifests" in document:
            digest = choose(document["manifests"], platform, wanted, client.content.exists)
            if not digest:
                return {**found, "malformed": f"its index has no manifest for {platform} whose content is there"}
            document = _read(client, digest)
        found["manifest"] = digest
        digest = str(document["config"]["digest"])
        found["config"] = digest
        config = _read(client, digest, strictjson.CONFIG)
        own = Platform.parse("/".join(filter(None, (config["os"], config["architecture"], config.get("variant")))))
        found["foreign"] = "" if own.architecture == platform.architecture and own.os == platform.os else str(own)
        chain = labels.chain_ids(config["rootfs"]["diff_ids"])
        found["chain_id"] = chain[-1] if chain else ""
        found["unpacked"] = not chain or client.snapshots.exists(chain[-1])
    except LookupError as error:
        missing = isinstance(error, _Absent)
        return {
            **found,
            **({"missing": (digest,)} if missing else {"malformed": f"its document {digest} lacks {error}"}),
        }
    except (ValueError, TypeError, AttributeError, RecursionError, InputError, BadContent) as error:
        return {**found, "malformed": f"its document {digest} is malformed: {error}"}
    return found


class _Absent(LookupError):
    """A document is not in the store."""


def _read(client: Client, digest: str, shape: strictjson.Shape = strictjson.DOCUMENT) -> dict[str, Any]:
    if not client.content.exists(digest):
        raise _Absent(digest)
    document: dict[str, Any] = strictjson.load(client.content.read(digest), shape)
    return document


def choose(entries: Sequence[Mapping[str, Any]], platform: Platform, wanted: str, exists: Callable[[str], bool]) -> str:
    """Return the digest of the manifest that the machine would run: the planned one, else the first that is there."""
    if wanted and any(entry.get("digest") == wanted for entry in entries):
        return wanted
    for entry in entries:
        words = entry.get("platform") or {}
        fits = (words.get("os"), words.get("architecture")) == (platform.os, platform.architecture)
        if fits and exists(str(entry["digest"])):
            return str(entry["digest"])
    return ""
