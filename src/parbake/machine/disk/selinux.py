"""SELinux labels of a mounted root: those that its own policy gives, as ``restorecon`` would write them on the node.

What a bake writes it writes without the node's kernel, so it has no labels; a node that enforces a policy then lets no
container read it. Sources: selinux(8), selabel_file(5), setfiles(8); the policy's store is ``/etc/selinux/<type>``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from parbake.core.errors import BadBase
from parbake.core.files import read_file
from parbake.core.run import run
from parbake.machine.disk.roots import inside

_CONFIG = "etc/selinux/config"
_MOST_CONFIG = 1 << 16
_MOST_TEXT = 16 << 20  # Fedora's has half a MiB
_TEXTS = ("", ".homedirs", ".local", ".subs", ".subs_dist")  # selabel_file(5)
_TIMEOUT = 3600.0  # an expression can take for ever to match, and millions of files their time
_LINE = re.compile(r"^\s*(SELINUX|SELINUXTYPE)\s*=\s*([\w.-]+)\s*$", re.MULTILINE)


def policy_of(config: str) -> str:
    """Return the name of the policy that a root enforces by its ``/etc/selinux/config``, empty for none. Pure."""
    fields = dict(_LINE.findall(config))
    return fields.get("SELINUXTYPE", "targeted") if fields.get("SELINUX", "").lower() == "enforcing" else ""


def file_contexts(root: Path) -> Path | None:
    """Return the list of labels of the policy that a mounted root enforces, None where it enforces none.

    Raises BadBase where the policy is not installed in it.
    """
    config = inside(root, _CONFIG)
    if not config.is_file():
        return None
    with config.open("rb") as file:
        policy = policy_of(file.read(_MOST_CONFIG).decode(errors="replace"))
    if not policy:
        return None
    place = f"etc/selinux/{policy}/contexts/files/file_contexts"
    found = inside(root, place)
    if policy in {".", ".."} or not found.is_file():
        raise BadBase(
            f"the base enforces SELinux's policy {policy} and has no /{place}: what a bake writes would have no labels",
            hint="install the policy in the base, or write SELINUX=permissive in its /etc/selinux/config",
        )
    return found


def label(root: Path, paths: Iterable[Path]) -> None:
    """Give files of a mounted root, and all below, the labels that its policy has for them; others stay as they are.

    Nothing happens where the root enforces no policy. Raises BadBase as above and for a list of any size,
    EnvironmentProblem without ``setfiles``, CommandFailed for a list that it cannot read.
    """
    contexts = file_contexts(root)
    wanted = [str(path) for path in paths]
    if contexts is not None and wanted:
        with TemporaryDirectory(prefix="parbake-labels-") as folder:
            # -m: which mounts of this machine have labels does not matter
            command = ["setfiles", "-m", "-r", str(root), str(_text_of(contexts, Path(folder))), *wanted]
            run(command, timeout=_TIMEOUT)


def _text_of(contexts: Path, folder: Path) -> Path:
    """Copy the text of a list of labels, with what belongs to it, to where nothing else is; return the list.

    Beside it may be a compiled list, which ``setfiles`` takes instead: regular expressions in the form that PCRE has in
    memory, believed as they lie. A base may be a stranger's.
    """
    for suffix in _TEXTS:
        path = contexts.with_name(contexts.name + suffix)
        if path.is_symlink() or not path.exists():
            continue
        try:
            (folder / path.name).write_bytes(read_file(path, _MOST_TEXT))
        except OSError as error:
            raise BadBase(f"the base's list of labels {path.name}: {error.strerror}") from error
    return folder / contexts.name
