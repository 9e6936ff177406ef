"""Disk images, named for QEMU's programs: the format is found here, and nothing but the file itself is opened.

An image of somebody else's may name further files, devices or network connections as its backing file, as the place of
its data or as its extents, and QEMU would open them for whoever asks what the image is. So its head is read here first,
and QEMU gets the format, ``file.driver=file`` and no backing file in words of its own. Sources: QEMU's
``docs/interop/qcow2.rst`` and ``block/vmdk.c``; VMware, "Virtual Disk Format 5.0"; QEMU's manual, ``-blockdev``.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from pathlib import Path
from typing import IO, Any, Final

from parbake.core.errors import BadBase, CommandFailed, InputError
from parbake.core.run import run

_PACKED: Final = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
}
_HEAD: Final = 512
_VHD: Final = b"conectix"  # of a dynamic VHD at the start as well, of a fixed one only at the end
_VHD_FOOTER: Final = 512
_VDI: Final = (64, b"\x7f\x10\xda\xbe")
_QCOW2: Final = struct.Struct(">4sIQI")  # magic, version, where the backing file's name lies, its length
_QCOW2_FEATURES: Final = (72, struct.Struct(">Q"))  # incompatible ones, from version 3 on
_QCOW2_DATA_FILE: Final = 1 << 2
_VMDK: Final = struct.Struct("<4sIIQQQQ")  # magic, version, flags, capacity, grain, where a descriptor lies, its length
_VMDK_TEXT: Final = re.compile(rb"(?im)^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+\w+\s+\"([^\"\n]*)")
_VMDK_PARENT: Final = re.compile(rb"(?i)parentFileNameHint[^\"\n]*\"?([^\"\n]*)")
_VMDK_DESCRIPTOR: Final = 20 * 512  # bytes of it that QEMU reads
_VMDK_USUAL: Final = 512  # where QEMU looks for the name of a parent
_NAME: Final = 200  # characters of a name that an error shows
_BACKED: Final = frozenset({"qcow2", "vmdk"})


def probe(image: Path) -> str:
    """Return what a disk image is in QEMU's words: raw, qcow2, vmdk, vpc, vhdx or vdi. What has no mark is raw.

    Raises InputError unless it is a regular file, BadBase for an image that refers to other files, for one of another
    format that can, and for a compressed file.
    """
    with _open(image) as file:
        head = file.read(_HEAD)
        file.seek(-min(_VHD_FOOTER, os.fstat(file.fileno()).st_size), os.SEEK_END)
        tail = file.read(len(_VHD))
    for magic, packer in _PACKED.items():
        if head.startswith(magic):
            raise BadBase(f"{image} is compressed with {packer}", hint="unpack it first")
    found = _format(head, tail)
    if found in {"qcow", "qed"}:
        raise BadBase(f"{image} has the format {found}, which parbake does not read", hint=_convert(image, found))
    alone(image, found)
    return found


def _format(head: bytes, tail: bytes) -> str:
    """Return the format by its marks. Pure."""
    if head.startswith(b"QFI\xfb"):
        return "qcow" if head[4:8] == b"\0\0\0\x01" else "qcow2"
    if head.startswith((b"KDMV", b"COWD")) or b"# Disk DescriptorFile" in head:
        return "vmdk"
    if head.startswith(b"QED\0"):
        return "qed"
    if head.startswith(b"vhdxfile"):
        return "vhdx"
    if head[_VDI[0] :].startswith(_VDI[1]):
        return "vdi"
    return "vpc" if _VHD in {head[: len(_VHD)], tail} else "raw"


def alone(image: Path, format_: str) -> None:
    """Make sure that an image of a format names nothing outside itself; raises BadBase, InputError.

    The other formats name nothing, or parents that QEMU does not follow (vhdx, vdi).
    """
    if format_ not in _BACKED:
        return
    with _open(image) as file:
        other = _of_qcow2(file) if format_ == "qcow2" else _of_vmdk(file)
    if other is not None:
        shown = other.decode(errors="replace").strip("\0")[:_NAME]
        raise BadBase(f"{image} refers to another file ({shown})", hint=_convert(image, format_))


def _convert(image: Path, format_: str) -> str:
    command = f"qemu-img convert -f {format_} -O qcow2 {image.name} whole.qcow2"
    return f"if you trust it, make it self-contained first: {command}"


def _open(image: Path) -> IO[bytes]:
    try:
        # A pipe would wait for its other end.
        handle = os.open(image, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InputError(f"{image}: {error.strerror}", hint="name a file that can be read") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError(f"{image} is not a regular file", hint="name a disk image, not a device or a folder")
    return os.fdopen(handle, "rb")


def _of_qcow2(file: IO[bytes]) -> bytes | None:
    """Return the name of another file that an image in qcow2 needs, None for none; no qcow2 needs none."""
    head = file.read(_HEAD)
    if len(head) < _QCOW2.size or not head.startswith(b"QFI\xfb"):
        return None  # QEMU, which is told that it is qcow2, refuses it
    _, version, where, length = _QCOW2.unpack_from(head)
    if where:
        file.seek(min(where, os.fstat(file.fileno()).st_size))
        return file.read(min(length, _HEAD * 2))
    at, features = _QCOW2_FEATURES
    if version >= 3 and len(head) >= at + features.size and features.unpack_from(head, at)[0] & _QCOW2_DATA_FILE:
        extension = head.find(b"DATA", at)
        length = int.from_bytes(head[extension + 4 : extension + 8]) if extension >= 0 else 0
        return head[extension + 8 : extension + 8 + length] or b"a data file"
    return None


def _of_vmdk(file: IO[bytes]) -> bytes | None:
    """Return the name of another file that an image in VMDK needs, None for none."""
    head = file.read(_VMDK_DESCRIPTOR)
    if not head.startswith((b"KDMV", b"COWD")):  # a text that names the extents
        named = _VMDK_TEXT.search(head)
        return named[1] if named else b"its extents"
    places = {_VMDK_USUAL}
    if head.startswith(b"KDMV") and len(head) >= _VMDK.size:
        _, _, _, capacity, _, descriptor, _ = _VMDK.unpack_from(head)
        if capacity == 0:  # the extents are those that its descriptor names
            return b"its extents"
        places.add(min(descriptor * 512, os.fstat(file.fileno()).st_size))
    for place in places:
        file.seek(place)
        parent = _VMDK_PARENT.search(file.read(_VMDK_DESCRIPTOR))
        if parent:
            return parent[1] or b"its parent"
    return None


def tree(format_: str, filename: str | Path, *, read_only: bool = True, **file_options: Any) -> dict[str, Any]:
    """Return what QEMU is to open, for ``-blockdev``: one file in one format, and nothing besides it. Pure."""
    file = {"driver": "file", "filename": str(filename), "read-only": read_only, **file_options}
    nothing = {"backing": None} if format_ in _BACKED else {}
    return {"driver": format_, "read-only": read_only, "file": file, **nothing}


def name(format_: str, image: Path) -> str:
    """Return the complete name of an image for qemu-img (``json:``). Pure."""
    file = {"driver": "file", "filename": str(image.absolute())}
    nothing = {"backing": None} if format_ in _BACKED else {}
    return "json:" + json.dumps({"driver": format_, "file": file, **nothing})


def inspect(image: Path, format_: str = "") -> dict[str, Any]:
    """Return what ``qemu-img info`` says of an image that names nothing outside itself.

    Its format is found where none is given. Raises what ``probe`` does, and BadBase for what qemu-img cannot read.
    """
    if format_:
        alone(image, format_)
    else:
        format_ = probe(image)
    try:
        shown = run(["qemu-img", "info", "--output=json", name(format_, image)], timeout=60)
    except CommandFailed as error:
        raise BadBase(
            f"{image} is not a disk image that qemu-img can read\n{error.output}", hint="give raw or qcow2"
        ) from error
    info: dict[str, Any] = json.loads(shown.stdout)
    return info


def overlay(image: Path, format_: str, target: Path) -> None:
    """Make a qcow2 file as large as an image's disk, to be opened above it (``above``); it names nothing.

    Raises what ``inspect`` does.
    """
    size = inspect(image, format_)["virtual-size"]
    run(["qemu-img", "create", "-q", "-f", "qcow2", str(target), str(size)])


def commit(image: Path, format_: str, target: Path) -> None:
    """Write what an overlay (``target``) holds into the image below it; raises CommandFailed."""
    graph = above(tree(format_, image.absolute(), read_only=False), target.absolute())
    run(["qemu-img", "commit", "-q", "json:" + json.dumps(graph)], timeout=7200)


def above(base: dict[str, Any], filename: str | Path, **file_options: Any) -> dict[str, Any]:
    """Return what QEMU is to open for an overlay in qcow2 that takes the writes to ``base`` (see ``tree``). Pure."""
    return {**tree("qcow2", filename, read_only=False, **file_options), "backing": base}
