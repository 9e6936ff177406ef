from __future__ import annotations

import re
import struct
from datetime import date
from pathlib import Path

import pytest

from parbake.bakefile import advice, load
from parbake.bakefile.scaffold import InitImage, discover, is_static_program, starter, write
from parbake.core.errors import BadReference, EnvironmentProblem, InputError
from parbake.core.model import GIB, MIB, LogProbe, MountedProbe, Startup
from parbake.core.reference import Reference
from parbake.core.units import human_size

TODAY = date(2026, 11, 24)


def _elf(*kinds: int, wide: bool = True, big: bool = False) -> bytes:
    """Make the head of an ELF program with program headers of these kinds."""
    order = ">" if big else "<"
    head = b"\x7fELF" + bytes([2 if wide else 1, 2 if big else 1, 1]).ljust(12, b"\0")
    if wide:
        head += struct.pack(f"{order}HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, len(kinds), 0, 0, 0)
        return head + b"".join(struct.pack(f"{order}I", kind).ljust(56, b"\0") for kind in kinds)
    head += struct.pack(f"{order}HHIIIIIHHHHHH", 2, 3, 1, 0, 52, 0, 0, 52, 32, len(kinds), 0, 0, 0)
    return head + b"".join(struct.pack(f"{order}I", kind).ljust(32, b"\0") for kind in kinds)


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """A stand-in for the host's static busybox."""
    path = tmp_path / "busybox"
    path.write_bytes(_elf(1, 1, 7))
    return path


def test_the_starter_works_as_it_stands(tmp_path: Path) -> None:
    entries = [
        InitImage(Reference.parse("ghcr.io/team/app:1.4"), size=512 * MIB, uses=("Deployment prod/web, app",)),
        InitImage(Reference.parse("ghcr.io/team/job:1"), startup={"up": {"log": "it's done"}}),
        InitImage(Reference.parse("ghcr.io/team/many:1"), uses=tuple(f"Job j{number}, c\n" for number in range(5))),
        InitImage(Reference.parse("ghcr.io/team/app:1.4"), size=1),
        InitImage(Reference.parse("null")),
        InitImage(Reference.parse("ghcr.io/team/weights:1"), startup={"up": "mounted"}),
    ]
    text = starter(entries, today=TODAY)
    (tmp_path / "parbake.yaml").write_text(text)
    bakefile = load(tmp_path / "parbake.yaml")
    assert [str(entry.reference) for entry in bakefile.images] == [
        "ghcr.io/team/app:1.4",
        "ghcr.io/team/job:1",
        "ghcr.io/team/many:1",
        "docker.io/library/null:latest",
        "ghcr.io/team/weights:1",
    ]
    assert bakefile.images[4].startup == Startup(up=MountedProbe())
    assert bakefile.images[1].startup == Startup(up=LogProbe(pattern="it's done"))
    assert "  # Deployment prod/web, app\n  - ghcr.io/team/app:1.4 # 512 MiB compressed\n" in text
    assert "  # Job j2, c?\n  # and 2 more\n  - ghcr.io/team/many:1\n" in text


def test_whatever_is_switched_on_works_and_defaults_are_the_defaults(tmp_path: Path) -> None:
    """Every key of the starter that is commented out loads, alone and with all others."""
    text = starter([InitImage(Reference.parse("ghcr.io/team/app:1.4"))], today=TODAY)
    file = tmp_path / "parbake.yaml"
    file.write_text(text)
    plain = load(file)
    blocks = [match.group() for match in re.finditer(r"^#[a-z].*\n(?:#  +[a-z].*\n)*", text, re.MULTILINE)]
    keys = [block[1:].partition(":")[0] for block in blocks]
    assert {*keys, "version", "images"} == set(type(plain).model_fields), "every key of the Bakefile is explained"
    for block, key in zip(blocks, keys, strict=True):
        file.write_text(text.replace(block, re.sub("^#", "", block, flags=re.MULTILINE)))
        switched = load(file)
        changed = {name for name in type(plain).model_fields if getattr(switched, name) != getattr(plain, name)}
        assert changed <= {key}
        defaults = {"builder", "time_limit", "runtime", "size", "sandbox", "keep_layers", "output", "readable_by"}
        if key in defaults | {"sign", "trust", "verify"}:
            assert not changed, "what is shown for these is their default"
    together = [block for block in blocks if not block.startswith("#platforms:")]  # images_from is for one platform
    for block in together:
        text = text.replace(block, re.sub("^#", "", block, flags=re.MULTILINE))
    file.write_text(text)
    everything = load(file)
    assert everything.base.serial == "2026-11-24"
    assert everything.registries["registry.example.com:5000"].mirrors == ("mirror.example.com",)
    assert len(text) == len(starter([InitImage(Reference.parse("ghcr.io/team/app:1.4"))], today=TODAY)) - sum(
        b.count("\n") for b in together
    )


def test_what_cannot_be_baked_is_not_written() -> None:
    with pytest.raises(BadReference):
        starter([InitImage(Reference.parse("Not A Reference"))], today=TODAY)
    with pytest.raises(InputError, match="no image"):
        starter([], today=TODAY)


@pytest.mark.parametrize(
    ("size", "text"), [(1, "1 KiB"), (48 * 1024, "48 KiB"), (512 * MIB, "512 MiB"), (3 * GIB // 2, "1.5 GiB")]
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert human_size(size) == text


class TestInAnEmptyFolder:
    def test_a_sample_is_written_that_loads(self, tmp_path: Path, busybox: Path) -> None:
        folder = tmp_path / "new" / "node"
        written = write(folder, today=TODAY, busybox=busybox)
        assert [str(path.relative_to(folder)) for path in written] == [
            "hello/Containerfile",
            "hello/busybox",
            "hello/index.html",
            "hello/serve.sh",
            "parbake.yaml",
        ]
        bakefile = load(folder / "parbake.yaml")
        (entry,) = bakefile.images
        assert entry.build is not None
        assert entry.build.file == folder / "hello" / "Containerfile"
        assert entry.startup == Startup(up=LogProbe(pattern="^hello: ready"))
        assert re.search("^hello: ready", "hello: ready on port 8080")
        assert advice(bakefile) == ()
        assert (folder / "hello" / "busybox").stat().st_mode & 0o777 == 0o755
        assert (folder / "hello" / "busybox").read_bytes() == busybox.read_bytes()
        copied = re.findall(r"^COPY (\S+)", (folder / "hello" / "Containerfile").read_text(), re.MULTILINE)
        assert sorted(copied) == ["busybox", "index.html", "serve.sh"]

    def test_nothing_is_overwritten(self, tmp_path: Path, busybox: Path) -> None:
        folder = tmp_path / "node"
        (folder / "hello").mkdir(parents=True)
        (folder / "hello" / "serve.sh").write_text("mine\n")
        (folder / "parbake.yaml").symlink_to("nowhere")
        with pytest.raises(InputError) as caught:
            write(folder, today=TODAY, busybox=busybox)
        assert "serve.sh" in caught.value.message
        assert "parbake.yaml" in caught.value.message
        assert sorted(path.name for path in folder.rglob("*")) == ["hello", "parbake.yaml", "serve.sh"]
        assert (folder / "hello" / "serve.sh").read_text() == "mine\n"

    def test_unless_forced(self, tmp_path: Path, busybox: Path) -> None:
        folder = tmp_path / "node"
        first = write(folder, today=TODAY, busybox=busybox)
        (folder / "parbake.yaml").write_text("old")
        assert write(folder, today=TODAY, force=True, busybox=busybox) == first
        load(folder / "parbake.yaml")

    def test_without_a_static_busybox(self, tmp_path: Path) -> None:
        with pytest.raises(EnvironmentProblem) as caught:
            write(tmp_path / "node", today=TODAY, busybox=Path("/bin/ls"))
        assert "busybox-static" in caught.value.hint
        assert not (tmp_path / "node").exists()

    def test_a_failure_leaves_nothing(self, tmp_path: Path, busybox: Path) -> None:
        folder = tmp_path / "node"
        folder.mkdir()
        (folder / "hello").write_text("a file where the folder belongs\n")
        with pytest.raises(EnvironmentProblem, match="cannot write"):
            write(folder, today=TODAY, busybox=busybox)
        assert [path.name for path in folder.iterdir()] == ["hello"]


def test_with_images_only_the_bakefile_is_written(tmp_path: Path) -> None:
    (tmp_path / "Containerfile").touch()
    assert write(tmp_path, [InitImage(Reference.parse("ghcr.io/a/b:1"))], today=TODAY) == (tmp_path / "parbake.yaml",)
    assert load(tmp_path / "parbake.yaml").images[0].build is None


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("shop", "localhost/shop:1"),
        ("My Shop__(2)", "localhost/my-shop-2:1"),
        ("-._", "localhost/app:1"),
        ("ÄÖ", "localhost/app:1"),
        ("x" * 200, f"localhost/{'x' * 100}:1"),
    ],
)
def test_a_folder_with_a_containerfile_is_built(tmp_path: Path, name: str, reference: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    assert discover(folder) == ()
    (folder / "Dockerfile").write_text("FROM scratch\n")
    assert discover(folder) == (InitImage(Reference.parse(reference), build="."),)
    write(folder, today=TODAY)
    (entry,) = load(folder / "parbake.yaml").images
    assert str(entry.reference) == reference
    assert entry.build is not None
    assert entry.build.file == folder / "Dockerfile"
    assert advice(load(folder / "parbake.yaml")) == ()
    assert (folder / ".dockerignore").read_text() == "artefacts\nparbake.yaml\n"


def test_an_ignore_file_of_the_user_stays(tmp_path: Path) -> None:
    (tmp_path / "Containerfile").touch()
    (tmp_path / ".containerignore").write_text("build\n")
    assert write(tmp_path, today=TODAY) == (tmp_path / "parbake.yaml",)
    (said,) = advice(load(tmp_path / "parbake.yaml"))
    assert "its build context holds the output folder" in said
    (tmp_path / ".containerignore").write_text("build\n/artefacts/\n")
    assert advice(load(tmp_path / "parbake.yaml")) == ()


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("big", [True, False])
def test_static_programs_ask_for_no_interpreter(tmp_path: Path, wide: bool, big: bool) -> None:
    program = tmp_path / "program"
    program.write_bytes(_elf(1, 7, wide=wide, big=big))
    assert is_static_program(program)
    program.write_bytes(_elf(1, 3, 7, wide=wide, big=big))
    assert not is_static_program(program)
    program.write_bytes(_elf(1, 7, wide=wide, big=big)[:-1])
    assert not is_static_program(program), "cut off"


def test_what_is_no_program_is_no_static_program(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n" * 20)
    assert not is_static_program(tmp_path / "script")
    assert not is_static_program(tmp_path / "gone")
    assert not is_static_program(tmp_path)
    (tmp_path / "far").write_bytes(b"\x7fELF\x02\x01".ljust(32, b"\0") + b"\xff" * 32)
    assert not is_static_program(tmp_path / "far")
    assert not is_static_program(Path("/bin/ls"))
