"""Disk images that name other files, devices or connections: whoever is handed one opens nothing but the image."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from parbake.coldstart.rehearsal import writable
from parbake.core import run
from parbake.core.errors import BadBase, CommandFailed, InputError
from parbake.machine.disk import formats
from parbake.machine.vm import firmware
from parbake.machine.vm.machine import Drive, Machine
from standins.runs import parbake


class Trap:
    """A listener on the loopback that counts who comes."""

    def __init__(self) -> None:
        self.came = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"nbd://127.0.0.1:{self._listener.getsockname()[1]}/x"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.came += 1
                connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def trap() -> Iterator[Trap]:
    trap = Trap()
    yield trap
    trap.close()


def backed(path: Path, trap: Trap) -> str:
    run.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", trap.url, "-F", "raw", str(path), "1M"])
    return "qcow2"


def with_data_file(path: Path, trap: Trap) -> str:
    """As ``qemu-img create -o data_file`` writes it, and then the name of a connection in the place of the file's."""
    name = "json:" + json.dumps({"driver": "nbd", "server": {"type": "inet", "host": "127.0.0.1", "port": "1"}})
    port = trap.url.rpartition(":")[2].partition("/")[0]
    name = name.replace('"1"', f'"{port}"')
    place = path.with_name("d" * len(name))
    options = ["-o", f"data_file={place.name},data_file_raw=on"]
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path.name, "1M"], cwd=path.parent)
    place.unlink()
    written = path.read_bytes()
    assert written.count(place.name.encode()) == 1
    path.write_bytes(written.replace(place.name.encode(), name.encode()))
    return "qcow2"


def flat(path: Path, trap: Trap) -> str:
    path.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW 16 FLAT "{trap.url}" 0\n'
    )
    return "vmdk"


def with_embedded_extents(path: Path, trap: Trap) -> str:
    """A head that says that its descriptor names the extents (capacity 0)."""
    path.write_bytes(b"")
    flat(path, trap)
    text = path.read_bytes()
    head = formats._VMDK.pack(b"KDMV", 1, 3, 0, 128, 1, 20)
    path.write_bytes(head.ljust(512, b"\0") + text.ljust(20 * 512, b"\0"))
    return "vmdk"


def with_parent(path: Path, trap: Trap) -> str:
    run.run(["qemu-img", "create", "-q", "-f", "vmdk", str(path), "1M"])
    written = path.read_bytes()
    at = written.index(b"# The Disk Data Base")
    hint = f'parentFileNameHint="{trap.url}"\n#'.encode()
    path.write_bytes(written[:at] + hint + written[at + len(hint) :])
    return "vmdk"


def qed(path: Path, trap: Trap) -> str:
    options = ["-u", "-f", "qed", "-b", trap.url, "-F", "raw"]
    try:
        run.run(["qemu-img", "create", "-q", *options, str(path), "1M"])
    except CommandFailed:  # QEMU before 8 asks for the file
        pytest.skip("this qemu-img makes no such image")
    return "qed"


def qcow(path: Path, trap: Trap) -> str:
    run.run(["qemu-img", "create", "-q", "-u", "-f", "qcow", "-b", trap.url, "-F", "raw", str(path), "1M"])
    return "qcow"


MAKERS = (backed, with_data_file, flat, with_embedded_extents, with_parent, qed, qcow)
Maker = Callable[[Path, Trap], str]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_verify_of_a_strangers_image_opens_no_connection(tmp_path: Path, trap: Trap, make: Maker) -> None:
    image = tmp_path / "image"
    make(image, trap)
    came = trap.came
    parbake("verify", image, "--json").refused(2, "BadBase")
    assert trap.came == came, "QEMU followed the name that the image holds"


@pytest.mark.parametrize("make", MAKERS[:-2], ids=lambda make: make.__name__)
def test_no_door_to_a_disk_follows_an_image_whose_record_names_its_format(
    tmp_path: Path, trap: Trap, make: Maker
) -> None:
    image = tmp_path / "image"
    known = make(image, trap)
    good = tmp_path / "good.raw"
    good.write_bytes(bytes(1 << 20))
    came = trap.came
    doors = (
        lambda: firmware.read_head(image, known),
        lambda: Machine(image, tmp_path / "a", format=known, firmware="bios").__enter__(),
        lambda: Machine(good, tmp_path / "b", firmware="bios", drives=[Drive(image, "volume", known)]).__enter__(),
        lambda: writable(image, tmp_path / "c", image_format=known).__enter__(),
        lambda: writable(image, tmp_path / "d", image_format=known, in_place=True).__enter__(),
    )
    for door in doors:
        with pytest.raises(BadBase, match="refers to another file"):
            door()
    assert trap.came == came


def test_what_qemu_is_told_ignores_a_name_that_comes_later(tmp_path: Path, trap: Trap) -> None:
    """The head is read first, and somebody may write to the file after that: what QEMU is told suffices by itself."""
    image = tmp_path / "image"
    backed(image, trap)
    told = formats.name("qcow2", image)
    run.run(["qemu-img", "convert", "-O", "raw", told, str(tmp_path / "raw")])
    assert trap.came == 0
    assert (tmp_path / "raw").read_bytes() == bytes(1 << 20)


def test_a_name_that_is_a_protocol_is_a_files_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "nbd:127.0.0.1:9"
    Path(name).write_bytes(bytes(4096))
    assert formats.inspect(Path(name))["virtual-size"] == 4096


def test_what_an_overlay_holds_goes_into_the_image_below(tmp_path: Path) -> None:
    """And the overlay names nothing: whoever writes it cannot say where it goes."""
    image, overlay = tmp_path / "image", tmp_path / "overlay, with a comma"
    image.write_bytes(bytes(range(256)) * 4096)
    formats.overlay(image, "raw", overlay)
    graph = formats.above(formats.tree("raw", image), overlay)
    run.run(["qemu-io", "-c", "write -P 7 64k 64k", "json:" + json.dumps(graph)])
    assert "backing-filename" not in formats.inspect(overlay, "qcow2")
    formats.commit(image, "raw", overlay)
    written = image.read_bytes()
    assert written[: 64 << 10] == bytes(range(256)) * 256
    assert written[64 << 10 : 128 << 10] == b"\x07" * (64 << 10)
    assert written[128 << 10 :] == bytes(range(256)) * 3584


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk", "vpc", "vhdx", "vdi"])
def test_formats_are_found_by_their_marks(tmp_path: Path, kind: str) -> None:
    image = tmp_path / "image"
    run.run(["qemu-img", "create", "-q", "-f", kind, str(image), "4M"])
    assert formats.probe(image) == kind
    assert formats.inspect(image)["format"] == kind


def test_a_fixed_vhd_is_known_by_its_end(tmp_path: Path) -> None:
    image = tmp_path / "image"
    run.run(["qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed", str(image), "4M"])
    assert formats.probe(image) == "vpc"


def test_only_regular_files_are_images(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path, tmp_path / "none"):
        with pytest.raises(InputError):
            formats.probe(path)


def test_damaged_heads_are_refused_or_read_as_they_are(tmp_path: Path) -> None:
    image = tmp_path / "image"
    for head in (b"QFI\xfb", b"QFI\xfb\0\0\0\x03" + b"\xff" * 100, b"KDMV", b"KDMV" + b"\xff" * 600, b"COWD", b""):
        image.write_bytes(head)
        with suppress(BadBase):
            formats.inspect(image)
