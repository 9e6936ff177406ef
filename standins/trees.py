"""Compare folder trees as precisely as a bake promises to reproduce them."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, fields
from pathlib import Path

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Node:
    """All that a layer can say about one path. ``links``: the first path (sorted) of those that share the file."""

    kind: str
    mode: int
    uid: int
    gid: int
    modified: int
    size: int = 0
    device: tuple[int, int] = (0, 0)
    target: bytes = b""
    content: str = ""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    links: bytes = b""


_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def scan(root: Path) -> dict[bytes, Node]:
    """Return every path below ``root`` (the root itself is ``b"."``) with all that can be known of it."""
    top = os.fsencode(root)
    nodes: dict[bytes, Node] = {b".": _node(top)}
    same: dict[tuple[int, int], list[bytes]] = {}
    pending = [b""]
    while pending:
        folder = pending.pop()
        with os.scandir(os.path.join(top, folder)) as entries:  # noqa: PTH118 (names are bytes)
            for entry in entries:
                path = folder + b"/" + entry.name if folder else entry.name
                nodes[path] = _node(entry.path)
                status = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif status.st_nlink > 1:
                    same.setdefault((status.st_dev, status.st_ino), []).append(path)
    for paths in same.values():
        if len(paths) > 1:
            for path in paths:
                nodes[path] = _with_links(nodes[path], min(paths))
    return nodes


def _with_links(node: Node, first: bytes) -> Node:
    values = {field.name: getattr(node, field.name) for field in fields(Node)}
    return Node(**{**values, "links": first})


def _node(path: bytes) -> Node:
    status = os.lstat(path)
    mode = status.st_mode
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return Node(
        kind=_KINDS[stat.S_IFMT(mode)],
        mode=stat.S_IMODE(mode),
        uid=status.st_uid,
        gid=status.st_gid,
        modified=status.st_mtime_ns,
        size=0 if stat.S_ISDIR(mode) else status.st_size,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)),
        target=os.readlink(path) if stat.S_ISLNK(mode) else b"",  # noqa: PTH115 (names are bytes)
        content=_digest(path) if stat.S_ISREG(mode) else "",
        xattrs=tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names),
    )


def _digest(path: bytes) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (names are bytes)
        while data := file.read(_BLOCK):
            digest.update(data)
    return digest.hexdigest()


def differences(
    left: dict[bytes, Node], right: dict[bytes, Node], *, ignore_times_of: frozenset[bytes] = frozenset({b"."})
) -> list[str]:
    """Return what differs, a line each, empty when the trees are equal.

    ``ignore_times_of``: paths whose modification time is a matter of when they were made, such as the root.
    """
    lines = []
    for path in sorted(left.keys() | right.keys()):
        a, b = left.get(path), right.get(path)
        if a is None or b is None:
            lines.append(f"{path!r}: only {'right' if a is None else 'left'}")
            continue
        for field in fields(Node):
            if field.name == "modified" and path in ignore_times_of:
                continue
            before, after = getattr(a, field.name), getattr(b, field.name)
            if before != after:
                lines.append(f"{path!r}: {field.name} {before!r} != {after!r}")
    return lines


def assert_equal(left: Path, right: Path, *, ignore_times_of: frozenset[bytes] = frozenset({b"."})) -> None:
    """Fail with all differences unless two trees are equal."""
    found = differences(scan(left), scan(right), ignore_times_of=ignore_times_of)
    assert not found, "\n".join([f"{left} and {right} differ:", *found[:50]])


def untouched(folder: Path) -> dict[str, object]:
    """Return a folder's state, which differs when anybody has written, renamed, linked or removed something in it."""
    found: dict[str, object] = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        status = path.lstat()
        kept = path.read_bytes() if path.is_file() else b""
        found[str(path)] = status.st_ino, status.st_mode, status.st_nlink, status.st_mtime_ns, status.st_ctime_ns, kept
    return found
