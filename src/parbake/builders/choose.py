"""Which builder a Bakefile means. Those for clouds load only when they are asked for."""

from __future__ import annotations

from parbake.bakefile import Bakefile
from parbake.builders import Builder
from parbake.errors import InputError


def builder_of(bakefile: Bakefile, *, fresh: bool = False) -> Builder:
    """Return the builder; ``fresh`` (bake what exists already) is for those that work in a cloud."""
    match bakefile.builder:
        case "local":
            from parbake.builders.local import LocalBuilder

            return LocalBuilder()
        case "ebs":
            from parbake.builders.ebs import EbsBuilder

            return EbsBuilder(bakefile.aws, bakefile.output, fresh=fresh)
        case other:
            raise InputError(f"the builder {other} is not there yet", hint="write builder: local")
