"""The default base's recipe: data whose digest follows from all that shapes the image, and from nothing else."""

from __future__ import annotations

import importlib.util
import os
import platform
import py_compile
import struct
import tomllib
from pathlib import Path
from typing import Any

import pytest

from parbake.core.errors import EnvironmentProblem, InputError
from parbake.core.model import MIB, Platform
from parbake.images.pause import REFERENCE
from parbake.machine.base import SIZE, build, describe, native
from parbake.machine.base.grub import install_bios
from parbake.machine.base.recipe import files

TIMES = py_compile.PycInvalidationMode.TIMESTAMP
AMD64, ARM64 = Platform(architecture="amd64"), Platform(architecture="arm64")


def test_the_identity_follows_from_the_recipe() -> None:
    plain = describe(AMD64)
    assert plain == describe(AMD64, [])
    assert plain.identity == describe(AMD64).identity
    assert plain.identity.startswith("sha256:")
    more = describe(AMD64, ["socat", "ethtool"])
    assert more.identity == describe(AMD64, ["ethtool", "socat", "ethtool", "systemd"]).identity
    others = [
        more,
        describe(AMD64, serial="2025-09-01"),
        plain.model_copy(update={"files": plain.files | {"tree/etc/fstab": "0"}}),
        plain.model_copy(update={"masked_units": ()}),
        plain.model_copy(update={"finish": plain.finish[1:]}),
    ]
    assert len({recipe.identity for recipe in (plain, *others)}) == len(others) + 1
    assert plain.uuid("root") != plain.uuid("disk")
    assert plain.uuid("root") != more.uuid("root")


def test_every_file_is_part_of_the_recipe() -> None:
    assert set(describe(AMD64).files) == set(files("amd64"))
    for name in ("tree/etc/containerd/config.toml", "early/etc/initramfs-tools/hooks/parbake", "loader/start.cfg"):
        assert name in files("amd64")


def test_an_architecture_has_its_own_kernel_loader_and_console() -> None:
    amd, arm = describe(AMD64), describe(ARM64)
    assert amd.identity != arm.identity
    assert set(amd.packages) ^ set(arm.packages) == {"linux-image-cloud-amd64", "linux-image-cloud-arm64"}
    assert [part.name for part in arm.slices] == ["esp", "root"]  # there is no BIOS
    assert arm.slice("root").type == "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"  # systemd's word for root on arm64
    differing = {name for name in files("amd64") if files("amd64")[name] != files("arm64").get(name)}
    assert differing == {"tree/boot/grub/grub.cfg"}
    assert set(files("amd64")) == set(files("arm64"))
    # Which serial line it is depends on the machine, and a console that is named is taken for the only one.
    assert b"console=" not in files("arm64")["tree/boot/grub/grub.cfg"]


def test_the_base_of_amd64_is_the_same_as_ever() -> None:
    """Its identity is part of content keys: another one means another bake for everybody."""
    assert describe(AMD64).identity.startswith("sha256:985c710944d4b474")


@pytest.mark.parametrize(
    ("machine", "processors"),
    # twice: the programs that need no emulation are unpacked first
    [("x86_64", ["cortex-a72", "cortex-a72"]), ("aarch64", [None]), ("riscv64", ["cortex-a72"])],
)
def test_programs_of_arm64_run_on_a_plain_processor_in_emulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, processors: list[str | None]
) -> None:
    """Its own machine runs them itself; on one without programs for it, all are emulated."""
    ran: list[dict[str, Any]] = []
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(build, "find", lambda _: "")
    monkeypatch.setattr(build, "run", lambda _, **more: ran.append(more))
    monkeypatch.setattr(native, "prepare", lambda *_: ("divert", "initrd", "restore"))
    build._install(describe(ARM64), tmp_path)
    assert [more["env"].get("QEMU_CPU") for more in ran] == processors


def test_the_initial_ram_disk_is_made_and_the_root_has_its_own_programs_before_anything_else_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hooks read files that are added later."""
    ran: list[list[str]] = []
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(build, "find", lambda _: "")
    monkeypatch.setattr(build, "run", lambda command, **_: ran.append(command))
    monkeypatch.setattr(native, "prepare", lambda *_: ("divert", "initrd", "restore"))
    build._install(describe(ARM64), tmp_path)
    unpack, install = ran
    assert {"--variant=extract", "--architectures=amd64"} < set(unpack)
    hooks = [word for word in install if "-hook=" in word]
    assert hooks[:3] == [
        "--extract-hook=divert",
        "--customize-hook=initrd",
        "--customize-hook=restore",
    ]
    assert hooks.index('--customize-hook=cp -r --preserve=mode tree/. "$1"') > 2


def test_python_compares_its_compiled_modules_with_the_times_that_their_sources_get(tmp_path: Path) -> None:
    """Not with hashes, for which it would read all sources; what somebody changes on a node is compiled anew."""
    folder, epoch = tmp_path / "usr/lib/python3/dist-packages/some", 1_700_000_000
    folder.mkdir(parents=True)
    for name, time in (("old", epoch - 5), ("new", epoch + 5)):
        (folder / f"{name}.py").write_text(f"name = {name!r}\n")
        os.utime(folder / f"{name}.py", (time, time))
        py_compile.compile(str(folder / f"{name}.py"), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    build._date_bytecode(tmp_path, epoch)
    build._limit_times(tmp_path, epoch)
    for name in ("old", "new"):
        compiled = importlib.util.cache_from_source(str(folder / f"{name}.py"))
        before = Path(compiled).read_bytes()
        assert py_compile.compile(str(folder / f"{name}.py"), cfile=str(tmp_path / "again"), invalidation_mode=TIMES)
        assert before == (tmp_path / "again").read_bytes()


def test_containerd_asks_for_the_pause_image_that_is_baked() -> None:
    config = tomllib.loads(files("amd64")["tree/etc/containerd/config.toml"].decode())
    assert config["version"] == 2
    assert config["plugins"]["io.containerd.grpc.v1.cri"]["sandbox_image"] == REFERENCE


def test_partitions_lie_side_by_side_and_the_root_comes_last() -> None:
    end = 1 * MIB
    for part in describe(AMD64).slices:
        assert part.start == end
        end = part.start + part.size
    assert part.name == "root"
    assert end == SIZE - 1 * MIB  # room for the second table


@pytest.mark.parametrize("platform", ["linux/riscv64", "linux/arm/v7", "linux/arm64/v9", "windows/amd64"])
def test_other_platforms_are_refused(platform: str) -> None:
    with pytest.raises(InputError, match="linux/amd64 and linux/arm64, not for"):
        describe(Platform.parse(platform))


@pytest.mark.parametrize("name", ["", "-o", "a", "Socat", "a b", "a,b", "a/trixie", "a\n"])
def test_what_is_no_package_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="not a valid Debian package name"):
        describe(AMD64, [name])


def test_the_boot_sector_keeps_the_table_and_points_to_the_loader(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    table = bytes(range(72))
    image.write_bytes(b"\0" * 440 + table + b"\0" * 3 * MIB)
    core = bytes(i % 251 for i in range(3000))
    install_bios(image, core, start=MIB, size=MIB)
    content = image.read_bytes()
    assert content[440:512] == table
    assert struct.unpack_from("<Q", content, 0x5C)[0] == MIB // 512
    assert struct.unpack_from("<Q", content, MIB + 512 - 12)[0] == MIB // 512 + 1
    assert content[MIB + 512 : MIB + 3000] == core[512:]
    with pytest.raises(EnvironmentProblem, match="core image"):
        install_bios(image, core, start=MIB, size=2999)
