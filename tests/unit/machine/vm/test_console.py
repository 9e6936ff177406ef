"""Reading a serial console."""

from __future__ import annotations

import pytest

from parbake.machine.vm import console

HEALTHY = """\x1b[2J\x1b[01;01HSeaBIOS (version 1.16.3)\r
Booting from Hard Disk...\r
[    0.000000] Linux version 6.12.1\r
[    1.0] systemd[1]: Started emergency.service - never mind\r
[  OK  ] Reached target multi-user.target - Multi-User System.\r
node login: """


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs", "the kernel panicked"),
        ("You are in emergency mode. After logging in, type", "systemd went into emergency mode"),
        ("ALERT!  UUID=1 does not exist.  Dropping to a shell!", "the initial RAM disk found no root file system"),
        ("(initramfs) ", "the initial RAM disk found no root file system"),
        ("No bootable device.", "the firmware found nothing to boot"),
        ("BdsDxe: No bootable option or device was found.", "the firmware found nothing to boot"),
        ("\x1b[0mgrub rescue> ", "the boot loader cannot find its files"),
    ],
)
def test_the_end_is_seen_early(line: str, meaning: str) -> None:
    assert console.diagnosis(f"{HEALTHY}\r\n{line}") == meaning


def test_a_healthy_console_shows_nothing() -> None:
    assert console.diagnosis(HEALTHY) == ""
    assert console.diagnosis("") == ""


def test_the_tail_is_clean_and_short() -> None:
    text = HEALTHY + "\r\n\r\n" + "\x1b[1;31mred\x1b[0m\x07 line\r\n" * 50
    assert console.tail(text, 3) == "red line\nred line\nred line"
    assert console.tail(HEALTHY).splitlines()[0] == "SeaBIOS (version 1.16.3)"
