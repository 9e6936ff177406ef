"""Which builder a Bakefile means. Those for clouds load only when they are asked for."""

from __future__ import annotations

from parbake.bakefile import Bakefile
from parbake.builders import Builder

ELSEWHERE = frozenset({"ec2", "packer"})
"""Builders that need nothing of this machine: no root, no disk, no base on it."""


def builder_of(bakefile: Bakefile, *, verify: bool = True, fresh: bool = False) -> Builder:
    """Return the builder; ``verify`` and ``fresh`` (bake what exists already) are for those that work in a cloud."""
    match bakefile.builder:
        case "local":
            from parbake.builders.local import LocalBuilder

            return LocalBuilder()
        case "qemu":
            from parbake.builders.qemu import QemuBuilder

            return QemuBuilder(limit=bakefile.time_limit)
        case "ebs":
            from parbake.builders.ebs import EbsBuilder

            return EbsBuilder(bakefile.aws, bakefile.output, fresh=fresh)
        case "ec2":
            from parbake.builders.ec2 import Ec2Builder

            limit = bakefile.time_limit
            return Ec2Builder(bakefile.aws, bakefile.registries, limit=limit, verify=verify, fresh=fresh)
        case "packer":
            from parbake.builders.packer import PackerBuilder

            return PackerBuilder(bakefile, verify=verify, fresh=fresh)
