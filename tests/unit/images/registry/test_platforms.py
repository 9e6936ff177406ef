"""Which platform of an index a machine gets."""

from __future__ import annotations

import pytest

from parbake.core.model import Platform
from parbake.images.registry.resolve import acceptable, normalise


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("linux", "arm64", "v8"), "linux/arm64"),
        (("linux", "arm64", "8"), "linux/arm64"),
        (("Linux", "aarch64", ""), "linux/arm64"),
        (("linux", "arm64", "v9.0"), "linux/arm64/v9"),
        (("linux", "amd64", "v1"), "linux/amd64"),
        (("linux", "x86_64", ""), "linux/amd64"),
        (("linux", "amd64", "v3"), "linux/amd64/v3"),
        (("linux", "arm", ""), "linux/arm/v7"),
        (("linux", "arm", "6"), "linux/arm/v6"),
        (("linux", "armhf", ""), "linux/arm/v7"),
        (("linux", "armel", ""), "linux/arm/v6"),
        (("linux", "i386", "x"), "linux/386"),
        (("", "s390x", ""), "linux/s390x"),
    ],
)
def test_one_spelling(words: tuple[str, str, str], expected: str) -> None:
    assert str(normalise(*words)) == expected


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("linux/amd64", ["linux/amd64", "linux/386"]),
        ("linux/amd64/v3", ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]),
        ("linux/arm/v7", ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
        ("linux/arm/v5", ["linux/arm/v5"]),
        ("linux/arm64", ["linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
        ("linux/s390x", ["linux/s390x"]),
        ("linux/amd64/fancy", ["linux/amd64/fancy", "linux/386"]),
        ("linux/arm64/fancy", ["linux/arm64/fancy", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
    ],
)
def test_the_order_of_what_runs(platform: str, expected: list[str]) -> None:
    assert [str(found) for found in acceptable(Platform.parse(platform))] == expected


def test_newer_arm_runs_older() -> None:
    names = [str(found) for found in acceptable(Platform.parse("linux/arm64/v9.1"))]
    assert names[:4] == ["linux/arm64/v9.1", "linux/arm64/v9", "linux/arm64/v8.6", "linux/arm64/v8.5"]
    assert "linux/arm64" in names
