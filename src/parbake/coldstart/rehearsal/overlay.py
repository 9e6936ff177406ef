"""A disk image as a file that can be written without changing it: what is written goes into an overlay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parbake.core import run
from parbake.machine.disk import formats

_START = 20.0  # seconds


@contextmanager
def writable(image: Path, folder: Path, *, image_format: str = "raw", in_place: bool = False) -> Iterator[Path]:
    """Yield a raw file that reads as ``image`` and takes writes, which are thrown away at the end.

    With ``in_place`` they go into the image itself, in its own format.
    QEMU's storage daemon shows it through FUSE, so nothing is copied. It dies with us, and a mount namespace of our own
    (``disk.private_mounts``) takes its mount away. Raises BadBase for an image that refers to other files,
    EnvironmentProblem, CommandFailed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    overlay, shown = folder / "overlay.qcow2", folder / "disk"
    options = {"cache": {"no-flush": True}, "discard": "unmap"}
    formats.alone(image, image_format)
    if in_place:
        disk = formats.tree(image_format, image.resolve(), read_only=False, **options)
    else:
        formats.overlay(image, image_format, overlay)
        disk = formats.above(formats.tree(image_format, image.resolve()), overlay, **options)
    shown.touch()
    command = [
        "qemu-storage-daemon",
        "--blockdev", json.dumps({"node-name": "disk", "discard": "unmap", **disk}),
        "--export", f"type=fuse,id=disk,node-name=disk,mountpoint={_quoted(shown)},writable=on",
    ]  # fmt: skip
    try:
        with run.Process(command, log=folder / "storage.log") as daemon:
            deadline = run.Deadline(_START, f"an overlay of {image.name}")
            while not shown.stat().st_size:
                daemon.check_alive()
                deadline.sleep(0.01)
            yield shown
            daemon.check_alive()
    finally:
        run.run(["umount", "--lazy", "--quiet", str(shown)], check=False)
        overlay.unlink(missing_ok=True)


def _quoted(path: Path) -> str:
    return str(path).replace(",", ",,")
