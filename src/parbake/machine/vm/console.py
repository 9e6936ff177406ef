"""The serial console of a machine that boots: its last lines for people, and the signs that it will never be up."""

from __future__ import annotations

import os
import re
from pathlib import Path

_LINES = 20
_MOST = 4 << 20
# Escape sequences (firmware and systemd draw with them) and control characters that are no newline.
_NOISE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\-_c]|[\x00-\x09\x0b-\x1f\x7f]")

# What a console says when nothing but time will follow, and what that means.
_SIGNS = tuple(
    (re.compile(pattern), meaning)
    for pattern, meaning in (
        (r"Kernel panic - not syncing", "the kernel panicked"),
        (r"[Yy]ou are in (?:emergency|rescue) mode|Entering emergency mode", "systemd went into emergency mode"),
        (r"dracut-emergency|Entering dracut shell", "the initial RAM disk found no root file system"),
        (r"Dropping to a shell!|(?m:^\(initramfs\))", "the initial RAM disk found no root file system"),
        (r"No bootable device", "the firmware found nothing to boot"),
        (
            r"BdsDxe: No bootable option|BdsDxe: failed to load Boot\w+ \"UEFI Misc Device\"",
            "the firmware found nothing to boot",
        ),
        (r"grub rescue>", "the boot loader cannot find its files"),
    )
)


def clean(text: str) -> str:
    """Return console text without escape sequences and carriage returns."""
    return _NOISE.sub("", text.replace("\r\n", "\n"))


def diagnosis(text: str) -> str:
    """Return what is wrong when the console shows that the machine will not come up, else an empty string."""
    cleaned = clean(text)
    return next((meaning for pattern, meaning in _SIGNS if pattern.search(cleaned)), "")


def tail(text: str, lines: int = _LINES) -> str:
    """Return the last lines that are not blank."""
    return "\n".join([line.rstrip() for line in clean(text).splitlines() if line.strip()][-lines:])


def read(log: Path) -> str:
    """Return the end of a console log (at most 4 MiB); a machine that never started has none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _MOST))
            return file.read(_MOST).decode(errors="replace")
    except FileNotFoundError:
        return ""
