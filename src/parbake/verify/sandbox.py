"""parbake's own pause image, put into a store that is thrown away: for runtimes that came without any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parbake.containerd import labels
from parbake.core.model import Descriptor
from parbake.images import pause

if TYPE_CHECKING:
    from parbake.containerd import Client
    from parbake.core.model import Platform


def import_image(client: Client, folder: Path, name: str, platform: Platform) -> None:
    """Write the pause image for a platform into the store under ``name``; ``folder`` is for its layout."""
    folder = pause.layout(folder, platform)
    [entry] = json.loads((folder / "index.json").read_text())["manifests"]
    target = _descriptor(entry)
    manifest = json.loads(_blob(folder, target))
    with client.lease("parbake-verify"):
        for part in (manifest["config"], *manifest["layers"]):
            client.content.write(_descriptor(part), _blob(folder, _descriptor(part)))
        client.content.write(target, _blob(folder, target), labels.reference_labels(manifest))
        client.images.put(name, target, labels.PINNED)


def _descriptor(entry: dict[str, Any]) -> Descriptor:
    return Descriptor(media_type=entry["mediaType"], digest=entry["digest"], size=entry["size"])


def _blob(folder: Path, descriptor: Descriptor) -> bytes:
    return (folder / "blobs" / descriptor.digest.replace(":", "/")).read_bytes()
