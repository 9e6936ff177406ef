"""Random stacks of hostile layers, each the same for the same seed, and a way to make one that fails smaller.

    made = stack(7, outside=b"/some/folder")       # bottom layer first; each a list of ``Spec``
    layers = [build(layer) for layer in made]      # tar bytes

What they try: names that are not clean or climb, absolute names, chains of symbolic links, hard links (through symbolic
links, to themselves, to lower layers), whiteouts of everything, opaque folders, changes of type, duplicates, entries
below files, the root itself, odd bytes, PAX and GNU headers, sparse files, attributes, devices, archives that end
early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from standins import tars
from standins.models import Model, cleaned
from standins.tars import END, GNU, USTAR, V7, entry, header, long_name, pax

LATEST = 1_750_000_000
"""Seconds: no entry is dated later, so that what is dated by the moment of an unpack can be told from the rest."""

COMPONENTS = [b"a", b"a", b"a", b"b", b"b", b"c", b"d", b"e"]
ODD = [
    b"\xff\xfe", b"n" * 255, b"n" * 256, b" ", b"\n", b"...", b"-", b"\x1b[2J", b"\xe2\x80\xae", b".wh.x",
    b"a.wh.b", b"*",
    b"A", b"lost+found", b"fs", b"work",
]  # fmt: skip
NOWHERE = [b"x1", b"x2"]
# POSIX ACLs as attributes have them (Linux, posix_acl_xattr.h): version 2, then tag, permissions and id of each entry.
NAMED_ACL = bytes.fromhex("0200000001000600ffffffff02000500e803000004000400ffffffff10000700ffffffff20000400ffffffff")
PLAIN_ACL = bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000400ffffffff")
ATTRIBUTES: list[dict[bytes, bytes]] = [
    {b"user.note": b"hello\0there"},
    {b"user.empty": b""},
    {b"user.other": b"v" * 90},
    {b"user.note": b"n" * 300, b"security.note": b"in a block of its own" * 60},
    {b"user.note": b"n" * 5000},
    {b"trusted.overlay.opaque": b"y"},
    {b"trusted.overlay.redirect": b"/a"},
    {b"trusted.overlay.whiteout": b"y"},
    {b"user.overlay.opaque": b"y"},
    {b"security.capability": bytes.fromhex("0100000200200000000000000000000000000000")},
    {b"security.capability": b"no capability"},
    {b"security.ima": b"\x01" + b"m" * 20},
    {b"system.posix_acl_access": NAMED_ACL},
    {b"system.posix_acl_access": PLAIN_ACL},
    {b"system.posix_acl_default": NAMED_ACL},
    {b"system.posix_acl_default": NAMED_ACL, b"system.posix_acl_access": PLAIN_ACL},
    {b"system.other": b"x"},
    {b"unknown.a": b"b"},
    {b"": b"no name"},
    {b"user.": b"no name"},
    {b"trusted.": b"no name"},
    {b"security.": b"no name"},
    {b"user": b"no name"},
    {b"user." + b"n" * 250: b"a name of 255 bytes"},
    {b"user." + b"n" * 251: b"a name of 256 bytes"},
    {b"unknown." + b"n" * 300: b"a name of 308 bytes"},
    {b"user.large": b"v" * 70_000},
    {b"trusted.large": b"v" * 70_000},
    {b"system.posix_acl_access": b"no acl"},
    {b"system.posix_acl_access": b""},
    {b"system.posix_acl_default": b""},
]
_REFUSED = ({b"no name", b"no acl", b"no capability"} | {b"n" * 5000, b"v" * 70_000, b"a name of 256 bytes"}
            | {b"a name of 308 bytes"})  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """An entry of an archive, so that an example can be read; ``kind`` as in a header.

    ``form``: how name and link travel when they are long, or when they need not: ``ustar``, ``gnu``, ``pax``, ``v7``.
    ``raw`` is bytes that stand as they are in the archive instead.
    """

    name: bytes
    kind: bytes = b"0"
    data: bytes = b""
    link: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 1000
    device: tuple[int, int] = (0, 0)
    records: dict[bytes, bytes] = field(default_factory=dict)
    form: str = "ustar"
    raw: bytes = b""

    def build(self) -> bytes:
        """Return the entry's bytes, with the headers before it."""
        if self.raw:
            return self.raw
        records, name, link = dict(self.records), self.name, self.link
        before = b""
        if self.form == "pax":
            records |= {b"path": name} | ({b"linkpath": link} if link else {})
            name, link = b"short", link[:100]
        elif self.form == "gnu":
            before = long_name(name) + (long_name(link, b"K") if link else b"")
        magic = {"gnu": GNU, "v7": V7}.get(self.form, USTAR)
        if records:
            before = pax(records) + before
        kind = b"\0" if self.form == "v7" and self.kind == b"0" else self.kind
        return before + entry(
            name, kind, self.data, link=link, mode=self.mode, uid=self.uid, gid=self.gid, mtime=self.mtime,
            device=self.device, magic=magic,
        )  # fmt: skip

    def __repr__(self) -> str:
        """Say what differs from an empty file."""
        said = [_short(self.name)]
        for key, usual in _USUAL.items():
            value = getattr(self, key)
            if value != usual:
                said.append(f"{key}={_short(value)}")
        return f"Spec({', '.join(said)})"


def _short(value: object) -> str:
    said = repr(value)
    return said if len(said) < 400 else f"{said[:200]}...{said[-100:]} ({len(said)})"


_USUAL = {
    "kind": b"0", "data": b"", "link": b"", "mode": 0o644, "uid": 0, "gid": 0, "mtime": 1000, "device": (0, 0),
    "records": {}, "form": "ustar", "raw": b"",
}  # fmt: skip


type Layer = list[Spec]
type Stack = list[Layer]


def build(layer: Layer) -> bytes:
    """Return the layer's tar."""
    parts = [spec.build() for spec in layer]
    return b"".join(parts) + (b"" if layer and layer[-1].raw else END)


def stack(seed: int, *, outside: bytes) -> Stack:
    """Return a stack; ``outside`` is the path of a folder on this machine that entries try to reach."""
    random = Random(seed)
    maker = _Maker(random, outside)
    return [maker.layer(bottom=number == 0) for number in range(random.choice([1, 2, 2, 3, 3, 4, 6]))]


class _Maker:
    def __init__(self, random: Random, outside: bytes) -> None:
        self._random = random
        self._outside = outside
        # A stack in which every second entry is refused says nothing about trees: most are milder, some are not.
        self._malice = random.choice([0.0, 0.0, 0.01, 0.02, 0.1])
        self._clumsy = random.choice([0.0, 0.0, 0.01, 0.03, 0.5])
        """How often it does not care whether an entry is likely to be accepted."""
        self._names: list[bytes] = []
        self._links: list[bytes] = []
        self._here: list[bytes] = []
        self._models: list[Model] = []

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def layer(self, *, bottom: bool) -> Layer:
        self._here = []
        self._models.insert(0, Model(self._models[:]))
        layer: Layer = []
        if bottom and self._chance(0.7):
            layer += [Spec(name, b"5", mode=0o755) for name in (b"a", b"a/b", b"d")]
            for spec in layer:
                self._models[0].add(spec.name, spec.kind)
        layer += [self.spec() for _ in range(self._random.choice([1, 3, 5, 8, 12, 20]))]
        if self._chance(self._malice):
            data = Spec(b"cut/off", data=b"x" * 700, records={b"mtime": b"5"}, form="gnu").build()
            layer.append(Spec(b"cut/off", raw=data[: self._random.randrange(256, len(data), 256)]))
        return layer

    # -- names

    def _component(self) -> bytes:
        return self._random.choice(ODD if self._chance(0.06) else COMPONENTS)

    def _path(self) -> bytes:
        if self._names and self._chance(0.5):
            found = self._random.choice(self._names)
            how = self._random.random()
            if how < 0.45:
                return found
            if how < 0.75:
                return found + b"/" + self._component()
            return found.rpartition(b"/")[0] or found
        if self._links and self._chance(0.35):
            return self._random.choice(self._links) + b"/" + self._component()
        return b"/".join(self._component() for _ in range(self._random.choice([1, 1, 2, 2, 3, 4])))

    def _decorated(self, path: bytes) -> bytes:
        if self._chance(self._malice):
            return (
                self._random.choice([b"../%s", b"/../%s", b"a/../../%s", b"../%s/victim", b"../../../../../%s"]) % path
            )
        if self._chance(0.75):
            return path
        how = self._random.choice(
            [b"./%s", b"/%s", b"%s/", b"./a/..//%s", b"//%s", b"%s/.", b"%s//", b"a/../%s", b"%s/c/.."]
        )
        return how % path

    def _target(self, path: bytes) -> bytes:
        """Return where a symbolic link leads to, which may be anywhere."""
        up = b"../" * self._random.choice([1, 1, 2, 3, 12])
        to = self._path()
        somewhere = self._random.random()
        if somewhere < 0.3:
            return to.rpartition(b"/")[2] or to
        if somewhere < 0.5:
            return to
        if somewhere < 0.65:
            return b"/" + to
        if somewhere < 0.8:
            return up + to
        if somewhere < 0.85:
            return path.rpartition(b"/")[2] or b"a"  # itself
        return self._random.choice([
            b".", b"..", b"/", b"./" + to, to + b"/..", to + b"/../" + self._component(), b"/" + to + b"/../b",
            to + b"/",
            self._outside, up + b"outside", self._outside + b"/victim", b"/proc/self/root/tmp", b"/proc/self/cwd",
            b"/x1/x2",
            b"//a//b/", to + b"/.",
        ])  # fmt: skip

    def _hard_target(self) -> bytes:
        if self._chance(self._malice):
            return self._random.choice([
                self._path(), b"", b".", b"..", b"/", b"../outside/victim", self._outside + b"/victim", b"a/..",
                b"/a/.",
                b"/proc/self/root/etc/passwd", self._component(),
            ])  # fmt: skip
        to = self._random.choice(self._here)
        if self._chance(0.7):
            return to
        if self._links and self._chance(0.5):
            return self._random.choice(self._links) + b"/" + to.rpartition(b"/")[2]
        how = [b"/%s", b"./%s", b"a/../%s", b"//%s", b"/a/./..//%s"]
        if self._chance(0.3):
            how = [b"%s/", b"%s/.", b"d/../%s", b"b/../%s", b"%s//", b"x1/../%s"]
        return self._random.choice(how) % to

    # -- entries

    def spec(self) -> Spec:
        if self._chance(self._malice):
            return self._odd()
        model, spec, tries = self._models[0], self._any_spec(), _TRIES
        while tries and not (self._chance(self._clumsy) or model.takes(spec.name, spec.kind, spec.link)):
            spec, tries = self._any_spec(), tries - 1
        path = cleaned(spec.name)
        model.add(spec.name, spec.kind, spec.link)
        if not path.rpartition(b"/")[2].startswith(b".wh."):
            self._names.append(path)
            if spec.kind == b"2":
                self._links.append(path)
            if spec.kind != b"5":
                self._here.append(path)
        return spec

    def _any_spec(self) -> Spec:
        path = self._path()
        spec = Spec(
            self._decorated(path), self._random.choice(_KINDS),
            mode=self._random.choice([0o644, 0o755, 0o4755, 0o2755, 0o1777, 0, 0o777, 0o100644, 0o6000]),
            uid=self._random.choice([0, 0, 0, 1000, 65534, 4_000_000_000]),
            gid=self._random.choice([0, 0, 0, 1000, 65534, 4_000_000_000]),
            mtime=self._random.choice([0, 1, 1000, -5, LATEST - 1, self._random.randrange(LATEST)]),
            form=self._random.choice(["ustar", "ustar", "ustar", "gnu", "pax", "v7"]),
        )  # fmt: skip
        if self._chance(0.25):
            spec = replace(spec, records=self._records())
        return self._of_kind(spec, path)

    def _of_kind(self, spec: Spec, path: bytes) -> Spec:  # noqa: PLR0911 - one for each kind
        kind = spec.kind
        if kind == b"0":
            size = self._random.choice([0, 0, 1, 1, 10, 512, 513, 4096, 9000])
            return replace(spec, data=self._random.choice([b"x", b"y", b"\0", b"\n"]) * size)
        if kind == b"1":
            return replace(spec, link=self._hard_target()) if self._here else replace(spec, kind=b"5")
        if kind == b"2":
            return replace(spec, link=self._target(path))
        if kind in {b"3", b"4"}:
            return replace(spec, device=self._random.choice([(1, 3), (0, 0), (8, 1), (300, 70_000), (4095, 1_048_575)]))
        if kind == b"whiteout":
            return self._whiteout(spec, path)
        if kind == b"opaque":
            name = (path + b"/" if self._chance(0.9) else b"") + b".wh..wh..opq"
            return replace(
                spec, name=self._decorated(name), kind=self._random.choice([b"0", b"0", b"5", b"2"]), link=b"x1"
            )
        if kind == b"sparse":
            return self._sparse(spec)
        return spec

    def _whiteout(self, spec: Spec, path: bytes) -> Spec:
        head, slash, base = path.rpartition(b"/")
        hidden = base
        if self._chance(0.05):
            hidden = self._random.choice([b".wh.a", b".wh..plnk", b".wh..opq", b".wh.", b"n" * 251, b"a "])
        if self._chance(self._malice):
            hidden = self._random.choice([b"", b".", b"..", b"n" * 252])
        name = head + slash + b".wh." + hidden
        kind = self._random.choice([b"0", b"0", b"0", b"5", b"2", b"1", b"3", b"g", b"Z"])
        return replace(spec, name=self._decorated(name), kind=kind, link=b"x1" if kind in {b"1", b"2"} else b"")

    def _sparse(self, spec: Spec) -> Spec:
        size = self._random.choice([b"9000", b"4101", b"1000000"])
        pieces = self._random.choice([b"2\n10\n3\n4096\n5\n", b"1\n0\n8\n", b"3\n1\n2\n3\n2\n5\n4\n"])
        numbers = pieces.split()
        data, sizes = b"abcdefgh", b",".join(numbers[1:])
        records = dict(spec.records)
        if self._chance(0.5):
            records |= {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": spec.name,
                        b"GNU.sparse.realsize": size}  # fmt: skip
            data = tars.pad(pieces) + data
        else:
            records |= {b"GNU.sparse.numblocks": numbers[0], b"GNU.sparse.map": sizes, b"GNU.sparse.size": size,
                        b"GNU.sparse.name": spec.name}  # fmt: skip
        return replace(spec, kind=b"0", data=data, records=records, form="ustar")

    def _records(self) -> dict[bytes, bytes]:
        records: dict[bytes, bytes] = {}
        if self._chance(0.6):
            found = self._random.choice(ATTRIBUTES[:4] if self._chance(0.7) else ATTRIBUTES)
            if not self._chance(self._malice * 4):
                found = {key: value for key, value in found.items() if value not in _REFUSED}
            records = {b"SCHILY.xattr." + key: value for key, value in found.items()}
        for key in (b"mtime", b"atime"):
            if self._chance(0.3):
                records[key] = self._random.choice([
                    b"1", b"1700000000.123456789", b"-5.5", b"99999999999", b"12.0000000009", b"-1", b"+7", b"0.5",
                    b"7.",
                ])  # fmt: skip
        if self._chance(0.1):
            records |= self._random.choice([
                {b"uid": b"4000000000"}, {b"gid": b"-1"}, {b"uid": b"4294967295"}, {b"uid": b"4294967296"},
                {b"uid": b""},
                {b"LIBARCHIVE.xattr.user.note": b"aGVsbG8="}, {b"comment": b"c" * 700}, {b"ctime": b"5"},
                {b"path": b""},
                {b"hdrcharset": b"BINARY"}, {b"GNU.sparse.major": b"7", b"GNU.sparse.minor": b"0"}, {b"uname": b"root"},
            ])  # fmt: skip
        return records

    def _odd(self) -> Spec:
        """Return something that no tool writes in good faith."""
        path = self._path()
        to = self._hard_target() if self._here else b"a"
        outside = self._outside
        choices: list[Callable[[], Spec]] = [
            lambda: Spec(path, b"Z"),
            lambda: Spec(path, b"7", data=b"contiguous"),
            lambda: Spec(path, b"1", link=path),
            lambda: Spec(path, b"1", link=b"/" + path),
            lambda: Spec(path, b"1", link=path + b"/"),
            lambda: Spec(path + b"/b", b"1", link=path + b"/b"),
            lambda: Spec(path, b"1", link=b"a/../" + path),
            lambda: Spec(path, b"g"),
            lambda: Spec(b"global", raw=pax({b"path": path, b"mtime": b"1"}, b"g")),
            lambda: Spec(b"global", raw=pax({b"comment": b"x"}, b"g")),
            lambda: Spec(path, b"2", link=b""),
            lambda: Spec(path, b"2", link=b"t" * self._random.choice([4000, 4095, 4096]), form="gnu"),
            lambda: Spec(path, b"3", device=self._random.choice([(5000, 1), (1, 1 << 21), (1 << 24, 1), (1 << 40, 1)])),
            lambda: Spec(path, b"6", device=(1 << 24, 7)),
            lambda: Spec(path, b"S", form="gnu"),
            lambda: Spec(path, b"5", data=b"a folder with data"),
            lambda: Spec(path, b"2", link=to, data=b"a link with data"),
            lambda: Spec(outside + b"/victim", data=b"written"),
            lambda: Spec(b"up", b"2", link=outside),
            lambda: Spec(b"up/victim", data=b"written"),
            lambda: Spec(b"up/.wh.victim"),
            lambda: Spec(b"up/.wh..wh..opq"),
            lambda: Spec(b"h", b"1", link=b"up/victim"),
            lambda: Spec(b"/".join([b"deep"] * self._random.choice([50, 200, 256, 257, 300])), data=b"x", form="gnu"),
            lambda: Spec(b"/".join([b"n" * 255] * self._random.choice([3, 14, 15, 17, 70])), data=b"x", form="gnu"),
            lambda: Spec(
                self._random.choice([b".", b"/", b"./", b"", b"//", b"a/.."]), self._random.choice([b"5", b"0", b"2"])
            ),
            lambda: Spec(path, raw=header(path[:100], b"0", size=-1)),
            lambda: Spec(path, raw=pax({b"size": b"3"}) + header(path[:100], size=8) + tars.pad(b"12345678")),
            lambda: Spec(path, raw=pax({b"path": b"a\0b"}) + header(b"x")),
            lambda: Spec(path, raw=pax({b"mtime": b"never"}) + header(b"x")),
            lambda: Spec(path, raw=long_name(path + b"\0hidden") + header(b"x")),
            lambda: Spec(path, raw=pax({b"path": path}) + pax({b"mtime": b"5"}) + header(b"x")),
            lambda: Spec(path, raw=header(b"x", b"x", size=20) + tars.pad(b"99 path=abc\n")),
            lambda: Spec(b"\0", raw=bytes(512)),
        ]
        return self._random.choice(choices)()


_TRIES = 30
_KINDS = [b"0", b"0", b"0", b"0", b"5", b"5", b"5", b"1", b"1", b"2", b"2", b"3", b"4", b"6", b"whiteout", b"whiteout",
          b"opaque",
          b"sparse"]  # fmt: skip


def shrunk(found: Stack, fails: Callable[[Stack], bool]) -> Stack:
    """Return a smaller stack that still fails: fewer layers and entries, and plainer ones."""
    progress = True
    while progress:
        progress = False
        for smaller in _smaller(found):
            if fails(smaller):
                found, progress = smaller, True
                break
    return found


def _smaller(found: Stack) -> Iterator[Stack]:
    for number in range(len(found)):
        if len(found) > 1:
            yield found[:number] + found[number + 1 :]
    for number, layer in enumerate(found):
        for size in (len(layer) // 2, len(layer) // 4, 1):
            for at in range(0, len(layer), size) if size else ():
                if size < len(layer):
                    yield [*found[:number], layer[:at] + layer[at + size :], *found[number + 1 :]]
    for number, layer in enumerate(found):
        for at, spec in enumerate(layer):
            for plainer in _plainer(spec):
                yield [*found[:number], [*layer[:at], plainer, *layer[at + 1 :]], *found[number + 1 :]]


def _plainer(spec: Spec) -> Iterator[Spec]:
    if spec.raw:
        return
    if len(spec.data) > 1:
        yield replace(spec, data=spec.data[: len(spec.data) // 2])
    for key in spec.records:
        yield replace(spec, records={other: value for other, value in spec.records.items() if other != key})
    for field_name, usual in _USUAL.items():
        if field_name not in {"kind", "records"} and getattr(spec, field_name) != usual:
            changes: dict[str, Any] = {field_name: usual}
            yield replace(spec, **changes)
