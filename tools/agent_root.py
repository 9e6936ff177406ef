"""Lay out the root file system of the agent's image: one program, and what of Debian's Python it takes, no more.

    python3 tools/agent_root.py ROOT          # in the first stage of deploy/agent.Containerfile

No shell, no package manager, no module that the program does not import: the interpreter and its libraries as Debian
has built them, and the modules in one archive, which Python reads as it is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "src/parbake/node/condition.py"
ARCHIVE = f"usr/lib/python{sys.version_info.major}{sys.version_info.minor}.zip"  # where Python looks first
_LOADED = """
import encodings.idna, io, runpy, sys
shown, sys.stdout, sys.argv[:] = sys.stdout, io.StringIO(), [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    files = {getattr(each, "__file__", None) for each in sys.modules.values()}
    print(*sorted(files - {None}), file=shown, sep="\\n")
"""
"""Loads what the program imports, and what its libraries do late: for its options, and for names of hosts."""


def lay_out(root: Path, python: Path) -> None:
    """Fill an empty folder; raises CalledProcessError where the program cannot be loaded."""
    loaded = subprocess.run([python, "-I", "-S", "-c", _LOADED, PROGRAM], check=True, capture_output=True, text=True)
    modules = [Path(line) for line in loaded.stdout.splitlines()]
    library = next(each.parent for each in modules if each.name == "os.py")
    put(root, python.resolve(), f"usr/bin/{python.resolve().name}")
    (root / "usr/bin/python3").symlink_to(python.resolve().name)
    compiled = [each for each in modules if each.suffix == ".so"]
    for each in compiled:
        put(root, each)
    for library_file in sorted({found for each in (python, *compiled) for found in libraries(each)}):
        put(root, Path(library_file))
    (root / ARCHIVE).parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root / ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in modules:
            if each.suffix == ".py" and each.is_relative_to(library):
                archive.writestr(
                    zipfile.ZipInfo(str(each.relative_to(library))), each.read_bytes(), zipfile.ZIP_DEFLATED
                )
    put(root, PROGRAM, PROGRAM.name)


def put(root: Path, file: Path, name: str = "") -> None:
    """Copy a file to the same place below a root, or under another name."""
    target = root / (name or str(file).lstrip("/"))
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, target)


def libraries(program: Path) -> list[str]:
    """Return the shared libraries that a program is linked to, the loader too, by the names by which it finds them."""
    said = subprocess.run(["/usr/bin/ldd", program], check=True, capture_output=True, text=True).stdout
    return re.findall(r"(/\S+) \(0x", said)


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]), Path(os.environ.get("PYTHON", "/usr/bin/python3")))
