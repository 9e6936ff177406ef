"""The sandbox (pause) image: the smallest program that may be the first process of a pod, as an OCI layout.

Every pod begins with a container of this image, so a node that has the application's image and not this one starts
nothing. parbake brings its own for nodes that it configures itself (the default base, fresh volumes). The program is
put together here, instruction by instruction, so that the image has the same digest on any machine and exists for
arm64 as well. It blocks all signals and waits for them: children are reaped, SIGTERM and SIGINT end it.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from parbake.core.errors import InputError
from parbake.core.files import read_file
from parbake.core.model import Platform
from parbake.core.workspace import lock, publish, remove_leftovers, remove_tree, work_folder

REFERENCE: Final = "localhost/parbake/pause:1"

# Each line: machine code, then what it says. The block is position-independent and ends with the set of all signals.
_AMD64 = """
b80e000000      mov   $14, %eax             # rt_sigprocmask(SIG_SETMASK, all, NULL, 8)
bf02000000      mov   $2, %edi
488d3558000000  lea   all(%rip), %rsi
31d2            xor   %edx, %edx
41ba08000000    mov   $8, %r10d
0f05            syscall
b880000000      next: mov $128, %eax        # rt_sigtimedwait(all, NULL, NULL, 8)
488d3d42000000  lea   all(%rip), %rdi
31f6            xor   %esi, %esi
31d2            xor   %edx, %edx
41ba08000000    mov   $8, %r10d
0f05            syscall
83f811          cmp   $17, %eax             # SIGCHLD
7413            je    reap
83f80f          cmp   $15, %eax             # SIGTERM
7405            je    end
83f802          cmp   $2, %eax              # SIGINT
75d9            jne   next
b83c000000      end:  mov $60, %eax         # exit(0)
31ff            xor   %edi, %edi
0f05            syscall
b83d000000      reap: mov $61, %eax         # wait4(-1, NULL, WNOHANG, NULL)
48c7c7ffffffff  mov   $-1, %rdi
31f6            xor   %esi, %esi
ba01000000      mov   $1, %edx
4531d2          xor   %r10d, %r10d
0f05            syscall
85c0            test  %eax, %eax
7fe4            jg    reap
ebb2            jmp   next
ffffffffffffffff  all: .quad -1
"""
_ARM64 = """
e81080d2  mov  x8, #135                     # rt_sigprocmask(SIG_SETMASK, all, NULL, 8)
400080d2  mov  x0, #2
81030010  adr  x1, all
020080d2  mov  x2, #0
030180d2  mov  x3, #8
010000d4  svc  #0
281180d2  next: mov x8, #137                # rt_sigtimedwait(all, NULL, NULL, 8)
e0020010  adr  x0, all
010080d2  mov  x1, #0
020080d2  mov  x2, #0
030180d2  mov  x3, #8
010000d4  svc  #0
1f440071  cmp  w0, #17                      # SIGCHLD
00010054  b.eq reap
1f3c0071  cmp  w0, #15                      # SIGTERM
60000054  b.eq end
1f080071  cmp  w0, #2                       # SIGINT
a1feff54  b.ne next
a80b80d2  end:  mov x8, #93                 # exit(0)
000080d2  mov  x0, #0
010000d4  svc  #0
882080d2  reap: mov x8, #260                # wait4(-1, NULL, WNOHANG, NULL)
00008092  mov  x0, #-1
010080d2  mov  x1, #0
220080d2  mov  x2, #1
030080d2  mov  x3, #0
010000d4  svc  #0
1f000071  cmp  w0, #0
2cffff54  b.gt reap
e9ffff17  b    next
ffffffffffffffff  all: .quad -1
"""
# ELF machine numbers (elf(5)) and programs.
_PROGRAMS: Final = {"amd64": (62, _AMD64), "arm64": (183, _ARM64)}
_LOAD_ADDRESS = 0x400000
_PAGE = 0x10000  # arm64 kernels may use pages of 64 KiB
_HEADERS = 64 + 56
_USER = "65535:65535"  # no user of any image


def available(platform: Platform) -> bool:
    """Say whether there is a pause program for this platform."""
    return platform.os == "linux" and platform.architecture in _PROGRAMS


def program(architecture: str) -> bytes:
    """Return the static ELF program; raises InputError for an architecture without one."""
    if architecture not in _PROGRAMS:
        raise InputError(
            f"parbake has no pause program for {architecture}",
            hint="set `sandbox` to the pause image that the nodes' containerd is configured with, or to none",
        )
    machine, listing = _PROGRAMS[architecture]
    code = b"".join(bytes.fromhex(line.split()[0]) for line in listing.strip().splitlines())
    size = _HEADERS + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, machine, 1, _LOAD_ADDRESS + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, _PAGE)
    return header + segment + code


def layout(folder: Path, platform: Platform) -> Path:
    """Make sure that the image lies below ``folder`` as an OCI layout, and return the layout's path.

    The same bytes on any machine. Raises InputError for a platform without a pause program.
    """
    content = _content(platform)
    target = folder / f"{platform.architecture}-{hashlib.sha256(content['index.json']).hexdigest()[:12]}"
    if _is_there(target, content):
        return target
    with lock(folder / "lock", what="the pause image"):
        if not _is_there(target, content):
            remove_leftovers(folder)
            remove_tree(target)  # somebody has changed it
            with work_folder(folder, "pause") as work:
                for name, data in content.items():
                    path = work / "layout" / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
                publish(work / "layout", target)
    return target


def _is_there(target: Path, content: Mapping[str, bytes]) -> bool:
    with suppress(OSError):
        return all(read_file(target / name, len(data)) == data for name, data in content.items())
    return False


def _content(platform: Platform) -> dict[str, bytes]:
    """Return the files of the layout by their path (OCI image specification, image-layout.md)."""
    layer = _layer(program(platform.architecture))
    files: dict[str, bytes] = {}

    def blob(media_type: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        files[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(data)}

    config = {
        "architecture": platform.architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Entrypoint": ["/pause"], "User": _USER, "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "parbake"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", _json(config)),
        "layers": [blob("layer.v1.tar", layer)],
    }
    entry = blob("manifest.v1+json", _json(manifest))
    entry["annotations"] = {"org.opencontainers.image.ref.name": REFERENCE}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    return {**files, "oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": _json(index)}


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _layer(pause: bytes) -> bytes:
    import tarfile  # loads only where the image is made

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        entry = tarfile.TarInfo("pause")
        entry.mode, entry.size = 0o755, len(pause)
        archive.addfile(entry, io.BytesIO(pause))
    return buffer.getvalue()
