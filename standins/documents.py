"""The project's documents as data: fenced blocks, links, headings, and lines whose figures do not count.

read(README)                     # its blocks, in order
run(blocks, folder, env)         # every shell block in one shell; returns what each said
shape("bake   5.3 s")            # "bake N s": equal for two runs of the same command
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parbake.core.run import isolated

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
NOT_RUN = "# Not run in the tests: "
"""How a block begins that a machine under test cannot run; the reason follows."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What differs from one run to the next, or from one machine to the next.
_FIGURES = (
    (r"^(times) .*", r"\1"),
    (r"\S*/(?=artefacts/)", ""),
    (r"(?:localhost|127\.0\.0\.1|[\w.-]+\.example(?:\.com)?)(?::\d+)?/[\w./-]+:[\w.]+", "IMAGE"),
    (r"\d{4}-\d\d-\d\dT[\d:]+Z", "DATE"),
    (r"\b[0-9a-f]{12,64}\b", "HEX"),
    (r"\d+(?:\.\d+)?(?: [KMG]?i?B)?(?!\w)", "N"),
    (r"\((?:kvm|tcg)\)|with KVM|in emulation", "ACCELERATOR"),
    (r"[ ─]+", " "),
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the document where it begins."""

    language: str
    text: str
    line: int

    @property
    def runs(self) -> bool:
        """Whether it is a shell block for any machine."""
        return self.language == "sh" and not self.text.startswith(NOT_RUN)


def read(document: Path) -> list[Block]:
    """Return the blocks of a document."""
    text = document.read_text()
    return [Block(found[1], found[2], text.count("\n", 0, found.start()) + 1) for found in _FENCE.finditer(text)]


def without_blocks(document: Path) -> str:
    """Return a document's prose."""
    return _FENCE.sub("", document.read_text())


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as they are made from the text."""
    titles = re.findall(r"^#+ (.*)$", without_blocks(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def shape(line: str) -> str:
    """Return a line of output without what differs from run to run; empty for a line of nothing else."""
    for pattern, word in _FIGURES:
        line = re.sub(pattern, word, line)
    return line.strip()


def shapes(text: str) -> set[str]:
    """Return the shapes of all lines."""
    return {shape(line) for line in text.splitlines()} - {""}


def run(
    blocks: Sequence[Block],
    folder: Path,
    env: Mapping[str, str],
    *,
    change: Callable[[str], str] = str,
    afresh: bool = False,
) -> str:
    """Run the shell blocks in one shell, in order, and return what they said; fails with that.

    ``change`` edits the text of a block, ``afresh`` begins each in ``folder``. Nothing that a block starts outlives
    the shell.
    """
    lines = ["set -euo pipefail", "exec 2>&1", f"cd {folder}"]
    for block in blocks:
        if block.runs:
            lines += [f"echo; echo '-- line {block.line}'", f"cd {folder}" if afresh else "", change(block.text)]
    script = folder.parent / "script.sh"
    script.write_text("\n".join(lines))
    done = subprocess.run(
        isolated(["bash", str(script)]), env=dict(env), capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
