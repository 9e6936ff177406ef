"""Programs of another architecture: what the kernel is told, and what it has been told by others."""

from __future__ import annotations

import pytest

from parbake.core.emulation import is_known, registration

MACHINE = {"amd64": 62, "arm64": 183}  # elf(5), e_machine
DEBIAN = """\
enabled
interpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P
flags: POCF
offset 0
magic 7f454c460201010000000000000000000200b700
mask ffffffffffffff00fffffffffffffffffeffffff
"""


def bytes_of(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x7fELF", "7f454c46").replace("\\x", ""))


@pytest.mark.parametrize("architecture", MACHINE)
def test_what_the_kernel_is_told(architecture: str) -> None:
    line = registration("parbake-some.1.2", architecture, "/usr/bin/qemu-some")
    assert len(line) < 1920  # the kernel's limit (fs/binfmt_misc.c, MAX_REGISTER_LENGTH)
    nothing, name, kind, offset, magic, mask, interpreter, flags = line.split(":")
    assert (nothing, name, kind, offset, interpreter) == ("", "parbake-some.1.2", "M", "0", "/usr/bin/qemu-some")
    assert "F" in flags
    program = bytes_of(magic)
    assert program[:7] == b"\x7fELF\x02\x01\x01"
    assert int.from_bytes(program[18:20], "little") == MACHINE[architecture]
    hidden = bytes_of(mask)
    assert len(hidden) == len(program) == 20
    executable, shared = (bytes([*program[:16], kind, *program[17:]]) for kind in (2, 3))
    other = bytes([*program[:18], 0xF3, *program[19:]])
    matches = [all(a & m == b & m for a, b, m in zip(program, found, hidden, strict=True)) for found in
               (executable, shared, other)]  # fmt: skip
    assert matches == [True, True, False]


@pytest.mark.parametrize(
    ("entry", "known"),
    [
        (DEBIAN, True),
        (DEBIAN.replace("enabled", "disabled"), False),
        (DEBIAN.replace("POCF", "POC"), False),  # its interpreter is looked for in each root
        (DEBIAN.replace("b700", "3e00"), False),
        ("enabled\ninterpreter /usr/bin/jar\nflags: F\nextension .jar\n", False),
        ("", False),
    ],
)
def test_what_others_have_told_it(entry: str, *, known: bool) -> None:
    assert is_known("arm64", [entry]) is known
    assert not is_known("arm64", [])
