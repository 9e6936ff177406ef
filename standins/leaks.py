"""What a run has left on the machine: mounts, loop devices, processes, cgroups, files.

    before = snapshot(tmp_path)
    ...                                        # runs whose files, TMPDIR and PARBAKE_CACHE lie below tmp_path
    assert leaked(before, tmp_path, pids) == []      # waits a little for what is just ending

Only what has to do with the folder counts, since other programs live on the machine as well. A process has to do with
it when its arguments, its environment, its working folder, its root or an open file name the folder: children of a run
inherit its TMPDIR. Mounts are looked for in every mount namespace that a process is in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from parbake.core.run import Deadline

_CGROUP = re.compile(r"parbake-(\d+)-(\d+)-[0-9a-f]{8}")  # process id and start time of the owner


@dataclass(frozen=True)
class Snapshot:
    """What is there, each as a line for people; two snapshots are compared by set difference."""

    mounts: frozenset[str]
    loops: frozenset[str]
    processes: frozenset[str]
    cgroups: frozenset[str]

    def since(self, before: Snapshot) -> list[str]:
        """Return what is new, sorted."""
        return sorted(
            [f"mount: {line}" for line in self.mounts - before.mounts]
            + [f"loop device: {line}" for line in self.loops - before.loops]
            + [f"process: {line}" for line in self.processes - before.processes]
            + [f"cgroup: {line}" for line in self.cgroups - before.cgroups]
        )


def snapshot(area: Path, runs: Collection[int] = ()) -> Snapshot:
    """Look at everything on the machine that has to do with a folder; ``runs``: process ids of runs that were there."""
    text = str(area.resolve())
    loops = {device: file for device, file in _loops() if text in file}
    return Snapshot(
        frozenset(_mounts(text, set(loops))),
        frozenset(f"{device} on {file}" for device, file in loops.items()),
        frozenset(_processes(text)),
        frozenset(_ownerless_cgroups(runs)),
    )


def leaked(
    before: Snapshot, area: Path, runs: Collection[int] = (), *, patience: float = 120.0, alive: Collection[int] = ()
) -> list[str]:
    """Return what is there that was not before and does not go away by itself within ``patience`` seconds.

    ``alive`` are processes that are to be there, and are not waited for.
    """
    deadline = Deadline(patience, "what is just ending")
    while True:
        new = snapshot(area, runs).since(before)
        new = [line for line in new if not any(line.startswith(f"process: {pid} (") for pid in alive)]
        if not new or not deadline.left:
            return new
        deadline.sleep(0.1)


def files(folder: Path) -> set[str]:
    """Return every file below a folder, and every empty folder, relative to it."""
    found = set()
    for here, folders, names in os.walk(folder):
        inside = Path(here).relative_to(folder)
        found |= {str(inside / name) for name in names}
        if not folders and not names and here != str(folder):
            found.add(f"{inside}/")
    return found


def work_folders(*parents: Path) -> list[str]:
    """Return what lies in the work folders and locks anywhere below these folders."""
    return sorted(str(path) for parent in parents for found in parent.rglob(".parbake") for path in found.iterdir())


def _pids() -> Iterator[Path]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield entry


def _loops() -> Iterator[tuple[str, str]]:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            yield f"/dev/{backing.parents[1].name}", backing.read_text().strip()


def _mounts(area: str, devices: set[str]) -> Iterator[str]:
    seen: set[int] = set()
    for process in _pids():
        with suppress(OSError):
            namespace = (process / "ns/mnt").stat().st_ino
            if namespace in seen:
                continue
            lines = (process / "mountinfo").read_text().splitlines()
            seen.add(namespace)
            for line in lines:  # proc(5): id, parent, device, root, mount point, options, ... - type, source, options
                before, _, after = line.partition(" - ")
                root, at = before.split()[3:5]
                kind, source = after.split()[:2]
                if area in root or area in at or area in source or source in devices:
                    yield f"{source} ({kind}) at {at} in namespace {namespace}"


def _processes(area: str) -> Iterator[str]:
    for process in _pids():
        if int(process.name) == os.getpid():
            continue
        with suppress(OSError):
            if any(area in word for word in _words_of(str(process))):
                stat = (process / "stat").read_text()
                state, started = stat.rpartition(")")[2].split()[0], stat.rpartition(")")[2].split()[19]
                command = (process / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
                group = (process / "cgroup").read_text().split()
                yield f"{process.name} ({state}, started {started}): {command or stat} in {group}"


def _words_of(process: str) -> Iterator[str]:
    # Of hundreds of processes, again and again: objects for each path would take longer than all else.
    for name in ("cmdline", "environ"):
        with open(f"{process}/{name}", "rb") as file:  # noqa: PTH123
            yield os.fsdecode(file.read())
    for name in ("cwd", "root", "exe"):
        with suppress(OSError):  # a kernel thread has none
            yield os.readlink(f"{process}/{name}")  # noqa: PTH115
    for handle in os.listdir(f"{process}/fd"):  # noqa: PTH208
        with suppress(OSError):
            yield os.readlink(f"{process}/fd/{handle}")  # noqa: PTH115


def _ownerless_cgroups(runs: Collection[int]) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        if not kind.startswith("cgroup"):
            continue
        for folder in Path(fields.split()[4]).glob("parbake-*"):
            owner = _CGROUP.fullmatch(folder.name)
            # What ran in this process has ended, too.
            if owner and int(owner[1]) in runs and (int(owner[1]) == os.getpid() or _started(owner[1]) != owner[2]):
                yield str(folder)


def _started(pid: str) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
