"""Which firmware a disk gets; the disks are partitioned by sfdisk."""

from __future__ import annotations

from pathlib import Path

import pytest

from parbake.core import run
from parbake.core.errors import BadBase
from parbake.machine.vm import firmware

ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
CODE = b"\xfa\x31\xc0"


def disk(folder: Path, *, label: str, types: tuple[str, ...], code: bytes = b"") -> Path:
    path = folder / "disk.raw"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    lines = [f"label: {label}", *(f"size=2MiB, type={kind}" for kind in types)]
    run.run(["sfdisk", "--quiet", str(path)], stdin="\n".join([*lines, ""]).encode())
    with path.open("r+b") as file:
        file.write(code)
    return path


@pytest.mark.parametrize(
    ("label", "types", "code", "expected"),
    [
        ("gpt", (BIOS_BOOT, ESP, LINUX), CODE, "bios"),  # Debian's and Amazon Linux's images: both work
        ("gpt", (BIOS_BOOT, LINUX), CODE, "bios"),
        ("gpt", (ESP, LINUX), b"", "uefi"),
        ("gpt", (ESP, LINUX), CODE, "uefi"),  # boot code without its partition is somebody's leftover
        ("gpt", (LINUX,), CODE, "bios"),
        ("gpt", (LINUX,), b"", None),
        ("dos", ("83",), CODE, "bios"),
        ("dos", ("83",), b"", None),
        ("dos", ("ef", "83"), b"", "uefi"),
        ("dos", ("ef", "83"), CODE, "bios"),
    ],
)
def test_it_follows_from_the_partition_table(
    tmp_path: Path, label: str, types: tuple[str, ...], code: bytes, expected: str | None
) -> None:
    path = disk(tmp_path, label=label, types=types, code=code)
    assert firmware.firmware_of(firmware.read_head(path, "raw")) == expected
    if expected is None:
        with pytest.raises(BadBase, match="no boot loader"):
            firmware.choose(path, "raw")


@pytest.mark.parametrize(
    ("label", "types", "expected"),
    [
        ("gpt", (BIOS_BOOT, ESP, LINUX), "uefi"),
        ("gpt", (ESP, LINUX), "uefi"),
        ("dos", ("ef", "83"), "uefi"),
        ("gpt", (BIOS_BOOT, LINUX), None),
        ("dos", ("83",), None),
    ],
)
def test_a_machine_without_a_bios_starts_by_uefi(
    tmp_path: Path, label: str, types: tuple[str, ...], expected: str | None
) -> None:
    path = disk(tmp_path, label=label, types=types, code=CODE)
    assert firmware.firmware_of(firmware.read_head(path, "raw"), bios=False) == expected
    if expected is None:
        with pytest.raises(BadBase, match="no boot loader: no EFI system partition"):
            firmware.choose(path, "raw", bios=False)


@pytest.mark.parametrize("qemu_format", ["qcow2", "vmdk", "vpc"])
def test_it_is_found_in_every_format(tmp_path: Path, qemu_format: str) -> None:
    path = disk(tmp_path, label="gpt", types=(ESP, LINUX))
    other = tmp_path / "other"
    run.run(["qemu-img", "convert", "-f", "raw", "-O", qemu_format, str(path), str(other)])
    assert firmware.choose(other, qemu_format) == "uefi"


@pytest.mark.parametrize("content", [b"", b"no disk at all", bytes(4096), b"\xff" * 20_000])
def test_what_is_no_disk_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(BadBase, match="no boot loader"):
        firmware.choose(path, "raw")


def test_a_table_that_lies_about_itself_is_survived() -> None:
    head = bytearray(34 * 512)
    head[510:512] = b"\x55\xaa"
    head[512:520] = b"EFI PART"
    head[512 + 72 : 512 + 88] = b"\xff" * 16
    assert firmware.firmware_of(bytes(head)) is None
