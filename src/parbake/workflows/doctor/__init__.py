"""What this machine can do, and how to get what it lacks. Looks first (``gather``), then judges purely (``judge``)."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from pydantic import Field

from parbake.core.errors import CommandFailed, DeadlineExceeded, EnvironmentProblem, ParbakeError
from parbake.core.extras import how_to_add
from parbake.core.model import GIB, Frozen, Platform
from parbake.core.programs import PROGRAMS, XFS, Program, package_of
from parbake.core.run import CONTAINERD, find, isolated, run
from parbake.machine import vm
from parbake.machine.base import describe
from parbake.machine.vm.boards import BOARDS
from parbake.records.store import Shared, Store, need_conditional_writes

Status = Literal["ok", "warn", "missing"]

# A bake holds the artefact and, while it converts, a raw copy; the cache holds the base and the builder's store.
_ROOM_FOR_OUTPUT = 12 * GIB
_ROOM_FOR_CACHE = 8 * GIB
_PROBE_TIMEOUT = 20.0
_VERSION = re.compile(r"[0-9]+(?:\.[0-9]+)+")


class Check(Frozen):
    """One thing that was looked at. ``needed_by``: commands, or parts of the Bakefile; ``hint``: how to get it."""

    name: str
    purpose: str
    needed_by: tuple[str, ...]
    status: Status
    found: str = ""
    hint: str = ""


class Facts(Frozen):
    """The facts about a machine. ``programs``: versions by name, empty when it tells none, absent when missing.

    ``machine`` is its architecture, ``uefi_firmware`` those whose machines can start by UEFI. ``free`` is in bytes,
    by the folder's role (output, cache). ``boto3_by`` is the command that gets boto3,
    ``containerd`` what ``PARBAKE_CONTAINERD`` says, ``base_packed`` whether the default base came with parbake.
    """

    root: bool
    machine: str = "amd64"
    programs: Mapping[str, str] = Field(default_factory=dict)
    filesystems: frozenset[str] = frozenset()
    loop_devices: bool = False
    mount_namespaces: bool = False
    accelerator: Literal["kvm", "tcg", "none"] = "none"
    base_packed: bool = False
    uefi_firmware: frozenset[str] = frozenset()
    boto3: str = ""
    boto3_by: str = ""
    containerd: str = ""
    free: Mapping[str, int] = Field(default_factory=dict)
    folders: Mapping[str, str] = Field(default_factory=dict)


def examine(*, output: Path, cache: Path, shared: Shared | None = None) -> tuple[Check, ...]:
    """Look at this machine, and at a Bakefile's store; the folders need not exist. Never raises for what is missing."""
    return (*judge(gather(output=output, cache=cache)), *([store_check(shared.store)] if shared else []))


def store_check(store: Store) -> Check:
    """Try the store out: whether this machine may write to it, and the first who writes wins."""
    try:
        need_conditional_writes(store)
        problem, hint = "", ""
    except ParbakeError as error:
        problem, hint = error.message, error.hint
    status: Status = "missing" if problem else "ok"
    return Check(
        name="store",
        purpose="shares records and artefacts",
        needed_by=("store:",),
        status=status,
        found=problem or store.url,
        hint=hint,
    )


def gather(*, output: Path, cache: Path) -> Facts:
    """Look, in about a second: programs are asked for their versions side by side."""
    present = [program for program in PROGRAMS if find(program.name)]
    with ThreadPoolExecutor() as pool:
        versions = dict(zip((program.name for program in present), pool.map(_version, present), strict=True))
    folders = {"output": output, "cache": cache}
    return Facts(
        root=os.geteuid() == 0,
        machine=Platform.host().architecture,
        programs=versions,
        filesystems=frozenset(line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()),
        loop_devices=Path("/dev/loop-control").exists(),
        mount_namespaces=_works(isolated(["true"])),
        accelerator=_accelerator(),
        base_packed=describe(Platform.host()).packed.exists() if Platform.host().architecture in BOARDS else False,
        uefi_firmware=frozenset(each for each in BOARDS if _has_firmware(each)),
        boto3=_package_version("boto3"),
        boto3_by=how_to_add("aws"),
        containerd=os.environ.get(CONTAINERD, ""),
        free={role: shutil.disk_usage(_existing(folder)).free for role, folder in folders.items()},
        folders={role: str(folder) for role, folder in folders.items()},
    )


def _version(program: Program) -> str:
    if not program.version:
        return ""
    try:
        done = run([program.name, *program.version], timeout=_PROBE_TIMEOUT, check=False)
    except DeadlineExceeded:
        return ""
    found = _VERSION.search(f"{done.text}\n{done.stderr}")
    return found[0] if found else ""


def _works(command: list[str]) -> bool:
    try:
        run(command, timeout=_PROBE_TIMEOUT)
    except (CommandFailed, DeadlineExceeded, EnvironmentProblem):
        return False
    return True


def _accelerator() -> Literal["kvm", "tcg", "none"]:
    try:
        return vm.accelerator()
    except EnvironmentProblem:
        return "none"


def _has_firmware(architecture: str) -> bool:
    try:
        BOARDS[architecture].uefi()
    except EnvironmentProblem:
        return False
    return True


def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def judge(facts: Facts) -> tuple[Check, ...]:
    """Return every check, in the order of what a bake needs first (pure)."""
    builders = [_builders(facts)]
    wanted = (program for program in PROGRAMS if not program.group and program.emulates != facts.machine)
    programs = [_program(program, facts) for program in wanted]
    of_a_user = () if _mounts(facts) else _of_a_user(facts)
    return (*_system(facts), *programs, *builders, *_extras(facts), *_space(facts), *of_a_user)


def _check(good: bool, name: str, purpose: str, needed_by: tuple[str, ...], hint: str, *, mild: bool = False) -> Check:
    """Return a check of a fact that is true or false; ``mild``: one can do without."""
    bad: Status = "warn" if mild else "missing"
    status: Status = "ok" if good else bad
    return Check(name=name, purpose=purpose, needed_by=needed_by, status=status, hint="" if good else hint)


def _mounts(facts: Facts) -> bool:
    """Whether commands that mount something can work here: in many containers, not even root mounts."""
    return facts.root and facts.mount_namespaces


def _system(facts: Facts) -> Iterator[Check]:
    mounting, known, mild = ("bake", "verify", "trace"), facts.filesystems, not _mounts(facts)
    namespaces = "run as root; in a container, with the capability CAP_SYS_ADMIN"
    root = "run parbake with sudo for what it mounts; the last rows say what this user has"
    yield _check(facts.root, "root", "mounts and loop devices", mounting, root, mild=True)
    spaces, what = facts.mount_namespaces, "mounts that vanish with the run"
    yield _check(spaces, "mount namespaces", what, mounting, namespaces, mild=mild)
    loops = "modprobe loop; in a container, run it privileged"
    yield _check(facts.loop_devices, "loop devices", "open disks and volumes", mounting, loops, mild=mild)
    yield _check("overlay" in known, "overlayfs", "unpack layers as nodes do", ("bake",), "modprobe overlay", mild=mild)
    yield _check("ext4" in known, "ext4", "the usual file system", mounting, "modprobe ext4", mild=mild)
    yield _check("xfs" in known, "xfs", "mount xfs", (XFS,), "modprobe xfs", mild=True)


# What a volume's bake runs without root, and what its rehearsal and its proof take besides, with the base they boot.
_FILLS = ("blkid", "e2fsck", "mke2fs", "setpriv")
_PROVES = ("mcopy", "qemu-img")
_BASE = ("fakechroot", "fakeroot", "grub-mkimage", "mkfs.vfat", "mmdebstrap", "sfdisk")
_SLOW = (
    "in an emulated machine: the first takes some two minutes more (its base is made, and it boots), each later one "
    "half a minute before its images start"
)


def _of_a_user(facts: Facts) -> Iterator[Check]:
    """Say what each command can do here for a user who is not root."""

    def check(name: str, commands: tuple[str, ...], found: str, lacking: Iterable[str]) -> Check:
        packages = sorted({package_of(each) for each in lacking})
        hint = f"apt-get install {' '.join(packages)}" if packages else ""
        made = _check(not packages, name, "what this user has", commands, hint)
        return made if packages else made.model_copy(update={"found": found})

    def lacks(names: Iterable[str]) -> list[str]:
        return [name for name in names if name not in facts.programs]

    qemu = [] if facts.accelerator != "none" else [BOARDS[facts.machine].qemu] if facts.machine in BOARDS else []
    base = () if facts.base_packed else _BASE
    proof = ("bake", "verify", "trace", "watch", "fleet worker")
    proven = "in a machine with KVM" if facts.accelerator == "kvm" else _SLOW
    yield check("fill ext4 volumes", ("bake --no-verify",), "without a mount", lacks(_FILLS))
    yield check("rehearse and verify ext4 volumes", proof, proven, [*lacks((*_FILLS, *_PROVES, *base)), *qemu])
    others = ("plan", "lint", "rollout", "rollback", "copy", "list", "show", "prune", "advise")
    yield check("all that mounts nothing", others, "as root has it", lacks(["setpriv"]))
    rest = ("base:", XFS, "images[].build", "export gke", "demo", "--rehearse-in host")
    yield _check(
        False,
        "mount and build",
        "what root alone has",
        rest,
        "run parbake as root; in a container, privileged",
        mild=True,
    )


def _program(program: Program, facts: Facts) -> Check:
    """Judge a program by its version (empty: it tells none; None: it is not there)."""
    status: Status = "ok"
    optional = program.optional or bool(program.emulates) or program.boots not in {"", facts.machine}
    version = facts.programs.get(program.name)
    found, hint = version or "there", ""
    chosen = facts.containerd if program.name == "containerd" else ""
    if version is None:
        status, found = "warn" if optional else "missing", ""
        hint = f"apt-get install {program.package}"
    elif version and program.oldest and _numbers(version) < _numbers(program.oldest):
        status = "warn" if optional else "missing"
        hint = f"{program.oldest} or later is needed: a newer {program.package}"
    if chosen and version is not None:
        found += f" ({chosen})"
    elif chosen:
        hint = f"{CONTAINERD} is {chosen}: let it be the full path of a program, or unset it"
    return Check(
        name=program.name, purpose=program.purpose, needed_by=program.used_by, status=status, found=found, hint=hint
    )


def _builders(facts: Facts) -> Check:
    """Judge the programs that build images as one: the first that is there is enough."""
    group = [program for program in PROGRAMS if program.group]
    there = [f"{item.name} {facts.programs[item.name]}".strip() for item in group if item.name in facts.programs]
    return Check(
        name=" or ".join(item.name for item in group),
        purpose="build images",
        needed_by=group[0].used_by,
        status="ok" if there else "missing",
        found=", ".join(there),
        hint="" if there else f"apt-get install {group[0].package}",
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _extras(facts: Facts) -> Iterator[Check]:
    accelerated = facts.accelerator == "kvm"
    slow = "verification runs in emulation, about ten times slower; use a machine with /dev/kvm (bare metal or nested)"
    if facts.accelerator == "none":
        slow = f"no machine of this one's kind ({facts.machine}) can be booted here: see what else is missing"
    kvm = _check(accelerated, "KVM", "boot at full speed", ("verify",), slow, mild=facts.accelerator != "none")
    yield kvm.model_copy(update={"found": facts.accelerator})
    for board in BOARDS.values():
        there, own = board.architecture in facts.uefi_firmware, board.architecture == facts.machine
        what = "boot bases that start by UEFI only" if board.bios else f"boot artefacts for {board.architecture}"
        get, mild = f"apt-get install {board.package}", board.bios or not own
        yield _check(there, f"UEFI for {board.architecture}", what, ("verify",), get, mild=mild)
    boto3 = _check(bool(facts.boto3), "boto3", "ECR log-in", ("ECR", "AWS"), facts.boto3_by, mild=True)
    yield boto3.model_copy(update={"found": facts.boto3})


def _space(facts: Facts) -> Iterator[Check]:
    for role, wanted in (("output", _ROOM_FOR_OUTPUT), ("cache", _ROOM_FOR_CACHE)):
        free, folder = facts.free.get(role, 0), facts.folders.get(role, role)
        hint = f"free {(wanted - free) // GIB + 1} GiB below {folder}, or use another disk"
        purpose = f"{wanted // GIB} GiB are enough for a 4 GB image"
        check = _check(free >= wanted, f"space for {role}", purpose, ("bake",), hint, mild=True)
        yield check.model_copy(update={"found": f"{free // GIB} GiB in {folder}"})
