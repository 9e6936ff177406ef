"""Build the default base: packages into a folder (mmdebstrap), the folder into ext4 (mke2fs), then both boot loaders.

Nothing is mounted by us, and mmdebstrap runs in its own mount and PID namespaces: a build that is killed leaves a work
folder, which the next build or ``parbake clean`` removes. Who is not root has no namespaces and gets the same base by
other means: fakechroot(1) leads packages' programs into the new root, fakeroot(1) remembers whose its files are.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from parbake.core import sealed
from parbake.core.emulation import runnable
from parbake.core.errors import CommandFailed, DiskFull, EnvironmentProblem
from parbake.core.events import Events
from parbake.core.model import Platform
from parbake.core.run import CAP_SYS_ADMIN, capable, find, isolated, need_root, run
from parbake.core.workspace import lock, part_of, publish, remove_leftovers, work_folder
from parbake.machine.base import native
from parbake.machine.base.grub import MODULES, PACKAGES, install_bios, make_bios_core, make_efi_program
from parbake.machine.base.recipe import Recipe, describe, files
from parbake.machine.disk.blocks import block_list
from parbake.machine.disk.files import state
from parbake.machine.disk.filesystems import EXT4_FEATURES

_TIMEOUT = 1800.0  # seconds for a slow mirror
_EMULATED = 4  # times as long where programs are emulated
# Debian's programs need no more than this processor has. QEMU's own choice for programs has all that there is, signed
# pointers among it, and they take a quarter longer.
_EMULATED_CPU = {"arm64": {"QEMU_CPU": "cortex-a72"}}
_GRUB = "grub"
_OWNERS = "owners"  # fakeroot's list of whose files are, for who is not root
_AS_ROOT, _AS_USER = ("--mode=root", "--format=directory"), ("--mode=fakechroot", "--format=tar")
_FOREIGN = "make it once as root, with this user's key for the cache; or bake with `verify: canary`"
_CHECKED_HASH = struct.pack("<I", 3)  # PEP 552: the flags of bytecode that Python compares with its source by a hash


def ensure(
    cache: Path,
    events: Events,
    *,
    packages: Iterable[str] = (),
    serial: str = "",
    platform: Platform | None = None,
) -> Path:
    """Return the default base as a raw disk below ``cache``, made when it is not there yet.

    Where one came with parbake, as in its container image, that is unpacked, and otherwise it is built. One at a time
    for each recipe; the file is complete or absent. Packages for another architecture than this
    machine's are set up in emulation, which needs root. Raises InputError for another ``platform`` (None: this
    machine's) than linux/amd64 and linux/arm64, EnvironmentProblem when a program is missing, CommandFailed when
    packages cannot be had, DiskFull.
    """
    platform = platform or Platform.host()
    recipe = describe(platform, packages, serial=serial)
    folder = cache / "base"
    disk = folder / recipe.file_name
    ours = _is_ours(disk, events)
    if not ours and _is_foreign(recipe) and not recipe.packed.exists():
        need_root(f"making the default base image for {platform}", hint=_FOREIGN)
    part_of(cache, folder.name)
    if ours:
        return disk
    with lock(disk.with_suffix(".lock"), what="the default base image"):
        if not _is_ours(disk, events):
            if disk.exists():
                events.warn(f"{disk} has no seal of this user's key: it is not used, and made anew")
            remove_leftovers(folder)
            what = "Make the default base machine image" + f" for {platform}" * (platform != Platform.host())
            with work_folder(folder, "base") as work, events.stage("base", what), runnable(platform):
                made = _unpacked(recipe.packed, work) if recipe.packed.exists() else _build(recipe, work, events)
                sealed.seal(disk, block_list(made, events, algorithm="blake3").digest())
                publish(made, disk)
    return disk


_COMPARED: set[str] = set()
"""Bases that this process has compared, as they were then."""


def _is_ours(disk: Path, events: Events) -> bool:
    """Whether a base is there whose bytes are as they were made: a cache may come from where others write to it."""
    with suppress(OSError):
        status = disk.lstat()
        now = str(state(disk, status))
        if now in _COMPARED:
            return True
        found = block_list(disk, events, algorithm="blake3") if stat.S_ISREG(status.st_mode) else None
        if found and sealed.is_sealed(disk, found.digest()):
            _COMPARED.add(now)
            return True
    return False


def _unpacked(packed: Path, work: Path) -> Path:
    made = work / "disk.raw"
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(packed), str(made)])
    return made


def _build(recipe: Recipe, work: Path, events: Events) -> Path:
    _need_tools()
    image = work / "disk.raw"
    with events.stage("base-packages", "Install Debian packages"):
        root = _install(recipe, work)
    with events.stage("base-disk", "Make a bootable disk of them"):
        with image.open("wb") as disk:
            disk.truncate(recipe.size)
        run(["sfdisk", "--quiet", str(image)], stdin=recipe.partition_script.encode())
        _make_root(recipe, root, image, work)
        modules = work / _GRUB / MODULES.relative_to("/") if _is_foreign(recipe) else MODULES
        _make_esp(recipe, work, image, modules)
        if recipe.architecture == "amd64":  # the others know no BIOS
            bios = recipe.slice("bios")
            install_bios(image, make_bios_core(work, modules), start=bios.start, size=bios.size, modules=modules)
    return image


def _is_foreign(recipe: Recipe) -> bool:
    return recipe.architecture != Platform.host().architecture


def _need_tools() -> None:
    missing = [
        package
        for program, package in (
            ("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs"), ("sfdisk", "fdisk"), ("mkfs.vfat", "dosfstools"),
            ("mcopy", "mtools"), ("grub-mkimage", "grub-common"),
            *([("unshare", "util-linux")] if capable(CAP_SYS_ADMIN) else [("fakechroot",) * 2, ("fakeroot",) * 2]),
        )
        if not find(program)
    ]  # fmt: skip
    if missing:
        raise EnvironmentProblem(
            "the default base image cannot be made here: programs are missing",
            hint=f"apt-get install {' '.join(missing)}; or name a disk image as `base`",
        )


def _install(recipe: Recipe, work: Path) -> Path:
    for path, content in files(recipe.architecture).items():
        target = work / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(recipe.fill_in(content))
        target.chmod(0o755 if content.startswith(b"#!") else 0o644)
    generators = work / "tree/etc/systemd/system-generators"
    generators.mkdir(parents=True)
    for name in recipe.masked_generators:
        (generators / name).symlink_to("/dev/null")
    root, packed = work / "root", work / "root.tar"
    mirrors, as_root = _mirrors(recipe, work), capable(CAP_SYS_ADMIN)
    command = [
        "mmdebstrap", "--quiet", *(_AS_ROOT if as_root else _AS_USER), "--variant=minbase",
        f"--architectures={recipe.architecture}", f"--include={','.join(recipe.packages)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.left_out),
        *(f"--dpkgopt=path-include={pattern}" for pattern in recipe.kept),
        *(_foreign(recipe, work, mirrors) if _is_foreign(recipe) else ()),
        '--setup-hook=cp -r --preserve=mode early/. "$1"',
        '--customize-hook=cp -r --preserve=mode tree/. "$1"',
        f'--customize-hook=chroot "$1" systemctl --quiet mask {shlex.join(recipe.masked_units)}',
        f'--customize-hook=chroot "$1" systemctl --quiet enable {shlex.join(recipe.enabled_units)}',
        *(f"--customize-hook={line}" for line in recipe.finish),
        recipe.suite, str(root if as_root else packed), *mirrors,
    ]  # fmt: skip
    _mmdebstrap(command, recipe, work)
    if not as_root:  # only inside of the new root do its links lead where they will: so it is packed there
        root.mkdir()
        run(["fakeroot", "-s", str(work / _OWNERS), "tar", "-C", str(root), "-xpf", str(packed)])
        packed.unlink()
    return root


def _mmdebstrap(command: list[str], recipe: Recipe, work: Path) -> None:
    env = {"SOURCE_DATE_EPOCH": str(recipe.epoch), "TMPDIR": str(work)}
    if _is_foreign(recipe):
        env |= _EMULATED_CPU.get(recipe.architecture, {})
    try:
        run(
            isolated(command) if "--mode=root" in command else command,
            cwd=work,
            env=env,
            timeout=_TIMEOUT * (_EMULATED if _is_foreign(recipe) else 1),
        )
    except CommandFailed as error:
        _raise_disk_full(error, work)
        raise CommandFailed(
            f"mmdebstrap could not install Debian {recipe.suite}\n{error.output}",
            code=error.code,
            output=error.output,
            hint="check that `apt-get update` works on this machine: the same sources are used",
        ) from error


def _foreign(recipe: Recipe, work: Path, mirrors: tuple[str, ...]) -> list[str]:
    """Return mmdebstrap's options for another architecture than this machine's, which runs its programs meanwhile.

    GRUB's modules for it cannot be installed here: they are fetched as its packages are, and put beside the root.
    """
    folder = work / _GRUB
    folder.mkdir()
    names = shlex.join(PACKAGES[recipe.architecture])
    fetch = f'cd {shlex.quote(str(folder))} && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -qq download {names}'
    unpack = 'for package in *.deb; do dpkg-deb --extract "$package" .; done'
    return ["--skip=check/qemu", *_native(recipe, work, mirrors), f"--customize-hook={fetch} && {unpack}"]


def _native(recipe: Recipe, work: Path, mirrors: tuple[str, ...]) -> list[str]:
    """Return mmdebstrap's options that have most programs run natively until all packages are installed."""
    host = Platform.host().architecture
    if host not in native.LOADERS:
        return []
    programs = work / "native"
    _mmdebstrap([*native.fetch(recipe.suite, host, programs), *mirrors], recipe, work)
    divert, make_initrd, restore = native.prepare(programs, host)
    return [f"--extract-hook={divert}", f"--customize-hook={make_initrd}", f"--customize-hook={restore}"]


def _mirrors(recipe: Recipe, work: Path) -> tuple[str, ...]:
    """Return this machine's own sources for the suite, as apt understands them; empty: mmdebstrap knows Debian's.

    A mirror of Debian's has every architecture.
    """
    if not find("apt-get"):
        return ()
    shown = run([
        "apt-get", "indextargets", "--format", "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(SIGNED_BY)",
        "Identifier: Packages", "Target-Of: deb", f"Architecture: {Platform.host().architecture}",
    ], check=False).text  # fmt: skip
    lines = []
    for line in shown.splitlines():
        fields = line.split("\t")
        if len(fields) == 4 and re.fullmatch(rf"{recipe.suite}(-updates|-security)?", fields[1]):
            uri, release, component, signed_by = fields
            option = f"[signed-by={signed_by}] " if re.fullmatch(r"/\S+", signed_by) else ""
            lines.append(f"deb {option}{uri} {release} {component}\n")
    if not any(f" {recipe.suite} main" in line for line in lines):
        return ()
    sources = work / "sources.list"
    sources.write_text("".join(lines))
    return (str(sources),)


def _limit_times(root: Path, epoch: int) -> None:
    """Make no file younger than ``epoch``, so that the same packages give the same bytes."""
    for folder, names, files_ in os.walk(root):
        for name in (".", *names, *files_):
            path = f"{folder}/{name}"
            status = os.lstat(path)
            if status.st_mtime > epoch:
                os.utime(path, (epoch, epoch), follow_symlinks=False)


def _date_bytecode(root: Path, epoch: int) -> None:
    """Have Python compare its compiled modules with the times of their sources, as on any Debian.

    Where SOURCE_DATE_EPOCH is set it compares hashes instead: each program would read the sources of all that it
    imports. Format: PEP 552.
    """
    for path in root.glob("usr/lib/python3*/**/__pycache__/*.pyc"):
        source = path.parent.parent / f"{path.name.partition('.')[0]}.py"
        compiled = path.read_bytes()
        if compiled[4:8] == _CHECKED_HASH and source.is_file() and not source.is_symlink():
            status = source.stat()
            times = struct.pack("<III", 0, min(int(status.st_mtime), epoch), status.st_size)
            path.write_bytes(compiled[:4] + times + compiled[16:])


def _make_root(recipe: Recipe, root: Path, image: Path, work: Path) -> None:
    _date_bytecode(root, recipe.epoch)
    _limit_times(root, recipe.epoch)
    part = recipe.slice("root")
    owners = work / _OWNERS
    command = [
        *(["fakeroot", "-i", str(owners)] if owners.exists() else []),
        "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "1", "-L", "root",
        "-U", recipe.uuid("root"),
        "-i", "8192",  # layers hold many small files
        "-J", "size=32", "-O", ",".join(EXT4_FEATURES),
        "-E", f"hash_seed={recipe.uuid('hash-seed')},assume_storage_prezeroed=1,nodiscard,offset={part.start}",
        "-d", str(root), str(image), f"{part.size // 1024}k",
    ]  # fmt: skip
    try:
        run(command, env={"SOURCE_DATE_EPOCH": str(recipe.epoch), "MKE2FS_CONFIG": os.devnull})
    except CommandFailed as error:
        _raise_disk_full(error, image)
        raise


def _make_esp(recipe: Recipe, work: Path, image: Path, modules: Path) -> None:
    part = recipe.slice("esp")
    name, content = make_efi_program(work, recipe.architecture, modules)
    program = work / name
    program.write_bytes(content)
    os.utime(program, (recipe.epoch, recipe.epoch))
    env = {"SOURCE_DATE_EPOCH": str(recipe.epoch), "MTOOLSRC": os.devnull}
    volume_id = recipe.uuid("esp").replace("-", "")[:8]
    run([
        "mkfs.vfat", "-F", "32", "-s", "1", "-i", volume_id, "-n", "ESP", "--invariant",
        "--offset", str(part.start // 512), str(image), str(part.size // 1024),
    ], env=env)  # fmt: skip
    drive = f"{image}@@{part.start}"
    run(["mmd", "-i", drive, "::/EFI", "::/EFI/BOOT"], env=env)
    # The path of removable media: firmware finds it without an entry in its own memory (UEFI 3.5.1.1).
    run(["mcopy", "-m", "-i", drive, str(program), f"::/EFI/BOOT/{name}"], env=env)


def _raise_disk_full(error: CommandFailed, where: Path) -> None:
    if "No space left on device" in error.output:
        raise DiskFull(
            f"no space left while making the default base image in {where.parent}",
            hint="free about 3 GiB, or set PARBAKE_CACHE to a larger disk",
        ) from error
