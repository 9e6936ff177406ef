"""The demo's application image: a build context, made on the spot from Debian packages.

``context/`` holds what a user would write (Containerfile, app.py); the root file system comes from mmdebstrap and is
cached by its recipe.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib import resources
from pathlib import Path

from parbake.core import atomic, sealed
from parbake.core.errors import CommandFailed, EnvironmentProblem
from parbake.core.events import Events
from parbake.core.run import isolated, need, need_root, run
from parbake.core.workspace import lock, part_of, publish, remove_leftovers, work_folder

NAME = "forecast"
SUITE = "trixie"
PACKAGES = ("base-files", "python3-pandas", "python3-scipy")
_FILES = ("Containerfile", "app.py")
# Packages are unpacked, and not set up: the service needs no shell, no users and no package manager. What their scripts
# would have done and it does need is one link for each of two libraries. Documentation, translations and the packages'
# own tests are a sixth of the bytes, and nothing that a service reads.
_FINISH = (
    'cd "$1"/usr/lib/*-linux-gnu* && ln -s blas/libblas.so.3 lapack/liblapack.so.3 .',
    'cd "$1"/usr && rm -r share/doc share/man share/locale lib/python3/dist-packages/*/tests',
)
# mmdebstrap takes ten seconds; ten minutes bear with a slow mirror.
_TIMEOUT = 600.0

_BAKEFILE = """\
# What to bake: the demo's sample application, {what}.
version: 1
name: {name}
images:
  - reference: {reference}
    build:
      context: {context}
    startup:
      up:
        http: 8080/healthz
{target}
"""
_MACHINE = {"what": "onto parbake's default base", "name": "demo", "target": "base: debian\nartefact: qcow2"}
_VOLUME = {"what": "into a volume for a node's second disk", "name": "demo-volume", "target": "base: none"}


def bakefile(reference: str, *, volume: bool = False) -> str:
    """Return the text of a Bakefile that builds the sample as ``reference`` and bakes a machine image, or a volume."""
    return _BAKEFILE.format(reference=reference, context=NAME, **(_VOLUME if volume else _MACHINE))


def _recipe() -> list[str]:
    """Return mmdebstrap's arguments, but for the target."""
    return [
        "--quiet",
        "--variant=extract",
        "--format=tar",
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--extract-hook={line}" for line in _FINISH),
        f"--include={','.join(PACKAGES)}",
        SUITE,
    ]


def prepare(folder: Path, *, events: Events, cache: Path) -> Path:
    """Write the sample's build context (about 200 MB) into a folder, which is made, and return it.

    The root file system is fetched and unpacked once for each recipe and kept in ``cache``. Raises EnvironmentProblem
    (mmdebstrap or a package mirror is missing, not root).
    """
    rootfs = _rootfs(events, cache)
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        content = resources.files(__name__).joinpath("context", name).read_bytes()
        atomic.replace(folder / name, content, mode=0o644)
    target = folder / "rootfs.tar"
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(rootfs)
    except OSError:  # another file system
        shutil.copyfile(rootfs, target)
    return folder


def _rootfs(events: Events, cache: Path) -> Path:
    recipe = _recipe()
    identity = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
    folder = part_of(cache, "sample")
    finished = folder / f"rootfs-{identity[:16]}.tar"
    with lock(folder / "lock", what="the sample's root file system"):
        remove_leftovers(folder)
        if finished.exists() and sealed.is_sealed(finished, _digest_of(finished)):
            return finished
        need("mmdebstrap")
        need_root("making the sample's root file system with mmdebstrap")
        with (
            events.stage("sample", f"make the sample's root file system ({', '.join(PACKAGES)})"),
            work_folder(folder, "rootfs") as work,
        ):
            (work / "tmp").mkdir()  # mmdebstrap's chroot: removed with the work folder however we end
            target = work / "rootfs.tar"
            try:
                command = isolated(["mmdebstrap", *recipe, str(target)])
                run(command, timeout=_TIMEOUT, env={"TMPDIR": str(work / "tmp")})
            except CommandFailed as error:
                raise EnvironmentProblem(
                    f"mmdebstrap could not make the sample's root file system\n{error.output}",
                    hint="does `apt-get update` work on this machine? The sample comes from Debian's packages",
                ) from error
            sealed.seal(finished, _digest_of(target))
            publish(target, finished)
    return finished


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
