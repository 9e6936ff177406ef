"""A rough idea of what a layer's entries make, so that random ones can be chosen of which most are not refused.

It knows nothing of attributes, and of links only what is common: that is enough to tell a stack that says something
about trees from one whose third entry lies below a file. Nobody compares anything with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

FOLDER, LINK = b"5", b"2"
_MOST_LINKS = 8


def cleaned(name: bytes) -> bytes:
    """Return a name without ``.``, ``..`` and doubled slashes, relative to the root."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in {b"", b"."}:
            parts.append(part)
    return b"/".join(parts)


def above(path: bytes) -> Iterator[bytes]:
    """Yield the folders in which a path lies, the outermost first; the root is not among them."""
    parts = path.split(b"/")
    for count in range(1, len(parts)):
        yield b"/".join(parts[:count])


class Model:
    """What one layer holds: the kind under each path (as in a tar header), and where symbolic links lead."""

    def __init__(self, below: Sequence[Model]) -> None:
        """``below`` are the layers below, the top one first."""
        self._below = below
        self._kinds: dict[bytes, bytes] = {}
        self._targets: dict[bytes, bytes] = {}
        self._described: set[bytes] = set()

    def kind(self, path: bytes) -> bytes | None:
        return self._kinds.get(path)

    def resolved(self, path: bytes) -> bytes | None:
        """Return a path without symbolic links on the way to it, None when there is none; the last part may be one."""
        for _ in range(_MOST_LINKS):
            for folder in above(path):
                kind = self._kinds.get(folder)
                if kind == LINK:
                    target = self._targets[folder]
                    head = b"" if target.startswith(b"/") else folder.rpartition(b"/")[0]
                    path = cleaned(head + b"/" + target + path[len(folder) :])
                    break
                if kind not in {None, FOLDER}:
                    return None
            else:
                return path
        return None

    def takes(self, name: bytes, kind: bytes, link: bytes = b"") -> bool:
        """Whether an entry is likely to be accepted."""
        path = self.resolved(cleaned(name))
        if not path or not all(self._may_imply(folder) for folder in above(path)):
            return False
        base = path.rpartition(b"/")[2]
        if base.startswith(b".wh."):
            hidden = path[: len(path) - len(base)] + base[len(b".wh.") :]
            return base == b".wh..wh..opq" or self._may_go(hidden) if not self._below else hidden not in self._kinds
        if kind == FOLDER:
            return self._kinds.get(path) in {None, FOLDER} or self._may_go(path)
        if kind == b"1":
            target = self.resolved(cleaned(link))
            return target != path and self._kinds.get(target or b"") not in {None, FOLDER} and self._may_go(path)
        return self._may_go(path)

    def _may_imply(self, folder: bytes) -> bool:
        """Whether a folder can be made when it is missing: containerd looks for it in the layers below."""
        if folder in self._kinds:
            return True
        for layer in self._below:
            if any(layer._kinds.get(part) not in {None, FOLDER} for part in above(folder)):
                return False
            if folder in layer._kinds:
                return True
        return True

    def _may_go(self, path: bytes) -> bool:
        return not any(known == path or known.startswith(path + b"/") for known in self._described)

    def add(self, name: bytes, kind: bytes, link: bytes = b"") -> None:
        """Remember an entry."""
        path = self.resolved(cleaned(name))
        if not path:
            return
        for folder in above(path):
            self._kinds.setdefault(folder, FOLDER)
        base = path.rpartition(b"/")[2]
        if base.startswith(b".wh."):
            if not self._below:
                self._remove(path[: len(path) - len(base)] + base[len(b".wh.") :])
            return
        if kind != FOLDER or self._kinds.get(path) != FOLDER:
            self._remove(path)
        self._kinds[path] = kind
        if kind == LINK:
            self._targets[path] = link
        if kind == FOLDER:
            self._described.add(path)

    def _remove(self, path: bytes) -> None:
        for known in [known for known in self._kinds if known == path or known.startswith(path + b"/")]:
            del self._kinds[known]
