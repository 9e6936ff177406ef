"""A node for the guest script: programs on PATH that keep notes instead of running containers. A stand-in."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from parbake.builders import guest
from parbake.core.model import Image, Plan

CTR = """\
[ "$1" = -n ] && [ "$2" = k8s.io ] && shift 2
echo "ctr $*" >>"$FAKE/calls"
case "$1 $2" in
"version ") exit 0 ;;
"images pull")
    for last; do :; done
    [ -f "$FAKE/refuse" ] && { cat "$FAKE/refuse" >&2; exit 1; }
    cat "$6"/*/hosts.toml >"$FAKE/seen-hosts" 2>/dev/null
    echo "$last ${last##*@}" >>"$FAKE/images" ;;
"images import") name=$(sed -n 1p "$5"); echo "$name $(sed -n 2p "$5")" >>"$FAKE/images" ;;
"images tag") digest=$(grep "^$4 " "$FAKE/images" | cut -d ' ' -f 2); echo "$5 $digest" >>"$FAKE/images" ;;
"images export") grep "^$6 " "$FAKE/images" | tr ' ' '\\n' >"$5" ;;
"images label") echo "$3" >>"$FAKE/pinned" ;;
"images rm") grep -v "^$3 " "$FAKE/images" >"$FAKE/rest"; mv "$FAKE/rest" "$FAKE/images" ;;
"images check") echo "REF TYPE DIGEST STATUS SIZE UNPACKED"; echo "x y z complete (3/3) 1 MiB ${UNPACKED:-true}" ;;
"images ls")
    case $3 in labels*) echo REF; cut -d ' ' -f 1 "$FAKE/images" | grep -Fxf "$FAKE/pinned"; exit 0 ;; esac
    name=${3#name==\\"}; name=${name%\\"}
    grep "^$name " "$FAKE/images" | while read -r n d; do
        echo "$n type ${WRONG:-$d} 1 MiB linux/amd64 $(grep -qx "$n" "$FAKE/pinned" && echo pinned)"; done ;;
"content get") cat "$FAKE/manifest" ;;
"content ls") cat "$FAKE/content" ;;
esac
exit 0
"""
# In the place of src/parbake/node/prove.py, which tests/system/builders/test_prove.py runs with a containerd: looks
# into the notes.
PROVER = """\
import json, os, pathlib, sys
fake = pathlib.Path(os.environ["FAKE"])
there = [line.split() for line in (fake / "images").read_text().splitlines()]
code = (fake / "code").read_text() if (fake / "code").exists() else "0"
for subject in json.loads(pathlib.Path(sys.argv[3]).read_text()):
    name = subject["names"][0]
    proof = {"name": name, "pinned": name in (fake / "pinned").read_text().split(), "problems": []}
    if not any(each == name and digest.startswith(subject["target"]) for each, digest in there):
        proof["problems"] = [name + ": the runtime's store has no image of this name"]
    elif code != "0":
        proof["problems"] = ["it ended with code " + code + " before it was up"]
    elif subject["start"]:
        proof.update(start_seconds=0.5, sandbox_seconds=0.1, output="")
    print("stage start", name)
    print("proved", json.dumps(proof))
"""
PROGRAMS = {
    "ctr": CTR,
    "python3": f'exec {sys.executable} -SE "$FAKE/prover.py" "$@"\n',
    "systemctl": 'echo "systemctl $*" >>"$FAKE/calls"; [ "$1" = poweroff ] && kill -9 0; exit 0\n',
    "poweroff": 'echo "poweroff $*" >>"$FAKE/calls"; kill -9 0\n',
    "fstrim": "exit 0\n",
    "sync": "exit 0\n",
    "sleep": '[ "$1" -ge 300 ] && exec /bin/sleep 60; exec /bin/sleep 0.02\n',
    "containerd": """echo "root = '/var/lib/containerd'"\n""",
    # A second disk: what is mounted over the store is another store.
    "lsblk": 'cat "$FAKE/disks"\n',
    "blkid": """\
echo "blkid $*" >>"$FAKE/calls"
[ "$1" = -U ] && { echo /dev/nvme1n1; exit 0; }
grep -qx "$2" "$FAKE/blank" && exit 2 || exit 0
""",
    "mkfs.ext4": 'echo "mkfs.ext4 $*" >>"$FAKE/calls"; : >"$FAKE/volume-images"; : >"$FAKE/volume-pinned"\n',
    "mount": """\
echo "mount $*" >>"$FAKE/calls"
case $2 in */containerd) for each in images pinned; do
    mv "$FAKE/$each" "$FAKE/base-$each"; cp "$FAKE/volume-$each" "$FAKE/$each"; done ;; esac
""",
    "umount": """\
echo "umount $*" >>"$FAKE/calls"
case $1 in */containerd) for each in images pinned; do
    mv "$FAKE/$each" "$FAKE/volume-$each"; mv "$FAKE/base-$each" "$FAKE/$each"; done ;; esac
""",
}


APPLETS = ("blkid", "fstrim", "mount", "poweroff", "sleep", "sync", "umount")
"""What busybox's shell would do by itself, for real, whatever is on PATH."""


@dataclass(frozen=True, slots=True)
class Node:
    """A folder that plays a machine. ``run`` boots it, so to speak, and returns what came on the console."""

    folder: Path
    shell: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("bin", "root/run", "fake"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for name, text in PROGRAMS.items():
            self.program(name, text)
        for name in ("images", "pinned", "calls", "disks", "blank", "content"):
            (self.fake / name).touch()
        (self.fake / "prover.py").write_text(PROVER)

    @property
    def fake(self) -> Path:
        return self.folder / "fake"

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def calls(self) -> list[str]:
        return (self.fake / "calls").read_text().splitlines()

    def program(self, name: str, text: str) -> None:
        """Put a program on the machine."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)

    def holds(self, *images: Image) -> None:
        """Let the store list the content of images, as after a pull."""
        found = {digest for image in images for digest in (image.manifest.digest, image.config.digest)}
        found |= {layer.digest for image in images for layer in image.layers}
        (self.fake / "content").write_text("".join(f"{digest}\n" for digest in sorted(found)))

    def second_disk(self, size: int, *, blank: bool = True) -> None:
        """Attach a disk of ``size`` bytes, with nothing on it or with a store."""
        (self.fake / "disks").write_text(f"nvme0n1 8589934592 disk\nnvme0n1p1 8588886016 part\nnvme1n1 {size} disk\n")
        (self.fake / "blank").write_text("/dev/nvme1n1\n" if blank else "")

    def put(self, notes: str, *, on: str = "") -> None:
        """Put into a store what another node has noted; ``on`` is the beginning of the notes' names."""
        images, _, pinned = notes.partition("---\n")
        (self.fake / f"{on}images").write_text(images)
        (self.fake / f"{on}pinned").write_text(pinned)

    def stored(self, *, on: str = "") -> str:
        """Return what a store holds, as notes."""
        if not (self.fake / f"{on}images").exists():
            return ""
        return f"{(self.fake / f'{on}images').read_text()}---\n{(self.fake / f'{on}pinned').read_text()}"

    def run(self, data: bytes, **environment: str) -> str:
        """Run the script of some user data to the power-off."""
        text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
        script = text.partition("text/x-shellscript")[2].partition("\n\n")[2].rpartition("\n--==parbake==")[0]
        own = "".join(f'{name}() {{ "{self.folder}/bin/{name}" "$@"; }}\n' for name in APPLETS)
        (self.folder / "script").write_text(own + script)
        console = self.folder / "console"
        console.touch()
        subprocess.run(
            [*self.shell, str(self.folder / "script")],
            env={
                "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
                "FAKE": str(self.fake),
                "PARBAKE_ROOT": str(self.root),
                "CONSOLE": str(console),
                "PARBAKE_PAUSE": "0",
                **environment,
            },
            check=False,
            timeout=60,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "errors").open("wb"),
            start_new_session=True,  # power-off kills all processes of the group
        )
        return console.read_text(errors="replace")


def bake(plan: Plan, **more: object) -> bytes:
    """Return user data for a bake of a plan, as ``run-1``."""
    wishes: dict[str, object] = {"limit": 600, "registries": {}, **more}
    return guest.user_data(plan, "run-1", "bake", **wishes)  # type: ignore[arg-type]


SHELLS = {
    "dash": ("/bin/dash",),
    "busybox": ("/bin/busybox", "sh"),
}
SHELLS = {name: command for name, command in SHELLS.items() if os.path.exists(command[0])}  # noqa: PTH110
