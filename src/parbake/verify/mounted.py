"""An image as a pod's volume: mounted, read-only, in a container of the node's pause image, and looked into there.

Sources: Kubernetes documentation, "Use an Image Volume With a Pod"; containerd's CRI plugin
(``container_image_mount.go``) mounts the image's own snapshots, and only the container's mount namespace shows them
where the pod asked for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from parbake.containerd.cri import has_image_volumes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from parbake.containerd import Cri
    from parbake.containerd.cri import Pod

NEEDS = "an image volume needs containerd 2.1 or later, and this is {runtime}"
# Any process of the container sees its mounts: one look at all, since to start a program for each takes seconds in
# emulation. What the image itself links to is not followed: it would lead out of it.
_LOOK = """\
found=$(grep -sHm 1 "^[^ ]* [^ ]* [^ ]* [^ ]* $1 " /proc/[0-9]*/mountinfo | head -n 1)
[ -n "$found" ] || { echo "unmounted"; exit; }
case "$found" in *" $1 ro "* | *" $1 ro,"*) ;; *) echo "writable"; exit ;; esac
place=${found%%/mountinfo:*}/root$1$2
[ -e "$place" ] || [ -L "$place" ] || { echo "missing"; exit; }
[ ! -d "$place" ] || [ -n "$(ls -A "$place")" ] || { echo "empty"; exit; }
echo "there"
ls -Ap "$place"
"""
_WRONG = {
    "writable": "the image is mounted, but can be written to",
    "missing": "the image is mounted, and holds no {path}",
    "empty": "the image is mounted, and {path} is an empty folder",
    "unmounted": "the runtime started the pod, but mounted no image in it",
}


def refusal(version: str) -> str:
    """Say why this runtime mounts no images; empty: it does. Pure."""
    return "" if has_image_volumes(version) else NEEDS.format(runtime=version)


def create(cri: Cri, pod: Pod, pause: str, image: str, *, timeout: float) -> str:
    """Make a container of the pause image that has ``image`` as a volume; return its id."""
    return cri.create_container(pod, "main", pause, image_volumes={place(pod): image}, log_path="log", timeout=timeout)


def place(pod: Pod) -> str:
    """Return where the image is mounted: a name that no other mount of the machine has."""
    return f"/image-{pod.id[:16]}"


def look(run: Callable[[Sequence[str]], str], at: str, path: str) -> tuple[str, Sequence[str]]:
    """Look at ``path`` of what is mounted ``at``; return what is wrong (empty: nothing) and the names there.

    ``run`` runs a program where containers are started, and returns its output.
    """
    state, *names = run(["sh", "-c", _LOOK, "sh", at, path.rstrip("/")]).splitlines()
    return _WRONG[state].format(path=path) if state in _WRONG else "", names
