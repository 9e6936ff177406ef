"""Folders below a root, reached one component at a time without following a symbolic link.

Names come from a hostile archive, and so do the symbolic links in the tree that it has written so far. Nothing here
hands a path with a slash to the kernel: every component is opened with ``O_NOFOLLOW`` relative to the folder before,
and links are read and resolved by us, bounded by the root, as containerd does (``fs.RootPath`` of
containerd/continuity). So no link can lead outside, and a path may be longer than the kernel's 4096 bytes.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from enum import Flag, auto
from typing import Final, NamedTuple

from parbake.core.errors import LayerBomb, LayerError, LayerEscape

SLASH: Final = 0x2F
FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MOST_LINKS: Final = 255
"""Symbolic links that one name may lead over, as in containerd."""
MOST_DEPTH: Final = 256
LONGEST_NAME: Final = 255
LONGEST_FOLDER: Final = 3712
"""Bytes of a folder's path: with a name in it and containerd's own folders above it, the kernel takes 4,095."""
_LONGEST: Final = 16384
_MOST_KERNEL_LINKS: Final = 40  # path_resolution(7)
_MOST_STEPS: Final = 16 << 20  # a second or two of looking where symbolic links lead
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
        return name[:-1] if name[-1] == SLASH else name
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


def join(folder: bytes, name: bytes) -> bytes:
    """Join two cleaned, relative names; either may be empty."""
    return folder + b"/" + name if folder and name else folder or name


def no_name(folder: bytes, name: bytes) -> LayerError:
    """Return the error for a name in a folder that Linux does not accept."""
    return LayerError(
        f"{shown(join(folder, name))}: a name of {len(name)} bytes; {LONGEST_NAME} is the most, and none is NUL"
    )


class Implied(Flag):
    """What is known of a folder that an entry below it has implied; none of it: nothing has been said of it."""

    NESTED = auto()
    """It was made in a folder of which no entry had said anything by then."""
    DATED = auto()
    """The entry of another folder, whose name leads here by now, set its times: so it comes out in containerd."""
    DESCRIBED = auto()
    """It has an entry of its own by now."""
    UID_LEFT = auto()
    """It has an entry, but none that says whose it is (an owner of -1 leaves it)."""
    GID_LEFT = auto()
    GROUP_LEFT = auto()
    """Something without a group of its own (-1) may have been made in it before an entry described it."""
    GROUP_UNKNOWN = auto()
    """The same after such an entry, which left the folder's own group as it was."""
    GONE = auto()
    """It was removed again; containerd has looked for it below all the same, and what has a hard link elsewhere is left
    of it."""


def hands_down(path: bytes) -> LayerError:
    """Return the error for an implied folder whose namesake below has a default ACL.

    containerd gives the ACL to the folder at once, so that it comes to all that the layer puts there; here layers are
    unpacked before those below are known.
    """
    return LayerError(
        f"{shown(path)}: a layer below hands down an ACL here, and this one describes its files before the folder",
        hint="build the image with a tool that writes an entry for each folder, or without default ACLs",
    )


def check_group(path: bytes, known: Implied, mode: int, group: int) -> None:
    """Refuse what would have inherited the group of an implied folder, which was not known when it was made.

    ``mode`` is that of the namesake below, 0 without one; ``group`` the folder's own. Raises LayerError.
    """
    if group and (known & Implied.GROUP_UNKNOWN or (known & Implied.GROUP_LEFT and mode & stat.S_ISGID)):
        raise LayerError(
            f"{shown(path)}: a layer below hands down its group here, and this one has a file without a group (-1)",
            hint="build the image with a tool that writes an owner for each file",
        )


class MadeFolders:
    """Groups of implied folders: a folder with the set-group-ID bit hands its group down to those made in it."""

    def __init__(self) -> None:
        self._folders: dict[bytes, tuple[int, int]] = {}

    def add(self, path: bytes, known: Implied, below: tuple[int, int] | None) -> int:
        """Take the next folder, in the order in which they were made, with mode and group of the one below.

        Returns the group with which it was made; 0 also where that was seen while it was made.
        """
        if below is None:
            mode, group = self._folders.get(path.rpartition(b"/")[0], (0, 0)) if known & Implied.NESTED else (0, 0)
            below = 0, group if mode & stat.S_ISGID else 0
        self._folders[path] = below
        return below[1]


class OpenFolder(NamedTuple):
    """An open folder: its descriptor and its path below the root, free of symbolic links."""

    handle: int
    path: bytes


class Resolver[P: tuple[object, bytes]](ABC):
    """Finds the folders of names that may lead over symbolic links, exactly as containerd does.

    A place is a folder and its path below the root, free of symbolic links. A name that begins with a slash counts from
    the root too, but may lead elsewhere: there containerd cleans what a relative link right below the root says by its
    text, so that ``..`` in it does not go up from where the folder before it leads.
    """

    def __init__(self, root: P) -> None:
        self.top = root
        self.implied: dict[bytes, Implied] = {}
        """Folders that were made because something lies in them, and what entries have said of them since."""
        self.known: dict[bytes, P] = {b"": root}
        """By the name that was asked for, which may lead over links, and by their own paths."""
        self._lasts = True
        """Whether what was resolved last stays so until a folder or a link is removed."""
        self._steps = _MOST_STEPS

    @abstractmethod
    def enter(self, place: P, name: bytes) -> P | bytes | None:
        """Return a folder in a folder, None when it is missing, the target when it is a symbolic link.

        Raises LayerError for anything else.
        """

    @abstractmethod
    def link(self, place: P, name: bytes) -> bytes | None:
        """Return the target of a symbolic link in a folder, None for anything else and for nothing."""

    @abstractmethod
    def imply(self, place: P, name: bytes) -> P:
        """Make a folder in a folder, with mode 0755."""

    def trim(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of what only costs; places handed out before may then be of no use."""

    def find(self, name: bytes) -> P | None:
        """Return the folder of a cleaned name (which may begin with a slash), None when it is missing.

        Raises LayerError for anything else there.
        """
        return self.known.get(name) or self._walk(name, create=False)

    def make(self, name: bytes) -> P:
        """Return the folder of a cleaned name, made (mode 0755) when missing, with those above it."""
        place = self.known.get(name) or self._walk(name, create=True)
        if place is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return place

    def split(self, name: bytes) -> tuple[P | None, bytes]:
        """Return the folder (None when it is missing) and the name there of what a name leads to, links followed.

        The name is empty for the root. Raises LayerError.
        """
        head, _, base = self.resolve(name).rpartition(b"/")
        return self.find(head), base

    def source(self, name: bytes) -> tuple[P | None, bytes]:
        """Return folder and name of what a hard link leads to: links are followed on the way, but not at its end.

        As in containerd (``hardlinkRootPath``), links are followed at its end too when a slash comes after it. The
        name is empty for what can only be a folder. Raises LayerError, LayerEscape.
        """
        above = clean(name).rpartition(b"/")[0]  # says so when it leads outside
        head, _, base = name.rpartition(b"/")
        if base == b"..":
            return None, b""
        if base in {b"", b"."}:
            return self.split(head)
        return self.find(head if head in {above, b"/" + above} else self.resolve(head)), base

    def resolve(self, wanted: bytes) -> bytes:
        """Return the path without symbolic links that a name leads to, whether or not something is there.

        The same steps, in the same order, as those of containerd (``fs.RootPath`` of containerd/continuity): it
        substitutes links from left to right and begins anew until there is none, it cleans what a relative link says
        by its text alone, and it lets the kernel follow the links that one round has left on the way. Where that leads
        outside (containerd would look at the host's files there) nothing is found.

        Raises LayerError when there is no end, or something that is not a folder in the way.
        """
        path, walked, before, self._lasts = wanted, 0, -1, True
        while walked != before:
            before = walked
            self.trim()
            path, walked = self._round(path, walked, wanted)
            if len(path) >= _LONGEST:
                raise LayerError(f"symbolic links make a name of {len(path)} bytes out of {shown(wanted)}")
        return _clamped(path)

    def _round(self, path: bytes, walked: int, wanted: bytes) -> tuple[bytes, int]:
        """Substitute the links of a path, each once; return the path then, and how many they are with those before."""
        here = path[:1] if path.startswith(b"/") else b""
        for part in path.split(b"/"):
            if not part:
                continue
            if walked > MOST_LINKS:
                raise LayerError(f"too many symbolic links on the way to {shown(wanted)}")
            cleaned = _clamped(here + b"/" + part)
            target = self._looked_at(cleaned, wanted) if cleaned else None
            if target is None:
                here = b"/" + cleaned
                continue
            walked += 1
            if here and not target.startswith(b"/"):
                target = b"/" + _clamped(here + b"/" + target)
            here = target
        return here, walked

    def _looked_at(self, path: bytes, wanted: bytes) -> bytes | None:
        """Return the target of a symbolic link, None when there is none, as ``lstat`` below the root would see it."""
        head, _, base = path.rpartition(b"/")
        if len(head) > LONGEST_FOLDER:
            raise _too_long(head)
        place = self._followed(head, wanted)
        at = b"" if place is None else join(place[1], base)
        if at and (own := self.known.get(at)) and own[1] == at:
            return None
        target = None if place is None else self.link(place, base)
        if target is None:
            self._lasts = False  # where nothing is now, or a file, something else may be put
        return target

    def _followed(self, path: bytes, wanted: bytes) -> P | None:
        """Return the folder of a path as the kernel finds it, following links; None for nothing, and for outside."""
        place, links = self.top, 0
        rest = path.split(b"/")[::-1]
        while rest:
            self._steps -= 1
            if self._steps < 0:
                raise LayerBomb(f"its symbolic links lead over more than {_MOST_STEPS} folders")
            part = rest.pop()
            if part in {b"", b"."}:
                continue
            if part == b"..":
                if not place[1]:
                    return None
                rest.extend(place[1].split(b"/")[-2::-1])
                place = self.top
                continue
            found = self._entered(place, part)
            if found is None:
                return None
            if not isinstance(found, bytes):
                place = found
                continue
            links += 1
            if links > _MOST_KERNEL_LINKS:
                raise LayerError(f"too many symbolic links on the way to {shown(wanted)}")
            if found.startswith(b"/"):
                return None
            rest.extend(found.split(b"/")[::-1])
        return place

    def _entered(self, place: P, name: bytes) -> P | bytes | None:
        path = join(place[1], name)
        found = self.known.get(path)
        return self.enter(place, name) if found is None or found[1] != path else found

    def described(self, path: bytes, uid: int, gid: int) -> None:
        """Remember that an entry has described a folder; an owner of -1 leaves what was there."""
        known = self.implied.get(path, Implied.GONE)
        if known & Implied.GONE:
            return
        left = known & (Implied.UID_LEFT | Implied.GID_LEFT)
        if not known & Implied.DESCRIBED:
            left = Implied.UID_LEFT | Implied.GID_LEFT
        said = (Implied.UID_LEFT if uid >= 0 else Implied(0)) | (Implied.GID_LEFT if gid >= 0 else Implied(0))
        kept = known & (Implied.NESTED | Implied.DATED | Implied.GROUP_LEFT | Implied.GROUP_UNKNOWN)
        self.implied[path] = kept | Implied.DESCRIBED | left & ~said

    def group_left(self, path: bytes) -> None:
        """Remember that an entry without a group of its own (-1) comes into a folder."""
        known = self.implied.get(path, Implied.GONE)
        if known & Implied.GONE:
            return
        if not known & Implied.DESCRIBED:
            self.implied[path] = known | Implied.GROUP_LEFT
        elif known & Implied.GID_LEFT:
            self.implied[path] = known | Implied.GROUP_UNKNOWN

    def dated(self, path: bytes) -> None:
        """Remember that an entry has set the times of a folder."""
        known = self.implied.get(path, Implied.GONE)
        if not known & Implied.GONE:
            self.implied[path] = known | Implied.DATED

    def gone(self, path: bytes) -> None:
        """Remember that a folder was removed, with all in it but for what has a hard link elsewhere."""
        for known in self.implied:
            if known == path or known.startswith(path + b"/"):
                kept = self.implied[known] & (Implied.NESTED | Implied.GROUP_LEFT | Implied.GROUP_UNKNOWN)
                self.implied[known] = kept | Implied.GONE

    def _walk(self, wanted: bytes, *, create: bool) -> P | None:
        found = self._down(wanted, create=create)
        lasts = True
        if isinstance(found, bytes):
            found = self._down(self.resolve(wanted), create=create)
            assert not isinstance(found, bytes)
            lasts = self._lasts
        if found is not None and lasts:
            self.known[wanted] = found
        return found

    def _down(self, name: bytes, *, create: bool) -> P | bytes | None:
        """Go down to ``name``, or to the first symbolic link, whose target is returned."""
        rest: list[bytes] = []
        head = name
        # A place that is known by a name over links cannot start longer names: see ``resolve``.
        while (place := self.known.get(head, self.top))[1] != head:
            head, _, part = head.rpartition(b"/")
            rest.append(part)
        while rest:
            part = rest.pop()
            if place[1].count(b"/") >= MOST_DEPTH:
                raise LayerError(f"the layer nests folders more than {MOST_DEPTH} deep: {shown(place[1])}")
            if len(place[1]) + len(part) >= LONGEST_FOLDER:
                raise _too_long(place[1])
            found = self._entered(place, part)
            if isinstance(found, bytes):
                return found
            if found is None:
                if not create:
                    return None
                found = self.imply(place, part)
                around = self.implied.get(place[1], Implied.DESCRIBED)
                kept = self.implied.pop(found[1], Implied(0)) & (Implied.GROUP_LEFT | Implied.GROUP_UNKNOWN)
                nested = Implied(0) if around & (Implied.DESCRIBED | Implied.GONE) else Implied.NESTED
                self.implied[found[1]] = kept | nested
            head, place = join(head, part), found
            self.known[place[1]] = self.known[head] = place
        return place


def _too_long(path: bytes) -> LayerError:
    return LayerError(f"a folder's path is longer than {LONGEST_FOLDER} bytes: {shown(path)}")


def _clamped(path: bytes) -> bytes:
    """Return a path relative to the root without ``.``, ``..`` and doubled slashes; it stops at the root."""
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in {b"", b"."}:
            parts.append(part)
    return b"/".join(parts)


class OpenFolders(Resolver[OpenFolder]):
    """Open folders below a root, kept for reuse (a bounded number). Use from one thread; ``close`` at the end."""

    def __init__(self, root: int) -> None:
        """``root`` is a descriptor of the root, which stays the caller's."""
        super().__init__(OpenFolder(root, b""))

    def enter(self, place: OpenFolder, name: bytes) -> OpenFolder | bytes | None:
        """See ``Resolver``."""
        path = join(place.path, name)
        if len(self.known) > _MOST_OPEN + 2 * MOST_DEPTH:
            raise LayerError(f"the layer nests folders more than {MOST_DEPTH} deep: {shown(path)}")
        try:
            found = OpenFolder(os.open(name, FOLDER, dir_fd=place.handle), path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise no_name(place.path, name) from None
            if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                raise
            target = self.link(place, name)
            if target is None:
                raise LayerError(f"the layer puts something into {shown(path)}, which is not a folder") from None
            return target
        self.known[path] = found
        return found

    def link(self, place: OpenFolder, name: bytes) -> bytes | None:
        """See ``Resolver``."""
        try:
            return os.readlink(name, dir_fd=place.handle)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise no_name(place.path, name) from None
            if error.errno not in {errno.EINVAL, errno.ENOENT}:
                raise
            return None

    def imply(self, place: OpenFolder, name: bytes) -> OpenFolder:
        """See ``Resolver``."""
        os.mkdir(name, 0o755, dir_fd=place.handle)
        handle = os.open(name, FOLDER, dir_fd=place.handle)
        os.fchmod(handle, 0o755)  # whatever the umask, and without a set-group-ID bit from the folder above
        return OpenFolder(handle, join(place.path, name))

    def trim(self) -> None:
        """Close the folders when there are many; places handed out before are then no longer open."""
        if len(self.known) > _MOST_OPEN:
            self.forget()

    def forget(self) -> None:
        """Close all folders; call it whenever something was removed, since a name may now mean another thing."""
        for handle in {place.handle for place in self.known.values()} - {self.top.handle}:
            os.close(handle)
        self.known = {b"": self.top}

    def close(self) -> None:
        """Close all folders that are open."""
        self.forget()
