"""Images that a test has put into a store itself, as a plan describes them."""

from __future__ import annotations

from parbake.containerd.labels import chain_ids
from parbake.core.model import Image, Layer, Platform, Startup
from standins.containerd_support import Made


def described(made: Made, reference: str, startup: Startup | None = None) -> Image:
    """Return the image of a plan that is in a store under this name."""
    chain = chain_ids(made.diff_ids)
    layers = tuple(
        Layer(media_type=layer.media_type, digest=layer.digest, size=layer.size, diff_id=diff_id, chain_id=chain_id)
        for layer, diff_id, chain_id in zip(made.layers, made.diff_ids, chain, strict=True)
    )
    return Image(
        reference=reference,
        platform=Platform.host(),
        target=made.manifest,
        manifest=made.manifest,
        config=made.config,
        layers=layers,
        startup=startup,
    )


def shell(script: str, **more: object) -> Startup:
    """Return how a start runs a script."""
    return Startup.model_validate({"command": ("/bin/sh", "-c"), "args": (script,), **more})
