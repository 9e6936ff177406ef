"""Images that hold everything that layers may hold: for comparing what becomes of them.

images = variety()                       # name to image, such as "app:many-layers"
push_all(registry.url, images)           # each as team/<name>
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from standins.images import Built, image, index, push
from standins.tars import archive, entry, pad, pax

# Set the permitted and the effective set to CAP_NET_RAW (linux/capability.h, struct vfs_cap_data, revision 2).
NET_RAW = bytes.fromhex("0100000200200000000000000000000000000000")
_MTIME = 1_600_000_000


def folder(name: bytes, mode: int = 0o755, **fields: object) -> bytes:
    return entry(name + b"/", b"5", b"", **{"mode": mode, "mtime": _MTIME, **fields})


def file(name: bytes, data: bytes = b"", mode: int = 0o644, **fields: object) -> bytes:
    return entry(name, b"0", data, **{"mode": mode, "mtime": _MTIME, **fields})


def busybox_layer(*more: bytes) -> bytes:
    """Return a layer with a shell, so that containers of the image can start."""
    program = shutil.which("busybox")
    assert program, "apt-get install busybox-static"
    return archive(
        folder(b"bin"),
        file(b"bin/busybox", Path(program).read_bytes(), 0o755),
        entry(b"bin/sh", b"2", link=b"busybox", mtime=_MTIME),
        *more,
    )


BOTTOM = archive(
    folder(b"etc"),
    file(b"etc/hosts", b"127.0.0.1 localhost\n"),
    file(b"etc/gone", b"a whiteout takes this away\n"),
    folder(b"opt"),
    folder(b"opt/tool"),
    file(b"opt/tool/old", b"an opaque folder hides this\n"),
    folder(b"opt/tool/deep"),
    file(b"opt/tool/deep/old", b"and this\n"),
    folder(b"srv", 0o2775, uid=1000, gid=1001),
    file(b"srv/shared", b"a link takes its place\n" * 50, uid=1000, gid=1001),
    entry(b"lib", b"2", link=b"usr/lib", mtime=_MTIME),
    folder(b"usr"),
    folder(b"usr/lib"),
    file(b"usr/lib/libc", b"a link leads here\n"),
)
WHITEOUTS = archive(
    file(b"etc/.wh.gone"),
    folder(b"opt/tool", 0o700),
    file(b"opt/tool/.wh..wh..opq"),
    file(b"opt/tool/new", b"what an opaque folder shows\n"),
    file(b"usr/lib/.wh.libc"),
    folder(b"usr/lib"),
    file(b"srv/.wh.nothing-was-here"),
)
REPLACED = archive(
    file(b"opt/tool", b"a file where a folder was\n"),
    folder(b"etc/hosts"),
    file(b"etc/hosts/inside", b"a folder where a file was\n"),
    entry(b"srv/shared", b"2", link=b"/etc/hosts/inside", mtime=_MTIME),
)
LINKS = archive(
    file(b"one", b"three names\n"),
    entry(b"two", b"1", link=b"one", mtime=_MTIME),
    folder(b"sub"),
    entry(b"sub/three", b"1", link=b"/one", mtime=_MTIME),
    file(b"lib/plugin", b"written through a link of the layer below\n"),
    entry(b"dangling", b"2", link=b"/no/such/place", mtime=_MTIME),
    entry(b"linked-symlink", b"1", link=b"dangling", mtime=_MTIME),
    entry(b"l" * 120, b"2", link=b"t" * 300, mtime=_MTIME),
)
SPECIAL = archive(
    folder(b"dev"),
    entry(b"dev/null", b"3", mode=0o666, device=(1, 3), mtime=_MTIME),
    entry(b"dev/far", b"3", mode=0o600, device=(259, 70_000), mtime=_MTIME),
    entry(b"dev/disk", b"4", mode=0o660, gid=6, device=(8, 1), mtime=_MTIME),
    entry(b"dev/initctl", b"6", mode=0o600, mtime=_MTIME),
    file(b"su", b"#!/bin/sh\n", 0o4755),
    file(b"write", b"#!/bin/sh\n", 0o2755, gid=5),
    file(b"none", b"nobody may\n", 0o000),
    folder(b"tmp", 0o1777),
    pax({b"SCHILY.xattr.security.capability": NET_RAW}),
    file(b"ping", b"#!/bin/sh\n", 0o755),
    pax({b"SCHILY.xattr.user.note": b"with a \0 in it", b"SCHILY.xattr.user.empty": b""}),
    file(b"noted", b"attributes\n"),
    pax({b"SCHILY.xattr.user.folder": b"too"}),
    folder(b"noted.d"),
    pax({b"uid": b"4000000000", b"gid": b"3999999999"}),
    file(b"far-owner", b"ids beyond what ustar holds\n"),
)
NAMES = archive(
    folder(b"n" * 255),
    file(b"n" * 255 + b"/" + b"m" * 255, b"GNU long name\n"),
    pax({b"path": b"/".join([b"d" * 200] * 4) + b"/pax"}),
    file(b"short", b"PAX long name, parents that no entry describes\n"),
    file(b"\xff\xfe not UTF-8 \x80", b"bytes\n"),
    file("größe 尺寸".encode(), b"UTF-8\n"),
    file(b"new\nline and \\ and \"", b"odd\n"),
    file(b"./dotted//twice/./file", b"a name that is not clean\n"),
    pax({b"mtime": b"1700000000.123456789", b"atime": b"1700000001.5"}),
    file(b"precise", b"nanoseconds\n"),
    pax({b"mtime": b"-86400.25"}),
    file(b"before-1970", b"old\n"),
    pax({b"mtime": b"4294967297.000000001"}),
    file(b"after-2106", b"young\n"),
    pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"sparse",
         b"GNU.sparse.realsize": b"1000000"}),
    file(b"x", pad(b"2\n10\n3\n4096\n5\n") + b"abcdefgh"),
)  # fmt: skip
EMPTY = archive()


def variety() -> dict[str, Built]:
    """Return images by name and tag."""
    many = [archive(file(b"step-%d" % step, b"%d\n" % step), file(b"latest", b"%d\n" % step)) for step in range(12)]
    shell = busybox_layer(file(b"greeting", b"hello from the index\n"))
    runs = {"Cmd": ["/bin/busybox", "cat", "/greeting"], "Env": ["PATH=/bin"]}
    return {
        "one:1": image(BOTTOM, compression="none"),
        "many:1": image(BOTTOM, *many),
        "sharing:1": image(BOTTOM, WHITEOUTS, REPLACED, LINKS),  # an engine may unpack BOTTOM once for all three
        "whiteouts:1": image(BOTTOM, WHITEOUTS, compression="zstd"),
        "links:1": image(BOTTOM, LINKS, compression="none"),
        "special:1": image(SPECIAL, docker=True),
        "names:1": image(NAMES, compression="zstd"),
        "empty:1": image(EMPTY, BOTTOM, EMPTY, EMPTY),
        "repeated:1": image(BOTTOM, WHITEOUTS, BOTTOM, WHITEOUTS),
        "index:1": index(
            image(shell, config=runs),
            image(BOTTOM, platform="linux/arm64/v8"),
            image(BOTTOM, platform="linux/arm/v7"),
        ),
        "list:1": index(
            image(BOTTOM, platform="linux/arm64", docker=True),
            image(BOTTOM, SPECIAL, docker=True),
            docker=True,
        ),
    }


def push_all(url: str, images: Mapping[str, Built]) -> None:
    """Push each image as ``team/<name>``."""
    for name, built in images.items():
        repository, _, tag = name.partition(":")
        push(url, f"team/{repository}", built, tag)
