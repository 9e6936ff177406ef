"""Where images come from: registries (Docker, OCI, ECR), their mirrors, and OCI image layouts on disk."""

from pathlib import Path

from parbake.core.model import Image
from parbake.core.sources import LayerSource
from parbake.images.registry.client import Registry
from parbake.images.registry.layout import Layout
from parbake.images.registry.part import PartSource
from parbake.images.registry.retry import Patience

__all__ = ["Layout", "Patience", "Registry", "open_source"]


def open_source(registry: Registry, image: Image) -> LayerSource:
    """Return where the content of an image comes from: the layout that it names, else its registry."""
    source = Layout(Path(image.layout)).source(image) if image.layout else registry.source(image)
    return PartSource(image, source) if image.part_of else source
