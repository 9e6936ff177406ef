"""The digest of a build context, and the ignore rules (compared with buildah's own in tests/system)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.core.errors import InputError
from parbake.core.model import Platform
from parbake.images.build.context import IgnoreRules, digest, walk
from standins.contexts import Spec, spec, write_files

AMD64 = Platform(architecture="amd64")


@pytest.mark.parametrize(
    ("patterns", "left_out", "kept"),
    [
        (["*.md"], ["README.md"], ["docs/README.md", "README.md5"]),
        (["**/*.md"], ["README.md", "a/b/README.md"], ["a/b/README.mdx"]),
        (["docs"], ["docs", "docs/a", "docs/a/b"], ["a/docs", "docs2"]),
        (["/docs/"], ["docs", "docs/a"], ["x/docs"]),
        (["docs/**"], ["docs/a", "docs/a/b"], ["docs"]),
        (["**/node_modules"], ["node_modules/x", "a/b/node_modules/c/d"], ["node_modules2"]),
        (["a/**/z"], ["a/z", "a/b/z", "a/b/c/z"], ["a/zz", "b/a/z"]),
        (["*/temp*"], ["x/temporary", "x/temp/y"], ["temporary", "x/y/temp"]),
        (["temp?"], ["tempa"], ["temp", "tempab", "temp/"]),
        (["[a-c].txt"], ["a.txt"], ["d.txt", "[a-c].txt"]),
        (["[^a-c].txt"], ["d.txt"], ["a.txt"]),
        (["*", "!src"], ["README", "lib/a"], ["src", "src/a"]),
        (["*.md", "!README*.md", "README-secret.md"], ["a.md", "README-secret.md"], ["README-x.md"]),
        (["src", "!src/keep", "src/keep/not"], ["src/a", "src/keep/not"], ["src/keep", "src/keep/b"]),
        (["#comment", "  spaced  ", "", "./here", "a/../b"], ["spaced", "here", "b"], ["#comment", "a"]),
        (["a.b$"], ["a.b$"], ["aXb$", "a.b"]),
        (["a+b(c)"], [], ["a+b(c)", "aab"]),  # builders do not agree, so it counts
        (["\\*.txt"], ["*.txt"], ["a.txt"]),
        (["."], [], ["a"]),
        (["!a"], [], ["a", "b"]),
    ],
)
def test_rules(patterns: list[str], left_out: list[str], kept: list[str]) -> None:
    rules = IgnoreRules.parse(patterns)
    assert {path: rules.leave_out(path) for path in left_out + kept} == {
        **dict.fromkeys(left_out, True),
        **dict.fromkeys(kept, False),
    }


@pytest.mark.parametrize("pattern", ["[", "!", "[z-a]"])
def test_bad_pattern_names_file_and_line(pattern: str, tmp_path: Path) -> None:
    write_files(tmp_path, {"Containerfile": "FROM scratch\n", ".dockerignore": f"# fine\n{pattern}\n"})
    with pytest.raises(InputError, match=r"\.dockerignore:2: "):
        IgnoreRules.find(tmp_path, tmp_path / "Containerfile")


def test_which_ignore_file_counts(tmp_path: Path) -> None:
    containerfile = tmp_path / "Containerfile"
    assert IgnoreRules.find(tmp_path, containerfile).source is None
    for name in (".dockerignore", ".containerignore", "Containerfile.dockerignore", "Containerfile.containerignore"):
        (tmp_path / name).write_text("x\n")
        assert IgnoreRules.find(tmp_path, containerfile).source == tmp_path / name


@given(
    st.lists(st.text(st.sampled_from("ab*?/!.\\#"), max_size=6), max_size=4),
    st.text(st.sampled_from("ab."), min_size=1),
)
def test_every_pattern_is_understood_or_refused(lines: list[str], path: str) -> None:
    try:
        rules = IgnoreRules.parse(lines)
    except InputError:
        return
    assert rules.leave_out(path) in {True, False}
    # A child of what is left out is left out, unless a later line takes it back.
    if rules.leave_out(path) and not rules.take_back:
        assert rules.leave_out(f"{path}/child")


def _paths(folder: Path) -> list[str]:
    return [entry.path for entry in walk(folder, IgnoreRules.find(folder, folder / "Containerfile"))]


def test_walk_shows_what_the_build_sees(tmp_path: Path) -> None:
    write_files(tmp_path, {"a/b/c": "1", "a/d": "2", "e": "3", ".containerignore": "a\n!a/b\ne\n", "empty": None})
    (tmp_path / "loop").symlink_to(".")
    with socket.socket(socket.AF_UNIX) as endpoint:
        here = Path.cwd()
        os.chdir(tmp_path)  # a socket's path is short
        try:
            endpoint.bind("socket")
        finally:
            os.chdir(here)
    assert _paths(tmp_path) == [".containerignore", "a", "a/b", "a/b/c", "empty", "loop"]


def _plain(folder: Path) -> Spec:
    return spec(folder, "FROM scratch\nCOPY . /\n", {"data": "1", "script": "2", ".dockerignore": "ignored\n"})


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda folder: (folder / "data").write_text("2"),
    "mode": lambda folder: (folder / "script").chmod(0o755),
    "name": lambda folder: (folder / "data").rename(folder / "data2"),
    "new": lambda folder: (folder / "new").write_text(""),
    "gone": lambda folder: (folder / "data").unlink(),
    "folder": lambda folder: (folder / "new").mkdir(),
    "link": lambda folder: (folder / "link").symlink_to("data"),
    "Containerfile": lambda folder: (folder / "Containerfile").write_text("FROM scratch\n"),
    "pipe": lambda folder: os.mkfifo(folder / "pipe"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_digest_follows_what_shapes_the_image(change: str, tmp_path: Path) -> None:
    before = digest(_plain(tmp_path), AMD64)
    CHANGES[change](tmp_path)
    assert digest(Spec(tmp_path, tmp_path / "Containerfile"), AMD64) != before


def test_digest_passes_over_what_does_not(tmp_path: Path) -> None:
    here = _plain(tmp_path / "here")
    before = digest(here, AMD64)
    os.utime(here.context / "data", (1, 1))
    write_files(here.context, {"ignored/by": "the ignore file"})
    assert digest(here, AMD64) == before
    assert digest(_plain(tmp_path / "elsewhere"), AMD64) == before


def test_digest_follows_settings(tmp_path: Path) -> None:
    plain = _plain(tmp_path)
    variants = [
        digest(plain, AMD64),
        digest(Spec(plain.context, plain.file, {"A": "1"}), AMD64),
        digest(Spec(plain.context, plain.file, {"A": "2"}), AMD64),
        digest(Spec(plain.context, plain.file, target="stage"), AMD64),
        digest(plain, Platform(architecture="arm64")),
        digest(plain, AMD64, source_date_epoch="0"),
    ]
    assert len(set(variants)) == len(variants)
    ordered, reverse = {"A": "1", "B": "2"}, {"B": "2", "A": "1"}
    assert digest(Spec(plain.context, plain.file, ordered), AMD64) == digest(
        Spec(plain.context, plain.file, reverse), AMD64
    )


def test_digest_follows_a_link_target(tmp_path: Path) -> None:
    plain = _plain(tmp_path)
    (tmp_path / "link").symlink_to("data")
    before = digest(plain, AMD64)
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("script")
    assert digest(plain, AMD64) != before


def test_names_that_are_no_text(tmp_path: Path) -> None:
    plain = _plain(tmp_path)
    before = digest(plain, AMD64)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).write_text("x")
    assert digest(plain, AMD64) != before


def test_missing_parts_are_named(tmp_path: Path) -> None:
    plain = _plain(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        digest(Spec(tmp_path / "none", plain.file), AMD64)
    with pytest.raises(InputError, match="no such Containerfile"):
        digest(Spec(tmp_path, tmp_path / "none"), AMD64)
