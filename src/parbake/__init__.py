"""parbake: bake container images into machine images and volumes ahead of time."""

__version__ = "0.1.0"
