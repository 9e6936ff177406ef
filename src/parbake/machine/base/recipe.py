"""What the default base is made of: data with a digest, the same on any machine.

Everything that shapes the image follows from a ``Recipe``: packages, files, units, disk layout, identifiers. The digest
of the recipe stands for the image in a plan's content key. Package *versions* are those of the day of the build: raise
``_REVISION`` (or name packages) to get a new identity when they should be fetched anew.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import uuid
from collections.abc import Iterable
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from pydantic import Field

from parbake.core.errors import InputError
from parbake.core.model import GIB, MIB, Frozen, Platform

SIZE = 2 * GIB
"""Size of the disk in bytes (sparse: the file takes what its files take). A bake grows it when it needs more."""

_REVISION = 3
_SUITE = "trixie"
_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")  # Debian policy, section 5.6.1

# Explicit, since recommended packages are not installed: they would double the image and slow its boot.
_PACKAGES = (
    "ca-certificates", "cloud-guest-utils", "cloud-init", "containerd", "dbus", "dhcpcd-base", "e2fsprogs",
    "initramfs-tools", "iproute2", "kmod", "python3", "runc", "systemd", "systemd-resolved", "systemd-sysv",
    "systemd-timesyncd", "udev", "zstd",
)  # fmt: skip
_KERNELS = {"amd64": "linux-image-cloud-amd64", "arm64": "linux-image-cloud-arm64"}

# Documentation and translations: 20,000 files that a node never reads.
_LEFT_OUT = (
    "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/lintian/*", "/usr/share/locale/*", "/usr/share/man/*",
    "/usr/share/i18n/*", "/usr/share/bash-completion/*", "/usr/share/zsh/*",
)  # fmt: skip
_KEPT = ("/usr/share/doc/*/copyright",)

# What costs boot time, or fights a node that is replaced rather than upgraded.
_MASKED_UNITS = (
    "apt-daily-upgrade.timer", "apt-daily.timer", "cloud-init-hotplugd.socket", "dpkg-db-backup.timer",
    "e2scrub_all.timer", "e2scrub_reap.service", "modprobe@drm.service", "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount", "systemd-binfmt.service", "systemd-firstboot.service", "systemd-initctl.socket",
    "systemd-network-generator.service", "systemd-networkd-persistent-storage.service",
    "systemd-networkd-wait-online.service", "systemd-pstore.service", "systemd-udev-load-credentials.service",
)  # fmt: skip
# Programs that systemd runs before anything else, for set-ups that this image does not have.
_MASKED_GENERATORS = (
    "systemd-gpt-auto-generator", "systemd-hibernate-resume-generator", "systemd-rc-local-generator",
    "systemd-ssh-generator", "systemd-system-update-generator", "systemd-sysv-generator", "systemd-tpm2-generator",
)  # fmt: skip
_ENABLED_UNITS = ("containerd.service", "systemd-networkd.service", "systemd-resolved.service")

# Shell lines that run when all packages are installed; "$1" is the new root.
_FINISH = (
    'rm -f "$1"/etc/hostname "$1"/etc/resolv.conf "$1"/vmlinuz.old "$1"/initrd.img.old',
    'ln -s ../run/systemd/resolve/stub-resolv.conf "$1"/etc/resolv.conf',
    'rm -rf "$1"/var/lib/containerd "$1"/var/cache/debconf/*-old "$1"/var/lib/dpkg/*-old',
    'install -d -m 711 "$1"/var/lib/containerd',
    'find "$1"/var/log -type f -delete',
    # systemd would rebuild its databases at the first boot
    'touch "$1"/etc/.updated "$1"/var/.updated',
    # a mirror's password is for this machine, not for the image
    """find "$1"/etc/apt -name '*.list' -exec sed -i 's#://[^/@ ]*@#://#' {} +""",
)


class Slice(Frozen):
    """One partition: first byte and size in bytes, GPT type as sfdisk spells it."""

    name: str
    start: int
    size: int
    type: str


# The root file system comes last, so that it can grow. GPT's own copy takes 33 sectors at the end of the disk.
_BIOS = Slice(name="bios", start=1 * MIB, size=1 * MIB, type="21686148-6449-6E6F-744E-656564454649")
_ESP = Slice(name="esp", start=2 * MIB, size=64 * MIB, type="C12A7328-F81F-11D2-BA4B-00A0C93EC93B")
_ROOT = Slice(name="root", start=66 * MIB, size=SIZE - 67 * MIB, type="4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709")
_ARM_ROOT = _ROOT.model_copy(update={"type": "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"})
_SLICES = {"amd64": (_BIOS, _ESP, _ROOT), "arm64": (_ESP, _ARM_ROOT)}


class Recipe(Frozen):
    """How the default base is made. ``files`` are digests of the files that parbake adds, by their path.

    ``serial`` is the user's word for "these packages of that day": a new one makes a new base.
    """

    revision: int = _REVISION
    serial: str = ""
    suite: str = _SUITE
    architecture: str = "amd64"
    packages: tuple[str, ...]
    left_out: tuple[str, ...] = _LEFT_OUT
    kept: tuple[str, ...] = _KEPT
    masked_units: tuple[str, ...] = _MASKED_UNITS
    masked_generators: tuple[str, ...] = _MASKED_GENERATORS
    enabled_units: tuple[str, ...] = _ENABLED_UNITS
    finish: tuple[str, ...] = _FINISH
    slices: tuple[Slice, ...]
    size: int = SIZE
    epoch: int = 1754697600
    """Seconds since 1970 that no file is younger than: the day of the suite's release, 2025-08-09."""
    files: dict[str, str] = Field(default_factory=dict)

    @property
    def identity(self) -> str:
        """``sha256:<hex>`` of the recipe."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    @property
    def file_name(self) -> str:
        """The name of the disk in the cache's folder ``base``."""
        return f"debian-{self.suite}-{self.identity.removeprefix('sha256:')[:16]}.raw"

    @property
    def packed(self) -> Path:
        """Where the disk lies if it came with parbake, as in the container image: compressed qcow2."""
        return Path(sys.prefix, "base", self.file_name).with_suffix(".qcow2")

    def uuid(self, name: str) -> str:
        """Return the identifier of a part of the disk (``disk``, ``root``, ...): it follows from the recipe."""
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.identity}/{name}"))

    def fill_in(self, content: bytes) -> bytes:
        """Return one of ``files()`` with the identifiers of this recipe in it."""
        return content.replace(b"@ROOT_UUID@", self.uuid("root").encode())

    def slice(self, name: str) -> Slice:
        """Return the partition with this name."""
        return next(part for part in self.slices if part.name == name)

    @property
    def partition_script(self) -> str:
        """What sfdisk reads to make the partition table."""
        lines = [f"label: gpt\nlabel-id: {self.uuid('disk')}\nunit: sectors\n"]
        lines += [
            f"start={part.start // 512}, size={part.size // 512}, type={part.type}, "
            f"uuid={self.uuid(f'partition/{part.name}')}, name={part.name}"
            for part in self.slices
        ]
        return "\n".join([*lines, ""])


def describe(platform: Platform, packages: Iterable[str] = (), *, serial: str = "") -> Recipe:
    """Return the recipe of the default base with ``packages`` (Debian's names) on top of its own.

    Pure. Raises InputError for another platform than linux/amd64 and linux/arm64, and for what is no package name.
    """
    architecture = platform.architecture
    if platform not in (Platform(architecture=each) for each in _KERNELS):
        raise InputError(
            f"the default base is made for linux/amd64 and linux/arm64, not for {platform}",
            hint=f"name a disk image for {platform} as `base`, or bake a volume, which needs no base",
        )
    extra = set(packages)
    for name in sorted(extra):
        if not _PACKAGE_NAME.fullmatch(name):
            raise InputError(
                f"base: {name!r} is not a valid Debian package name", hint="write it as for apt-get install"
            )
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in files(architecture).items()}
    return Recipe(
        architecture=architecture,
        packages=tuple(sorted({*_PACKAGES, _KERNELS[architecture], *extra})),
        slices=_SLICES[architecture],
        files=digests,
        serial=serial,
    )


@cache
def files(architecture: str) -> dict[str, bytes]:
    """Return the files that parbake adds, by their path in the package.

    ``early/`` goes into the root before packages are installed, ``tree/`` after, ``loader/`` into GRUB itself. Those
    below a folder with an architecture's name are in the place of others there.
    """
    here = resources.files(__package__)
    found = {path: entry for stage in ("early", "loader", "tree") for path, entry in _walk(here / stage, stage)}
    if (here / architecture).is_dir():
        found |= {path.removeprefix("./"): entry for path, entry in _walk(here / architecture, ".")}
    return {path: found[path].read_bytes() for path in sorted(found)}


def _walk(folder: Traversable, prefix: str) -> Iterable[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        path = f"{prefix}/{entry.name}"
        if entry.is_dir():
            yield from _walk(entry, path)
        elif entry.is_file():
            yield path, entry
