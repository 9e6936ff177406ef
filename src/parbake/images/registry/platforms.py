"""Which of an index's platforms a machine would run: containerd's order, so that a bake picks what a pull would.

Source: containerd platforms (``Normalize``, ``Only``): arm falls back to older variants, amd64 to lower levels and at
last to 386, arm64 to its older variants and at last to 32-bit arm.
"""

from __future__ import annotations

from parbake.core.model import Platform

_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386"}
_OLDEST_ARM = 5
# Armv9.x implements all of Armv8.(x+5) (Arm architecture reference manual, supplement for A-profile).
_V9_IS_V8 = 5


def normalise(os: str, architecture: str, variant: str = "") -> Platform:
    """Return the one spelling of a platform: arm64/v8 is arm64, amd64/v1 is amd64, arm is arm/v7."""
    os, architecture, variant = os.lower(), architecture.lower(), variant.lower()
    architecture = _ARCHITECTURES.get(architecture, architecture)
    if architecture in {"armhf", "armel"}:
        architecture, variant = "arm", "v7" if architecture == "armhf" else "v6"
    if architecture in {"arm", "arm64"}:
        variant = f"v{variant}" if variant[:1].isdecimal() else variant
        variant = variant.removesuffix(".0")
    if architecture == "arm" and not variant:
        variant = "v7"
    if architecture == "386" or (architecture, variant) in {("amd64", "v1"), ("arm64", "v8")}:
        variant = ""
    return Platform(os=os or "linux", architecture=architecture, variant=variant)


def acceptable(platform: Platform) -> tuple[Platform, ...]:
    """Return the platforms that run on ``platform``, best first."""
    wanted = normalise(platform.os, platform.architecture, platform.variant)
    pairs = [(wanted.architecture, wanted.variant)]
    match wanted.architecture:
        case "amd64":
            pairs += [("amd64", f"v{level}") for level in range(_number(wanted.variant) - 1, 0, -1)]
            pairs.append(("386", ""))
        case "arm":
            pairs += [("arm", f"v{version}") for version in range(_number(wanted.variant) - 1, _OLDEST_ARM - 1, -1)]
        case "arm64":
            pairs += _older_arm64(wanted.variant)
            pairs += [("arm", f"v{version}") for version in range(8, _OLDEST_ARM - 1, -1)]
    found = [normalise(wanted.os, architecture, variant) for architecture, variant in pairs]
    return tuple(dict.fromkeys(found))


def rank(wanted: tuple[Platform, ...], candidate: Platform) -> int | None:
    """Return the place of ``candidate`` in what ``acceptable`` returned; None when it does not run there."""
    return wanted.index(candidate) if candidate in wanted else None


def _older_arm64(variant: str) -> list[tuple[str, str]]:
    major, _, minor = (variant or "v8").removeprefix("v").partition(".")
    if not (major.isdecimal() and (minor or "0").isdecimal()):
        return []
    step = int(minor or 0)
    if major == "9":
        older = [f"v9.{number}" for number in range(step - 1, -1, -1)]
        return [("arm64", name) for name in (*older, *(f"v8.{number}" for number in range(step + _V9_IS_V8, -1, -1)))]
    return [("arm64", f"v{major}.{number}") for number in range(step - 1, -1, -1)]


def _number(variant: str) -> int:
    digits = variant.removeprefix("v")
    return int(digits) if digits.isdecimal() and len(digits) < 3 else 0
