"""What artefacts are verified on."""

from parbake.bakefile.sections import Section
from parbake.bakefile.values import File


class VerifySection(Section):
    """What an artefact is proven on before anybody gets it."""

    base: File | None = None
    """A disk image (raw or qcow2) of your nodes, relative to the Bakefile, for volumes: they are attached to it, and
    its own container runtime, configured as it is there, starts what was baked. It needs cloud-init. Default: parbake's
    default base."""
