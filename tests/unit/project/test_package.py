"""The package that users install holds all that the program needs."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
# What a shell would be told to install by a name that an index is asked for: whoever registers it is run as root.
_BY_NAME = re.compile(
    r"\b(?:pip|pipx|uvx|uv)\b[^\n`]*?[\s'\"]parbake(?:\[[\w,]+\])?(?! @)(?=$|[\s'\"`<>=~,;)])", re.MULTILINE
)


def test_the_wheel_is_complete(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("parbake/")}
    ours = {
        f"parbake/{path.relative_to(ROOT / 'src/parbake')}"
        for path in (ROOT / "src/parbake").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == ours
    assert "parbake/node/prove.py" in packed


def test_nothing_says_to_install_parbake_by_its_name() -> None:
    for said in (
        "pip install parbake",
        "pip install 'parbake[aws]'",
        "`uv tool install parbake`",
        "uvx parbake doctor",
    ):
        assert _BY_NAME.search(said), said
    for said in ("pip install 'parbake[aws] @ file:///src'", "uv tool install '.[aws]'", "pip install --no-deps ."):
        assert not _BY_NAME.search(said), said
    files = [*ROOT.glob("*.md"), ROOT / "Makefile"]
    files += [path for each in ("docs", "src", "deploy", "tools", "bench") for path in (ROOT / each).rglob("*")]
    for path in files:
        if path.is_file() and "__pycache__" not in path.parts:
            assert _BY_NAME.findall(path.read_text(errors="replace")) == [], path.relative_to(ROOT)


def test_no_version_with_a_known_vulnerability_may_be_installed() -> None:
    """The lowest versions that are free of published ones, as of the last look at each."""
    lowest = dict(re.findall(r'^  "([\w-]+)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for name, fixed in {"cryptography": (50,), "urllib3": (2, 7)}.items():
        assert tuple(map(int, lowest[name].split("."))) >= fixed, name
