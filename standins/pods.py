"""A container of a pod as a process of this machine: its user, its capabilities, its read-only root, its mounts.

    command = as_container(spec, {"bakes": folder, "files": texts, "tmp": empty}, program=["parbake"])
    subprocess.run([*command], env=environment(spec))

``spec`` is the pod's specification, and each of its volumes is a folder here. The root is a container image's
(``root``), or else this machine's programs and this checkout. Of `seccompProfile: RuntimeDefault` it plays what bakes
could want: namespaces, mounts and keys are refused (containerd, ``contrib/seccomp``: what CAP_SYS_ADMIN alone may
call). It does not play the pod's network and limits.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_CHECKOUT = Path(__file__).parent.parent
_SYSTEM = ("bin", "etc", "lib", "lib64", "sbin", "usr")
# unshare, mount, umount2, pivot_root, setns, keyctl, bpf
_REFUSED = {"x86_64": (272, 165, 166, 155, 308, 250, 321), "aarch64": (97, 40, 39, 41, 268, 219, 280)}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_NAMESPACES = 0x7E020000
_FILTER = f"""\
import ctypes, os, struct, sys
machine = os.uname().machine
refused, clone = {_REFUSED!r}[machine], {_CLONE!r}[machine]
def step(code, k, yes=0, no=0): return struct.pack("HBBI", code, yes, no, k)
EPERM, ENOSYS, ALLOW = 0x00050001, 0x00050026, 0x7fff0000
steps = [step(0x20, 0)]
for number in refused: steps += [step(0x15, number, 0, 1), step(0x06, EPERM)]
steps += [step(0x15, {_CLONE3}, 0, 1), step(0x06, ENOSYS)]
steps += [step(0x15, clone, 0, 3), step(0x20, 16), step(0x45, {_NAMESPACES}, 0, 1), step(0x06, EPERM)]
steps += [step(0x06, ALLOW)]
program = b"".join(steps)
kept = ctypes.create_string_buffer(program)
class Program(ctypes.Structure): _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
told = Program(len(steps), ctypes.addressof(kept))
if libc.prctl(22, 2, ctypes.byref(told), 0, 0): sys.exit(os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[1], sys.argv[1:])
"""


def environment(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of a pod's container that are said there literally."""
    return {each["name"]: each["value"] for each in spec["containers"][0].get("env", ()) if "value" in each}


def as_container(
    spec: Mapping[str, Any], volumes: Mapping[str, Path], *, program: Sequence[str], root: Path | None = None
) -> list[str]:
    """Return the command that runs a pod's only container; its volumes' folders become the group's."""
    (container,) = spec["containers"]
    context = {**spec["securityContext"], **container["securityContext"]}
    group = int(spec["securityContext"].get("fsGroup", context["runAsGroup"]))
    for name in {mount["name"] for mount in container["volumeMounts"]}:
        for path in (volumes[name], *volumes[name].rglob("*")):
            os.chown(path, -1, group, follow_symlinks=False)
            path.chmod(0o2770 if path.is_dir() else path.stat().st_mode | 0o440)
    steps = [*_root(root), *_mounts(container, volumes)]
    steps += [] if root else [step for path in (_CHECKOUT, Path(sys.prefix)) for step in _shown(path)]
    steps += ["mount -o remount,bind,ro /mnt"] if context["readOnlyRootFilesystem"] else []
    drop = [f"--reuid={context['runAsUser']}", f"--regid={context['runAsGroup']}", f"--groups={group}"]
    drop += ["--bounding-set=-all", "--inh-caps=-all"] if "ALL" in context["capabilities"]["drop"] else []
    drop += [] if context["allowPrivilegeEscalation"] else ["--no-new-privs"]
    steps.append('exec /usr/sbin/chroot /mnt "$@"')
    inside = ["setpriv", *drop, "--", "/usr/bin/python3", "-I", "-c", _FILTER]
    begin = ["/bin/sh", "-ec", f'cd {shlex.quote(container["workingDir"])} && exec "$@"', "sh"]
    run = [*inside, *begin, *program, *container["args"]]
    return ["unshare", "--mount", "--", "/bin/sh", "-ec", "\n".join(steps), "sh", *run]


def _root(root: Path | None) -> Iterator[str]:
    if root:
        yield f"mount --rbind {shlex.quote(str(root))} /mnt"
    else:
        yield "mount -t tmpfs -o mode=755 none /mnt"
        for name in _SYSTEM:
            path = Path("/", name)
            yield from [f"ln -s {path.readlink()} /mnt/{name}"] if path.is_symlink() else _shown(path)
    for name in ("dev", "proc", "sys"):
        yield f"mkdir -p /mnt/{name} && mount --rbind /{name} /mnt/{name}"


def _shown(path: Path) -> Iterator[str]:
    at = shlex.quote(f"/mnt{path}")
    yield f"mkdir -p {at} && mount --bind {shlex.quote(str(path))} {at} && mount -o remount,bind,ro {at}"


def _mounts(container: Mapping[str, Any], volumes: Mapping[str, Path]) -> Iterator[str]:
    for mount in container["volumeMounts"]:
        source = volumes[mount["name"]] / mount.get("subPath", "")
        at = shlex.quote(f"/mnt{mount['mountPath']}")
        yield f"mkdir -p {at}" if source.is_dir() else f"touch {at}"
        yield f"mount --bind {shlex.quote(str(source))} {at}"
        if mount.get("readOnly"):
            yield f"mount -o remount,bind,ro {at}"
