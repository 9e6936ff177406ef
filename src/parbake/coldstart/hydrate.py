"""What runs on a node (the folder ``node``): where its files are, and the hydrate service put where it is needed."""

from __future__ import annotations

import base64
import lzma
import shlex
from pathlib import Path

from parbake.core import atomic
from parbake.core.nodefiles import node_file, short
from parbake.core.workspace import room_for

LIST = "etc/parbake/hydrate.list"
FILES = "etc/parbake/prefetch.list"
PROGRAMS = ("hydrate.py", "pagecache.py")
"""What runs there: the first, and what it imports from the folder in which it lies."""
_PROGRAMS = "usr/lib/parbake"
_UNIT = "etc/systemd/system/parbake-hydrate.service"
_WANTED = "etc/systemd/system/sysinit.target.wants/parbake-hydrate.service"

_USER_DATA = """\
#cloud-boothook
#!/bin/sh
# Loads the blocks that baked images need, beside the rest of the boot. Written by parbake; goes first in user data.
mkdir -p /run/parbake
python3 - <<'END'
import base64, lzma
text = \"\"\"
{packed}
\"\"\"
text = "".join(text.split()).translate(str.maketrans("{safe}", "{special}"))
for file in lzma.decompress(base64.b85decode(text)).decode().split("\\0"):
    name, _, text = file.partition(" ")
    open("/run/parbake/" + name, "w").write(text)
END
sh /run/parbake/hydrate.sh || true
exit 0
"""
_START = """\
hydrate() {{
  systemd-run --no-block --collect --unit=parbake-hydrate --property=DefaultDependencies=no "$@" \\
    python3 -u /run/parbake/hydrate.py --list /run/parbake/hydrate.list{boost}
}}
# Confined as the service is; a systemd that does not know how runs it all the same.
hydrate {confined} || hydrate
"""

_SPECIAL, _SAFE = "$%{}`", ",./[]"
"""Letters of base 85 that shells, Terraform and templates take for their own, and what stands for them."""

_PACKED = ({"id": lzma.FILTER_LZMA1, "preset": 9, "pb": 0},)
"""Text has no words of two or four bytes, which would otherwise be expected."""

_FAMILIES = "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK"
"""What a name is looked up with, and what then connects."""

_EXPORTED = (
    *PROGRAMS, "misses.py", "parbake-hydrate.service", "parbake-misses.service", "parbake-misses.timer",
    "Containerfile", "daemonset.yaml",
)  # fmt: skip


def user_data(hydrate_list: str, *, boost: bool = False) -> str:
    """Return user data that hydrates a volume: the program and its list, to be the first part of a node's. Pure.

    There is no room for what keeps in memory what was read (``pagecache.py``): EC2 takes 16 KiB in all. With ``boost``
    there is what takes a raised volume back, and the program has a network: to ask EC2.
    """
    programs = (PROGRAMS[0], *(["boost.py"] if boost else []))
    words = " ".join(f"--property={shlex.quote(line)}" for line in confinement(network=boost))
    texts = {name: short(name) for name in programs}
    texts |= {"hydrate.sh": _START.format(confined=words, boost=" --boost" * boost), "hydrate.list": hydrate_list}
    files = "\0".join(f"{name} {text}" for name, text in texts.items())
    data = lzma.compress(files.encode(), lzma.FORMAT_ALONE, filters=_PACKED)
    text = base64.b85encode(data).decode().translate(str.maketrans(_SPECIAL, _SAFE))
    lines = "\n".join(f" {text[at : at + 500]}" for at in range(0, len(text), 500))
    return _USER_DATA.format(packed=lines, safe=_SAFE, special=_SPECIAL)


def confinement(*, network: bool = False) -> tuple[str, ...]:
    """Return what confines the hydrate service, as a unit's properties: its file says them from RuntimeDirectory on.

    With ``network`` it may open connections, and nothing else is different.
    """
    service = node_file("parbake-hydrate.service").read_text().partition("[Install]")[0]
    lines = service[service.index("RuntimeDirectory=") :].splitlines()
    instead = {"PrivateNetwork=yes": "", "RestrictAddressFamilies=none": _FAMILIES} if network else {}
    said = (instead.get(line, line) for line in lines)
    return tuple(line for line in said if line and not line.startswith("#"))


def export(folder: Path, hydrate_list: str, prefetch_list: str = "") -> tuple[Path, ...]:
    """Write all that a node needs to hydrate a volume into a folder, and return the files. Raises DiskFull.

    ``hydrate.list`` and ``prefetch.list`` (for those who do not see the volume's root, where one lies as well);
    ``hydrate.py`` with what it imports and its systemd unit, ``misses.py`` with a timer; ``user-data.sh`` with programs
    and blocks inside; a Containerfile for a Bottlerocket bootstrap container, and a DaemonSet.
    """
    files = {name: node_file(name).read_text() for name in _EXPORTED}
    files |= {"hydrate.list": hydrate_list, "prefetch.list": prefetch_list, "user-data.sh": user_data(hydrate_list)}
    written = []
    with room_for(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in sorted(files.items()):
            atomic.replace(folder / name, text, mode=0o644)
            written.append(folder / name)
    return tuple(written)


def install(root: Path, hydrate_list: str, prefetch_list: str = "") -> bool:
    """Put the hydrate service and its lists into a mounted root file system; False where there is no systemd.

    Where the root enforces SELinux they have labels. The same lists give the same files. No symbolic link of the root
    is followed out of it.
    """
    from parbake.machine.disk import inside, label

    if not inside(root, "usr/lib/systemd/systemd").is_file():
        return False
    texts = {
        LIST: hydrate_list,
        FILES: prefetch_list,
        **{f"{_PROGRAMS}/{name}": node_file(name).read_text() for name in PROGRAMS},
        _UNIT: node_file("parbake-hydrate.service").read_text(),
    }
    for name, text in texts.items():
        path = inside(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
    link = inside(root, str(Path(_WANTED).parent)) / Path(_WANTED).name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(f"/{_UNIT}")
    label(root, [inside(root, LIST).parent, inside(root, _PROGRAMS), inside(root, _UNIT), link.parent])
    return True
