"""The Bakefile: what to bake, onto what base, into what artefact. YAML in, frozen and checked data out."""

from parbake.bakefile.file import Bakefile, advice, schema
from parbake.bakefile.loading import load
from parbake.bakefile.sections import BaseChoice, Build, ImageEntry

__all__ = ["Bakefile", "BaseChoice", "Build", "ImageEntry", "advice", "load", "schema"]
