"""Folders below a root, reached one component at a time without following a symbolic link.

Names come from a hostile archive, and so do the symbolic links in the tree that it has written so far. Nothing here
hands a path with a slash to the kernel: every component is opened with ``O_NOFOLLOW`` relative to the folder before,
and links are read and resolved by us, bounded by the root, as containerd does (``fs.RootPath`` of
containerd/continuity). So no link can lead outside, and a path may be longer than the kernel's 4096 bytes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Final, NamedTuple

from parbake.errors import LayerError, LayerEscape

FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MOST_LINKS: Final = 255
"""Symbolic links that one name may lead over, as in containerd."""
MOST_DEPTH: Final = 256
_LONGEST: Final = 16384
_MOST_OPEN: Final = 128


def shown(path: bytes) -> str:
    """Return a path as text for people."""
    name = path.decode("utf-8", "backslashreplace")
    return repr(name if len(name) <= 200 else f"{name[:197]}...")


def clean(name: bytes) -> bytes:
    """Return a name relative to the root, without ``.``, ``..`` and doubled slashes; the root is empty.

    An absolute name counts from the root, as in containerd. Raises LayerEscape for a name that climbs above the root
    (containerd clamps it there; no tool writes such a name in good faith) and LayerError for one longer than any
    real one.
    """
    if name and name[0] not in b"/." and b"/." not in name and b"//" not in name and len(name) < _LONGEST:
        return name[:-1] if name[-1] == 0x2F else name
    if len(name) >= _LONGEST:
        raise LayerError(f"a name in the layer is {len(name)} bytes long: {shown(name)}")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise LayerEscape(
                    f"the layer has a name that leads outside its root: {shown(name)}",
                    hint="do not use this image: such a name is an attack or a broken build tool",
                )
            parts.pop()
        elif part not in {b"", b"."}:
            parts.append(part)
    return b"/".join(parts)


def clamp(name: bytes) -> bytes:
    """Return a symbolic link's target like ``clean``, but stop at the root, as a process in a container would."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in {b"", b"."}:
            parts.append(part)
    return b"/".join(parts)


def follow[T](wanted: bytes, step: Callable[[bytes], T | bytes | None]) -> T | None:
    """Go from symbolic link to symbolic link until there is something, or nothing.

    ``step`` returns what a name leads to, None for nothing, or the name that the first link on the way makes of it.
    Raises LayerError when there is no end.
    """
    name = wanted
    for _ in range(MOST_LINKS):
        found = step(name)
        if not isinstance(found, bytes):
            return found
        name = found
        if len(name) >= _LONGEST:
            raise LayerError(f"symbolic links make a name of {len(name)} bytes out of {shown(wanted)}")
    raise LayerError(f"too many symbolic links on the way to {shown(wanted)}")


def join(folder: bytes, name: bytes) -> bytes:
    """Join two cleaned, relative names; either may be empty."""
    return folder + b"/" + name if folder and name else folder or name


class Implied(Enum):
    """What entries say of a folder that an entry below it has implied."""

    BARE = "nothing"
    DATED = "only its times"
    """The entry of another folder, whose name leads here by now, set them: so it comes out in containerd."""
    DESCRIBED = "all"


class Place(NamedTuple):
    """An open folder: its descriptor and its path below the root, free of symbolic links."""

    handle: int
    path: bytes


class Folders:
    """Open folders below a root, kept for reuse (a bounded number). Use from one thread; ``close`` at the end."""

    def __init__(self, root: int) -> None:
        """``root`` is a descriptor of the root, which stays the caller's."""
        self.implied: dict[bytes, Implied] = {}
        """Folders that were made because something lies in them, and what entries have said of them since."""
        self.root = root
        self._root = Place(root, b"")
        self.known: dict[bytes, Place] = {b"": self._root}
        """By the name that was asked for, which may lead over links."""

    def find(self, name: bytes) -> Place | None:
        """Return the folder of a cleaned name, None when it is missing; raises LayerError when it is no folder."""
        return self.known.get(name) or self._walk(name, create=False)

    def make(self, name: bytes) -> Place:
        """Return the folder of a cleaned name, made (mode 0755) when missing, with those above it."""
        place = self.known.get(name) or self._walk(name, create=True)
        if place is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return place

    def _walk(self, wanted: bytes, *, create: bool) -> Place | None:
        found = follow(wanted, partial(self._step, create=create))
        if found is not None:
            self.known[wanted] = found
        return found

    def _step(self, name: bytes, *, create: bool) -> Place | bytes | None:
        """Go down to ``name``, or to the first symbolic link: then return the name that it makes of ``name``."""
        rest: list[bytes] = []
        head = name
        while head not in self.known:
            head, _, part = head.rpartition(b"/")
            rest.append(part)
        place = self.known[head]
        while rest:
            part = rest.pop()
            if place.path.count(b"/") >= MOST_DEPTH or len(self.known) > _MOST_OPEN + MOST_DEPTH:
                raise LayerError(f"the layer nests folders more than {MOST_DEPTH} deep: {shown(place.path)}")
            try:
                handle = self._open(part, place, create=create)
            except FileNotFoundError:
                return None
            except OSError as error:
                link = _read_link(part, place, error)
                above = b"" if link.startswith(b"/") else place.path
                return clamp(b"/".join([above, link, *reversed(rest)]))
            head, place = join(head, part), Place(handle, join(place.path, part))
            self.known[head] = place
        return place

    def _open(self, part: bytes, place: Place, *, create: bool) -> int:
        try:
            return os.open(part, FOLDER, dir_fd=place.handle)
        except FileNotFoundError:
            if not create:
                raise
        os.mkdir(part, 0o755, dir_fd=place.handle)
        handle = os.open(part, FOLDER, dir_fd=place.handle)
        os.fchmod(handle, 0o755)  # whatever the umask, and without a set-group-ID bit from the folder above
        self.implied[join(place.path, part)] = Implied.BARE
        return handle

    def trim(self) -> None:
        """Close the folders when there are many; places handed out before are then no longer open."""
        if len(self.known) > _MOST_OPEN:
            self.forget()

    def forget(self) -> None:
        """Close all folders; call it whenever something was removed, since a name may now mean another thing."""
        for handle in {place.handle for place in self.known.values()} - {self._root.handle}:
            os.close(handle)
        self.known = {b"": self._root}

    def close(self) -> None:
        """Close all folders that are open."""
        self.forget()


def _read_link(part: bytes, place: Place, error: OSError) -> bytes:
    """Return the target of what could not be opened as a folder; raises LayerError when it is no link either."""
    if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
        raise error
    try:
        return os.readlink(part, dir_fd=place.handle)
    except OSError:
        raise LayerError(f"the layer puts something into {shown(join(place.path, part))}, which is no folder") from None
