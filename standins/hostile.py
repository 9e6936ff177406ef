"""Layers that attack: each must be refused, or do no harm. For unit tests, whole bakes and as seeds for fuzzing."""

from __future__ import annotations

from typing import Literal

from standins.tars import GNU, archive, entry, header, long_name, octal, pad, pax

Fate = Literal["refused", "harmless"]


def corpus() -> dict[str, tuple[bytes, Fate]]:
    """Return tar bytes by what they try, and what has to come of it. ``outside/victim`` lies beside the root."""
    return {
        "name that climbs": (archive(entry(b"../outside/victim", data=b"x")), "refused"),
        "name that climbs after going down": (archive(entry(b"a/../../outside/victim", data=b"x")), "refused"),
        "absolute name that climbs": (archive(entry(b"/../outside/victim", data=b"x")), "refused"),
        "absolute name": (archive(entry(b"/outside/victim", data=b"x")), "harmless"),
        "parent that links upwards": (
            archive(entry(b"up", b"2", link=b"../outside"), entry(b"up/victim", data=b"x")),
            "harmless",
        ),
        "parent that links to an absolute place": (
            archive(entry(b"abs", b"2", link=b"/etc"), entry(b"abs/passwd", data=b"x")),
            "harmless",
        ),
        "link through proc": (
            archive(entry(b"p", b"2", link=b"/proc/self/root/tmp"), entry(b"p/parbake-escape", data=b"x")),
            "harmless",
        ),
        "chain of links upwards": (
            archive(
                entry(b"a", b"2", link=b"b"), entry(b"b", b"2", link=b"../../outside"), entry(b"a/victim", data=b"x")
            ),
            "harmless",
        ),
        "loop of links": (
            archive(entry(b"a", b"2", link=b"b"), entry(b"b", b"2", link=b"a"), entry(b"a/x", data=b"x")),
            "refused",
        ),
        "folder that becomes a link": (
            archive(
                entry(b"d/", b"5"), entry(b"d/f", data=b"1"), entry(b"d", b"2", link=b"../outside"),
                entry(b"d/victim", data=b"x"),
            ),
            "harmless",
        ),
        "file through a link of its own name": (
            archive(entry(b"victim", b"2", link=b"../outside/victim"), entry(b"victim", data=b"x")),
            "harmless",
        ),
        "hard link that climbs": (archive(entry(b"h", b"1", link=b"../outside/victim")), "refused"),
        "hard link through a link": (
            archive(entry(b"up", b"2", link=b"../outside"), entry(b"h", b"1", link=b"up/victim")),
            "refused",
        ),
        "hard link to a symbolic link, then written": (
            archive(
                entry(b"s", b"2", link=b"../outside/victim"), entry(b"h", b"1", link=b"s"), entry(b"h", data=b"x")
            ),
            "harmless",
        ),
        "hard link to a folder": (archive(entry(b"d/", b"5"), entry(b"h", b"1", link=b"d")), "refused"),
        "whiteout of the parent": (archive(entry(b"d/.wh...")), "refused"),
        "whiteout of the folder itself": (archive(entry(b"d/.wh..")), "refused"),
        "whiteout of nothing": (archive(entry(b".wh.")), "refused"),
        "opaque mark through a link": (
            archive(entry(b"up", b"2", link=b"../outside"), entry(b"up/.wh..wh..opq")),
            "harmless",
        ),
        "attributes of overlayfs": (
            archive(pax({b"SCHILY.xattr.trusted.overlay.redirect": b"/etc"}), entry(b"d/", b"5")),
            "harmless",
        ),
        "file where a folder is": (
            archive(entry(b"d/", b"5"), entry(b"d/f", data=b"1"), entry(b"d", data=b"x")),
            "harmless",
        ),
        "entry in a file": (archive(entry(b"f", data=b"1"), entry(b"f/g", data=b"x")), "refused"),
        "name with a NUL in PAX": (archive(pax({b"path": b"a\0b"}), entry(b"a")), "refused"),
        "sparse name with a NUL": (
            archive(
                pax({b"GNU.sparse.major": b"0", b"GNU.sparse.minor": b"1", b"GNU.sparse.name": b"a\0b",
                     b"GNU.sparse.numblocks": b"0", b"GNU.sparse.map": b"", b"GNU.sparse.size": b"10"}),
                entry(b"a"),
            ),
            "refused",
        ),
        "name of 256 bytes": (archive(long_name(b"n" * 256), entry(b"n")), "refused"),
        "name of 100 kB": (archive(long_name(b"n/" * 50_000), entry(b"n")), "refused"),
        "folders 300 deep": (archive(long_name(b"n/" * 300 + b"f"), entry(b"n")), "refused"),
        "empty link": (archive(entry(b"s", b"2", link=b"")), "refused"),
        "PAX header of 2 MB": (
            archive(header(b"x", b"x", size=2 << 20) + bytes(2 << 20), entry(b"a")),
            "refused",
        ),
        "PAX length that lies": (archive(header(b"x", b"x", size=20) + pad(b"99 path=abc\n"), entry(b"a")), "refused"),
        "PAX length with many digits": (
            archive(header(b"x", b"x", size=1 << 19) + b"9" * (1 << 19), entry(b"a")),
            "refused",
        ),
        "negative size": (archive(header(b"a", size=-1)), "refused"),
        "size beyond the end": (header(b"a", size=1 << 60) + bytes(512), "refused"),
        "wrong checksum": (archive(entry(b"a")[:148] + b"000001\0 " + entry(b"a")[156:]), "refused"),
        "header after a zero block": (bytes(512) + entry(b"a"), "refused"),
        "unknown type": (archive(entry(b"a", b"Z")), "refused"),
        "device number that does not exist": (archive(entry(b"dev", b"3", device=(1 << 40, 1))), "refused"),
        "device of a disk": (archive(entry(b"dev", b"4", device=(8, 0))), "harmless"),
        "sparse pieces that overlap": (
            archive(pax({b"GNU.sparse.major": b"0", b"GNU.sparse.minor": b"1", b"GNU.sparse.numblocks": b"2",
                         b"GNU.sparse.map": b"0,5,3,3", b"GNU.sparse.size": b"20"}), entry(b"a", data=b"12345678")),
            "refused",
        ),
        "sparse pieces beyond the end": (
            archive(pax({b"GNU.sparse.major": b"0", b"GNU.sparse.minor": b"1", b"GNU.sparse.numblocks": b"1",
                         b"GNU.sparse.map": b"15,8", b"GNU.sparse.size": b"20"}), entry(b"a", data=b"12345678")),
            "refused",
        ),
        "sparse map of a million pieces": (
            archive(pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.size": b"20"}),
                    entry(b"a", data=b"1000000\n" + b"0\n0\n" * 400_000)),
            "refused",
        ),
        "GNU long name that climbs": (archive(long_name(b"a/" * 60 + b"../" * 61 + b"outside/victim"), entry(b"n")),
                                      "refused"),
        "PAX path that climbs": (archive(pax({b"path": b"../outside/victim"}), entry(b"n", data=b"x")), "refused"),
        "global PAX path that climbs": (
            archive(pax({b"path": b"../outside/victim"}, b"g"), entry(b"n", data=b"x")), "refused",
        ),
        "PAX link that climbs": (archive(pax({b"linkpath": b"../outside/victim"}), entry(b"h", b"1", link=b"n")),
                                 "refused"),
        "PAX symbolic link that climbs, then a file through it": (
            archive(pax({b"linkpath": b"../outside"}), entry(b"up", b"2", link=b"n"), entry(b"up/victim", data=b"x")),
            "harmless",
        ),
        "PAX size that differs from the header's": (
            archive(pax({b"size": b"3"}), entry(b"a", data=b"12345678")), "harmless",
        ),
        "PAX size beyond the end": (archive(pax({b"size": b"9999999"}), entry(b"a", data=b"x")), "refused"),
        "hard link to an absolute place": (archive(entry(b"h", b"1", link=b"/etc/passwd")), "refused"),
        "global header with the name of a file": (
            archive(entry(b"f", data=b"1"), pax({b"path": b"f"}, b"g"), entry(b"n", data=b"x")), "harmless",
        ),
        "hard link to itself, which is there": (
            archive(entry(b"h", data=b"1"), entry(b"h", b"1", link=b"h")), "refused",
        ),
        "hard link to itself through a symbolic link": (
            archive(entry(b"d/f", data=b"1"), entry(b"s", b"2", link=b"d"), entry(b"s/f", b"1", link=b"d/f")),
            "refused",
        ),
        "folder that is removed again": (
            archive(entry(b"d/e/", b"5"), entry(b"d", b"2", link=b"../outside")), "refused",
        ),
        "links that the kernel would not follow": (
            archive(*(entry(b"s%d" % number, b"2", link=b"s%d" % (number + 1)) for number in range(60)),
                    entry(b"s60/", b"5"), entry(b"s0/sub/victim", data=b"x")),
            "refused",
        ),
        "relative link up out of a linked folder": (
            archive(entry(b"d/e/", b"5"), entry(b"b", b"2", link=b"d/e"), entry(b"a", b"2", link=b"b"),
                    entry(b"d/e/f", b"2", link=b"../x"), entry(b"a/f/victim", data=b"x")),
            "harmless",
        ),
        "old sparse file": (archive(header(b"f", b"S", magic=GNU)), "refused"),
        "hard link to itself": (archive(entry(b"h", b"1", link=b"h")), "refused"),
        "hard link through proc": (
            archive(entry(b"p", b"2", link=b"/proc/self/root"), entry(b"h", b"1", link=b"p/etc/passwd")), "refused",
        ),
        "symbolic link to a hard link of a symbolic link, then written": (
            archive(
                entry(b"s", b"2", link=b"/outside"), entry(b"h", b"1", link=b"s"), entry(b"t", b"2", link=b"h"),
                entry(b"t/victim", data=b"x"),
            ),
            "harmless",
        ),
        "file twice": (archive(entry(b"f", data=b"1"), entry(b"f", data=b"22")), "harmless"),
        "folder twice": (
            archive(entry(b"d/", b"5", mode=0o700), entry(b"d/f", data=b"1"), entry(b"d/", b"5", mode=0o755)),
            "harmless",
        ),
        "link twice, the second time upwards": (
            archive(entry(b"s", b"2", link=b"d"), entry(b"s", b"2", link=b"../outside"), entry(b"s/victim", data=b"x")),
            "harmless",
        ),
        "hard link twice": (
            archive(entry(b"f", data=b"1"), entry(b"h", b"1", link=b"f"), entry(b"h", b"1", link=b"f"),
                    entry(b"f", data=b"2")),
            "harmless",
        ),
        "file, folder, link, file of one name": (
            archive(entry(b"a", data=b"1"), entry(b"a/", b"5"), entry(b"a/x", data=b"1"),
                    entry(b"a", b"2", link=b"../outside"), entry(b"a", data=b"2")),
            "harmless",
        ),
        "folder where a file is": (
            archive(entry(b"d", data=b"x"), entry(b"d/", b"5"), entry(b"d/f", data=b"1")), "harmless",
        ),
        "folder where a link upwards is": (
            archive(entry(b"d", b"2", link=b"../outside"), entry(b"d/", b"5"), entry(b"d/victim", data=b"x")),
            "harmless",
        ),
        "whiteout, then a file of its name": (
            archive(entry(b"d/", b"5"), entry(b"d/.wh.f"), entry(b"d/f", data=b"x")), "harmless",
        ),
        "root that becomes a file": (archive(entry(b".", data=b"x")), "harmless"),
        "root that becomes a link": (archive(entry(b"./", b"2", link=b"../outside")), "harmless"),
        "names of 255 bytes": (archive(entry(b"n" * 255 + b"/" + b"m" * 255, data=b"x")), "harmless"),
        "names that are not UTF-8": (
            archive(entry(b"\xff\xfe/\xc3\x28/\xed\xa0\x80", data=b"x"), entry(b"\x01\n\x1b[2J", data=b"x")),
            "harmless",
        ),
        "GNU long name of 2 MB": (
            archive(header(b"././@LongLink", b"L", size=2 << 20, magic=GNU) + b"n" * (2 << 20), entry(b"a")),
            "refused",
        ),
        "GNU long link of 2 MB": (
            archive(header(b"././@LongLink", b"K", size=2 << 20, magic=GNU) + b"n" * (2 << 20), entry(b"a", b"2")),
            "refused",
        ),
        "PAX headers without end": (archive(*[pax({b"comment": b"c" * 400})] * 2000, entry(b"a")), "harmless"),
        "attribute larger than a file system takes": (
            archive(pax({b"SCHILY.xattr.user.a": b"v" * 70_000}), entry(b"a")), "refused",
        ),
        "attribute without a name": (archive(pax({b"SCHILY.xattr.": b"v"}), entry(b"a")), "refused"),
        "old sparse file in the wrong format": (archive(entry(b"a", b"S", data=b"x")), "refused"),
        "sparse file of 8 EiB": (archive(_old_sparse((1 << 63) - 1)), "refused"),
        "sparse file of 64 GiB": (archive(_old_sparse(1 << 36)), "refused"),
    }  # fmt: skip


def _old_sparse(size: int) -> bytes:
    """Return an entry of the old GNU sparse format without data; its size stands at offset 483 of the header."""
    return entry(b"a", b"S", magic=GNU, prefix=bytes(483 - 345) + octal(size, 12))
