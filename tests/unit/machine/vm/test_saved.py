"""States of machines: written by a QEMU that a thread plays, packed, checked, and read again."""

from __future__ import annotations

import io
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parbake.core.errors import MachineError
from parbake.machine.vm import Drive, Machine, saved
from parbake.machine.vm.qmp import Qmp

MEMORY = os.urandom(300_000) + bytes(3_000_000)


class Qemu(threading.Thread):
    """Answers as QEMU does, and writes its memory into the file that it was lent; ``says`` is how that ends."""

    def __init__(self, says: str = "completed") -> None:
        super().__init__(daemon=True)
        self.client, self._end = socket.socketpair()
        self.says, self.asked, self._lent = says, list[str](), -1
        self.start()

    def run(self) -> None:
        self._say({"QMP": {}})
        while True:
            data, handles, _, _ = socket.recv_fds(self._end, 4096, 1)
            if not data:
                return
            request = json.loads(data)
            self.asked.append(request["execute"])
            if handles:
                assert request == {"execute": "getfd", "arguments": {"fdname": "state"}}
                [self._lent] = handles
            answer: dict[str, Any] = {}
            if request["execute"] == "migrate":
                assert request["arguments"] == {"uri": "fd:state"}
                if self.says == "refuses":
                    self._say({"error": {"desc": "State blocked by non-migratable device"}})
                    continue
                threading.Thread(target=self._write, daemon=True).start()
            elif request["execute"] == "query-migrate":
                answer = {"status": self.says if self._lent < 0 else "active"}
            elif request["execute"] == "closefd":
                os.close(self._lent)
            self._say({"return": answer})

    def _write(self) -> None:
        with os.fdopen(os.dup(self._lent), "wb") as file:
            file.write(MEMORY)
        os.close(self._lent)
        self._lent = -1

    def _say(self, answer: dict[str, Any]) -> None:
        self._end.sendall(json.dumps(answer).encode() + b"\r\n")


@pytest.fixture
def connected() -> Iterator[Callable[[Qemu], Qmp]]:
    made: list[Qmp] = []

    def connect(qemu: Qemu) -> Qmp:
        made.append(Qmp(qemu.client).greet())
        return made[-1]

    yield connect
    for each in made:
        each.close()


def test_what_qemu_writes_is_what_it_reads_again(tmp_path: Path, connected: Callable[[Qemu], Qmp]) -> None:
    memory = tmp_path / "memory"
    qemu = Qemu()
    saved.write_memory(connected(qemu), memory)
    assert memory.stat().st_size < 400_000, "pages of zeros take room"
    with saved.MemoryReader(memory) as reader:
        handle = os.dup(reader.handle)
        reader.close()
        with os.fdopen(handle, "rb") as pipe:
            assert pipe.read() == MEMORY
        reader.check()


def test_what_qemu_does_not_write_is_no_state(tmp_path: Path, connected: Callable[[Qemu], Qmp]) -> None:
    with pytest.raises(MachineError, match=r"did not write .*failed"):
        saved.write_memory(connected(Qemu("failed")), tmp_path / "failed")
    refusing = Qemu("refuses")
    with pytest.raises(MachineError, match="non-migratable device"):
        saved.write_memory(connected(refusing), tmp_path / "refused")
    assert refusing.asked[-1] == "closefd"


def test_a_state_is_bounded(tmp_path: Path, connected: Callable[[Qemu], Qmp], monkeypatch: pytest.MonkeyPatch) -> None:
    """And QEMU, which goes on, does not wait for who reads no further."""
    monkeypatch.setattr(saved, "LARGEST", 1000)
    with pytest.raises(MachineError, match="larger than"):
        saved.write_memory(connected(Qemu()), tmp_path / "memory")


@pytest.mark.parametrize("damage", ["flipped", "short", "other"])
def test_damage_is_found_out(tmp_path: Path, damage: str) -> None:
    whole = tmp_path / "whole"
    saved.pack(io.BytesIO(MEMORY), whole)
    data = bytearray(whole.read_bytes())
    data[100_000] ^= 1
    packed = {"flipped": bytes(data), "short": whole.read_bytes()[:-1000], "other": b"something else"}[damage]
    with pytest.raises(MachineError, match=r"damaged|ends early"):
        saved.unpack(io.BytesIO(packed), io.BytesIO())
    path = tmp_path / "damaged"
    path.write_bytes(packed)
    with saved.MemoryReader(path) as reader:
        with os.fdopen(os.dup(reader.handle), "rb") as pipe:
            reader.close()
            pipe.read()
        with pytest.raises(MachineError, match="was not read"):
            reader.check()


def test_who_ends_without_reading_does_not_hang_us(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    saved.pack(io.BytesIO(MEMORY), path)
    with saved.MemoryReader(path) as reader:
        reader.close()
        with pytest.raises(MachineError, match="Broken pipe"):
            reader.check()


def test_a_shape_is_of_the_machine_and_not_of_its_files(tmp_path: Path) -> None:
    volume = Drive(tmp_path / "volume", "volume", plugged=False)

    def shape(folder: str = "a", *, drive: Drive = volume, **more: Any) -> str:
        words = {"credentials": {"order": b"one"}, "firmware": "bios", **more}
        return Machine(tmp_path / "base", tmp_path / folder, drives=[drive], **words).shape

    assert "QEMU emulator version" in shape()
    assert shape("b", drive=replace(volume, path=tmp_path / "other")) == shape()
    assert shape(reads=tmp_path / "log") == shape(), "who rehearses resumes what others have kept"
    others = [
        shape(memory=512), shape(cpus=1), shape(credentials={"order": b"two"}), shape(firmware="uefi"),
        shape(drive=replace(volume, plugged=True)), shape(drive=replace(volume, format="qcow2")),
    ]  # fmt: skip
    assert len({shape(), *others}) == 1 + len(others)
    assert list(tmp_path.iterdir()) == [], "it makes files"
