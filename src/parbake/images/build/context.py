"""What an image build sees: the files of its context, less what the ignore file leaves out, and a digest of them.

The ignore rules are the ones of the builders, which differ from git's: a pattern is anchored at the context's root,
``**`` spans folders, the last pattern that matches a path or one of its parents wins, and ``!`` takes back. Source:
docs.docker.com "Dockerfile reference, .dockerignore file"; moby/patternmatcher; containers/common containerignore(5).
Git-flavoured libraries do not fit, and the one in Docker's Python client looks at only one parent of each path.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

from parbake.core.errors import InputError
from parbake.core.model import Platform

# Files hashed at once: SHA-256 runs outside the interpreter lock, and two streams keep a disk busy.
_HASHERS = 4
_LITERAL = frozenset(".+()|{}$")


class BuildSpec(Protocol):
    """What to build, as the Bakefile says it: the folder that the build sees, and how."""

    @property
    def context(self) -> Path:
        """The folder that the build sees."""
        ...

    @property
    def file(self) -> Path:
        """The Containerfile, which need not lie in the context."""
        ...

    @property
    def args(self) -> Mapping[str, str]:
        """Build arguments."""
        ...

    @property
    def target(self) -> str:
        """The stage to build; empty: the last one."""
        ...

    @property
    def network(self) -> Literal["private", "host", "none"] | None:
        """What RUN steps reach; no part of the digest."""
        ...

    @property
    def compression(self) -> Literal["zstd", "gzip"]:
        """How layers are compressed; gzip is a part of the digest."""
        ...


@dataclass(frozen=True, slots=True)
class IgnoreRule:
    """One line of an ignore file; ``keeps`` is set for ``!`` lines."""

    text: str
    keeps: bool
    regex: re.Pattern[str]

    @property
    def is_ambiguous(self) -> bool:
        """Whether builders read it differently: buildah takes these characters for its regular expressions' own."""
        return any(character in self.text for character in "+(){}|")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a pattern that is not empty; raises InputError when it cannot be understood."""
        keeps = text.startswith("!")
        pattern = posixpath.normpath(text.removeprefix("!").strip()).lstrip("/") if text != "!" else ""
        if not pattern:
            raise InputError(f"ignore pattern {text!r} matches nothing")
        try:
            return cls(text, keeps, re.compile(_to_regex(pattern), re.DOTALL))
        except re.error as error:
            raise InputError(f"ignore pattern {text!r}: {error}") from error


def _to_regex(pattern: str) -> str:
    """Translate as moby/patternmatcher's ``compile`` does."""
    out, at = [], 0
    while at < len(pattern):
        here = pattern[at]
        at += 1
        if here == "*" and pattern[at : at + 1] == "*":
            at += 1
            if pattern[at : at + 1] == "/":
                at += 1
            out.append(".*" if at == len(pattern) else "(?:.*/)?")
        elif here == "*":
            out.append("[^/]*")
        elif here == "?":
            out.append("[^/]")
        elif here == "\\" and at < len(pattern):
            out.append(re.escape(pattern[at]))
            at += 1
        elif here in _LITERAL or here == "\\":
            out.append("\\" + here)
        else:
            out.append(here)
    return f"^{''.join(out)}\\Z"


@dataclass(frozen=True, slots=True)
class IgnoreRules:
    """The rules of an ignore file, in its order; ``source`` is the file, or None when there is none."""

    source: Path | None = None
    rules: tuple[IgnoreRule, ...] = ()

    @classmethod
    def parse(cls, lines: Iterable[str], source: Path | None = None) -> Self:
        """Read lines: ``#`` starts a comment line, empty lines count for nothing."""
        rules = []
        for number, line in enumerate(lines, 1):
            text = (line.removeprefix("\ufeff") if number == 1 else line).rstrip("\n")
            if text.startswith("#") or not text.strip():
                continue
            try:
                rules.append(IgnoreRule.parse(text.strip()))
            except InputError as error:
                raise InputError(f"{source or 'ignore file'}:{number}: {error.message}") from error
        return cls(source, tuple(rules))

    @classmethod
    def find(cls, context: Path, containerfile: Path) -> Self:
        """Read the ignore file that counts: the Containerfile's own, else the context's."""
        candidates = [
            containerfile.with_name(f"{containerfile.name}.containerignore"),
            containerfile.with_name(f"{containerfile.name}.dockerignore"),
            context / ".containerignore",
            context / ".dockerignore",
        ]
        for candidate in candidates:
            if candidate.is_file():
                text = candidate.read_text(encoding="utf-8", errors="surrogateescape")
                return cls.parse(text.splitlines(), candidate)
        return cls()

    @property
    def take_back(self) -> bool:
        """Whether a ``!`` line may bring back something inside a folder that is left out."""
        return any(rule.keeps for rule in self.rules)

    def leave_out(self, path: str) -> bool:
        """Whether a path, relative to the context with ``/`` between parts, is left out of every builder's build."""
        parts = path.split("/")
        prefixes = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        out = False
        for rule in self.rules:
            if not rule.keeps and rule.is_ambiguous:
                continue
            if rule.keeps == out and any(rule.regex.match(prefix) for prefix in prefixes):
                out = not rule.keeps
        return out


@dataclass(frozen=True, slots=True)
class ContextFile:
    """One file of a context: its path relative to the context, and what ``lstat`` said."""

    path: str
    info: os.stat_result


def walk(context: Path, rules: IgnoreRules) -> Iterator[ContextFile]:
    """Yield what the build sees, sorted by path in each folder, without following symbolic links.

    Sockets are passed over, as builders do. A folder that is left out but holds something that was taken back is
    there. Raises InputError when a folder cannot be read.
    """
    yield from _walk(context, "", rules)


def _walk(folder: Path, prefix: str, rules: IgnoreRules) -> Iterator[ContextFile]:
    try:
        with os.scandir(folder) as scan:
            found = sorted(scan, key=lambda item: item.name)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be read: {error.strerror}", hint="leave it out in .containerignore"
        ) from error
    for item in found:
        path = f"{prefix}{item.name}"
        out = rules.leave_out(path)
        info = item.stat(follow_symlinks=False)
        if not stat.S_ISDIR(info.st_mode):
            if not out and not stat.S_ISSOCK(info.st_mode):
                yield ContextFile(path, info)
            continue
        inside: Iterator[ContextFile] = iter(())
        if not out or rules.take_back:
            inside = _walk(folder / item.name, f"{path}/", rules)
        first = next(inside, None)
        if not out or first is not None:
            yield ContextFile(path, info)
        if first is not None:
            yield first
        yield from inside


def digest(spec: BuildSpec, platform: Platform, *, source_date_epoch: str = "") -> str:
    """Return ``sha256:…`` over all that shapes an image, the same on any machine.

    That is: each file's name, type, mode, link target and content; the Containerfile, build arguments, target stage
    and platform. Owners and times are not: ``COPY`` replaces owners, and a fresh checkout has other times.

    What the build fetches by itself (base images, ``ADD https://…``) is named in the Containerfile and not looked at.
    Raises InputError when the context or the Containerfile cannot be read.
    """
    context, containerfile = spec.context, spec.file
    if not context.is_dir():
        raise InputError(
            f"{context}: the build context is not a folder", hint="set images[].build.context in the Bakefile"
        )
    if not containerfile.is_file():
        raise InputError(
            f"{containerfile}: there is no such Containerfile", hint="set images[].build.file in the Bakefile"
        )
    rules = IgnoreRules.find(context, containerfile)
    whole = hashlib.sha256()
    head = {
        "version": 1,
        "containerfile": _sha256(containerfile),
        "args": dict(sorted(spec.args.items())),
        "target": spec.target,
        "platform": str(platform),
        "source_date_epoch": source_date_epoch,
        **({"compression": "gzip"} if spec.compression == "gzip" else {}),
    }
    whole.update(json.dumps(head, sort_keys=True).encode() + b"\0")

    def line(entry: ContextFile) -> bytes:
        return _line(context, entry)

    with ThreadPoolExecutor(_HASHERS) as pool:
        for text in pool.map(line, walk(context, rules)):
            whole.update(text)
    return f"sha256:{whole.hexdigest()}"


def _line(context: Path, entry: ContextFile) -> bytes:
    mode = entry.info.st_mode
    if stat.S_ISREG(mode):
        content = _sha256(context / entry.path)
    elif stat.S_ISLNK(mode):
        content = str((context / entry.path).readlink())
    elif stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        content = f"{os.major(entry.info.st_rdev)}:{os.minor(entry.info.st_rdev)}"
    else:
        content = ""
    fields = (os.fsencode(entry.path), f"{mode:o}".encode(), os.fsencode(content))
    return b"".join(b"%d:%s" % (len(item), item) for item in fields)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}", hint="leave it out in .containerignore"
        ) from error
