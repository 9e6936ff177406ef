"""Bad Bakefiles: for each, all that is said about it, with lines. One small file a case."""

from __future__ import annotations

from pathlib import Path

import pytest

from parbake.bakefile import load
from parbake.core.errors import BakefileError

CASES = sorted((Path(__file__).parent / "cases").glob("*.yaml"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that the cases speak of."""
    world = tmp_path / "my-node"
    (world / "app").mkdir(parents=True)
    (world / "app" / "Containerfile").write_text("FROM scratch\n")
    (world / "empty").mkdir()
    (world / "disk.raw").write_bytes(bytes(512))
    return world


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_what_is_wrong_is_said_in_order_of_lines(case: Path, folder: Path) -> None:
    file = folder / "parbake.yaml"
    file.write_bytes(case.read_bytes())
    with pytest.raises(BakefileError) as caught:
        load(file)
    assert caught.value.message.replace(str(folder), "FOLDER") + "\n" == case.with_suffix(".txt").read_text()
    assert caught.value.exit_code == 2
    lines = [problem.line for problem in caught.value.problems]
    assert lines == sorted(lines)
    assert all(lines), "every problem has a line"


def test_every_case_has_its_answer_and_no_answer_is_left_over() -> None:
    answers = {path.stem for path in (Path(__file__).parent / "cases").glob("*.txt")}
    assert answers == {case.stem for case in CASES}
    assert len(CASES) > 40
