"""Which accelerator is trusted."""

from __future__ import annotations

import pytest

from parbake.machine.vm.accelerator import virtualises


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu vmx sse", True), ("fpu svm", True), ("fpu sse vmxnet", False), ("", False)],
)
def test_only_a_processor_that_virtualises(flags: str, expected: bool) -> None:
    """A /dev/kvm of another kind of hypervisor lets machines hang in their boot loader."""
    text = f"processor\t: 0\nmodel name\t: svm and vmx\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n"
    assert virtualises(text) is expected
