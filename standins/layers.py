"""Layers for the engine, made of tar bytes."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from parbake.core.model import Layer
from parbake.images.layers import FolderSink, Unpacked, complete_folder, unpack

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
PLAIN = "application/vnd.oci.image.layer.v1.tar"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def describe(raw: bytes, packed: bytes | None = None, *, media_type: str = PLAIN, bottom: bool = True) -> Layer:
    """Return the layer whose tar is ``raw`` and which travels as ``packed``."""
    packed = raw if packed is None else packed
    diff_id = digest(raw)
    return Layer(
        media_type=media_type,
        digest=digest(packed),
        size=len(packed),
        diff_id=diff_id,
        chain_id=diff_id if bottom else digest(b"above" + raw),
    )


def put(target: Path, raw: bytes, *, bottom: bool = True, bound: int = 1 << 30) -> Unpacked:
    """Unpack plain tar bytes into a new folder."""
    target.mkdir(exist_ok=True)
    layer = describe(raw, bottom=bottom)
    return unpack(io.BytesIO(raw), layer, FolderSink(target), bound=bound, progress=lambda _: None)


def stack(folder: Path, *layers: bytes) -> list[Path]:
    """Unpack and settle a chain of layers, the bottom one first; return their folders in that order."""
    done: list[Path] = []
    for number, raw in enumerate(layers):
        target = folder / f"layer{number}"
        complete_folder(target, put(target, raw, bottom=number == 0), done[::-1])
        done.append(target)
    return done
