"""The Bakefile: what to bake, onto what base, into what artefact. YAML in, frozen and checked data out."""

from parbake.bakefile.aws import AwsSection, FastRestoreSection
from parbake.bakefile.bases import BaseChoice
from parbake.bakefile.file import Bakefile, advice, schema
from parbake.bakefile.loader import COPY_ROLES, ONLY_IMAGES, load, with_images
from parbake.bakefile.proof import RetentionSection
from parbake.bakefile.sections import Build, ImageEntry
from parbake.bakefile.values import store_address

__all__ = [
    "COPY_ROLES", "ONLY_IMAGES", "AwsSection", "Bakefile", "BaseChoice", "Build", "FastRestoreSection", "ImageEntry",
    "RetentionSection", "advice", "load", "schema", "store_address", "with_images",
]  # fmt: skip
