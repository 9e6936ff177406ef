"""Every external program that parbake runs: what for, for which commands, and from which version on.

The one list behind ``parbake doctor``, the documentation's table and the check of ``packages.apt``.
"""

from __future__ import annotations

from dataclasses import dataclass

EVERYTHING = "all commands"
BUILD = "images[].build"
DEFAULT_BASE = "base: debian"
XFS = "xfs volumes and bases"


@dataclass(frozen=True, slots=True)
class Program:
    """An external program. ``used_by`` are commands, or parts of the Bakefile that need it.

    ``optional`` programs are for something that not every user does; programs of one ``group`` replace each other.
    ``oldest`` is the oldest version that works, empty for any; ``debian`` the package that brings it, where that has
    another name. ``boots`` is the architecture of the machines that it plays: needed by hosts of that architecture,
    optional for others. ``emulates`` is the architecture whose programs it runs on others.
    """

    name: str
    purpose: str
    used_by: tuple[str, ...]
    version: tuple[str, ...] = ("--version",)
    optional: bool = False
    group: str = ""
    oldest: str = ""
    debian: str = ""
    boots: str = ""
    emulates: str = ""

    @property
    def package(self) -> str:
        """The Debian package that brings it."""
        return self.debian or self.name


PROGRAMS = (
    Program("setpriv", "ends every program that parbake started when parbake ends", (EVERYTHING,), debian="util-linux"),
    Program("unshare", "private mounts and processes", (EVERYTHING,), debian="util-linux"),
    Program("containerd", "fills machine images and xfs volumes, starts images", ("bake", "verify"), oldest="1.6"),
    Program("runc", "starts containers when a bake is verified", ("verify",)),
    Program("mount", "opens disks and volumes", ("bake", "verify")),
    Program("umount", "closes disks and volumes", ("bake", "verify"), debian="mount"),
    Program("blkid", "tells file systems apart", ("bake", "verify"), debian="util-linux"),
    Program("sfdisk", "reads and grows partition tables", ("bake",), debian="fdisk"),
    Program(
        "mke2fs", "makes ext4 volumes and the default base", ("bake",), ("-V",), oldest="1.47.1", debian="e2fsprogs"
    ),
    Program("e2fsck", "checks ext4 after each bake", ("bake",), ("-V",), debian="e2fsprogs"),
    Program("resize2fs", "grows ext4", ("bake",), (), debian="e2fsprogs"),
    Program(
        "setfiles", "labels files where a base enforces SELinux", ("bake",), (), optional=True, debian="policycoreutils"
    ),
    Program("fstrim", "frees unused blocks before a disk is stored", ("bake",), debian="util-linux"),
    Program("mkfs.xfs", "makes xfs volumes", (XFS,), ("-V",), optional=True, debian="xfsprogs"),
    Program("xfs_db", "makes xfs volumes the same each time", (XFS,), ("-V",), optional=True, debian="xfsprogs"),
    Program("xfs_growfs", "grows xfs", (XFS,), ("-V",), optional=True, debian="xfsprogs"),
    Program("xfs_repair", "checks xfs after each bake", (XFS,), ("-V",), optional=True, debian="xfsprogs"),
    Program("mkfs.vfat", "makes the default base's boot partition", (DEFAULT_BASE,), (), debian="dosfstools"),
    Program(
        "mcopy",
        "writes into boot partitions and seeds without mounting (with mmd)",
        (DEFAULT_BASE, "verify"),
        debian="mtools",
    ),
    Program("qemu-img", "converts disks (qcow2, vmdk, vhd)", ("bake", "verify"), debian="qemu-utils"),
    Program(
        "qemu-storage-daemon",
        "lends a volume to a rehearsal without changing it",
        ("bake", "trace"),
        debian="qemu-utils",
    ),
    Program("qemu-system-x86_64", "boots artefacts for amd64", ("verify",), debian="qemu-system-x86", boots="amd64"),
    Program("qemu-system-aarch64", "boots artefacts for arm64", ("verify",), debian="qemu-system-arm", boots="arm64"),
    Program("qemu-x86_64", "runs amd64 programs on arm64", (DEFAULT_BASE, BUILD), debian="qemu-user", emulates="amd64"),
    Program(
        "qemu-aarch64", "runs arm64 programs on amd64", (DEFAULT_BASE, BUILD), debian="qemu-user", emulates="arm64"
    ),
    Program("grub-mkimage", "makes the default base's boot loaders", (DEFAULT_BASE,), debian="grub-common"),
    Program("mmdebstrap", "makes the default base and the demo's image", (DEFAULT_BASE, "demo")),
    Program("fakechroot", "makes the default base without root", (DEFAULT_BASE,), (), optional=True),
    Program("fakeroot", "makes the default base without root", (DEFAULT_BASE,), optional=True),
    Program("buildah", "builds images", (BUILD, "demo"), group="builder"),
    Program("docker", "builds images, where buildah is missing", (BUILD,), group="builder", debian="docker.io"),
    Program("podman", "builds images, where buildah and docker are missing", (BUILD,), group="builder"),
    Program("slirp4netns", "connects the network of a build's RUN steps", (BUILD, "demo"), optional=True),
    Program(
        "nsenter", "runs the RUN steps of a build in their network", (BUILD, "demo"), optional=True, debian="util-linux"
    ),
    Program("docker-registry", "the demo's registry", ("demo",), optional=True),
    Program("git", "commits edits of manifests", ("rollout",), optional=True),
    Program("kubectl", "reaches clusters", ("init --from-cluster", "rollout"), (), optional=True),
)


def package_of(program: str) -> str:
    """Return the Debian package that brings a program."""
    others = {"ctr": "containerd"}
    return next((each.package for each in PROGRAMS if each.name == program), others.get(program, program))


def table() -> tuple[tuple[str, str, str, str], ...]:
    """Return the rows of the documentation's table: program, Debian package, purpose, used by."""
    return tuple((item.name, item.package, item.purpose, ", ".join(item.used_by)) for item in PROGRAMS)
