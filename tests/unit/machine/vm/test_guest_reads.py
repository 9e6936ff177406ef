"""What QEMU's log says of a guest's reads. Whatever comes in, no error."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parbake.machine.vm import GuestRead, busiest_disk

OTHER, ROOT = "0x5652779e0fd0", "0x565277b847b0"


def line(disk: str = ROOT, sector: int = 8, length: int = 8, at: str = "1795546735.420999") -> str:
    return f"20319@{at}:virtio_blk_handle_read vdev {disk} req 0x1f sector {sector} nsectors {length}\n"


def test_the_disk_that_was_booted() -> None:
    lines = [
        line(OTHER, 0, 1),
        line(ROOT, 0, 1),
        line(ROOT, 900_000, 64, "1795546736.5"),  # another format: left out
        line(ROOT, 800_000, 64, "1795546736.500000"),
        line(OTHER, 41_943_032, 8),  # a larger disk, at whose end udev looks for a signature
        line(ROOT, 5, 0),
        "virtio_blk_handle_read",
    ]
    assert busiest_disk(lines) == (
        GuestRead(1795546735.420999, 0, 1),
        GuestRead(1795546736.5, 800_000, 64),
    )
    assert busiest_disk([]) == ()


_GOOD = st.tuples(st.integers(1, 1 << 40), st.integers(1, 1 << 20))
_ODD = st.text(max_size=150) | st.builds(line, sector=st.integers(-5, -1), length=st.integers(-1, 1 << 40))


@given(st.lists(_GOOD | _ODD | st.builds(line, sector=st.integers(0, 1 << 40), length=st.integers(-1, 0))))
def test_no_line_is_an_error_and_none_hides_a_good_one(lines: list[tuple[int, int] | str]) -> None:
    found = busiest_disk(line(ROOT, *each) if isinstance(each, tuple) else each for each in lines)
    assert [(read.sector, read.length) for read in found] == [each for each in lines if isinstance(each, tuple)]
