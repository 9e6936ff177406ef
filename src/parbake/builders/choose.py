"""Which builder and publisher a Bakefile means. Those for clouds load only when they are asked for."""

from __future__ import annotations

from parbake.bakefile import Bakefile
from parbake.builders import Builder, Publisher, RemoteBuilder


def builder_of(bakefile: Bakefile) -> Builder:
    """Return what builds the disk on this machine."""
    if bakefile.builder == "qemu":
        from parbake.builders.qemu import QemuBuilder

        return QemuBuilder(limit=bakefile.time_limit)
    from parbake.builders.local import LocalBuilder

    return LocalBuilder()


def publisher_of(bakefile: Bakefile, *, fresh: bool = False) -> Publisher | None:
    """Return what sends the disk away; None where the artefact is a file. ``fresh`` publishes what exists already."""
    if not bakefile.traits.sends:
        return None
    from parbake.builders.ebs import EbsPublisher

    return EbsPublisher(bakefile.aws, bakefile.output, fresh=fresh)


def remote_builder_of(bakefile: Bakefile, *, verify: bool = True, fresh: bool = False) -> RemoteBuilder | None:
    """Return what bakes in a cloud, None where this machine does; ``fresh`` bakes what exists already."""
    match bakefile.builder:
        case "ec2":
            from parbake.builders.ec2 import Ec2Builder

            limit = bakefile.time_limit
            return Ec2Builder(bakefile.aws, bakefile.registries, limit=limit, verify=verify, fresh=fresh)
        case "packer":
            from parbake.builders.packer.builder import PackerBuilder

            return PackerBuilder(bakefile, verify=verify, fresh=fresh)
    return None
