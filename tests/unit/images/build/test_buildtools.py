"""Which tool builds, how docker is driven, and how pushes are judged: with stand-ins for the programs on PATH."""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path

import pytest

from parbake.core.errors import Denied, EnvironmentProblem, ParbakeError, RegistryError, Unreachable
from parbake.core.events import Event, Events
from parbake.core.model import Platform, RegistryOptions
from parbake.core.reference import Reference
from parbake.images.build import BuildPlace, DockerTool, choose
from parbake.images.build.build import build
from parbake.images.build.common import push_error
from parbake.images.build.containers import is_insecure, registries_conf
from standins.contexts import spec, write_files
from standins.images import image, layer, write_layout

BROKEN = "#!/bin/sh\necho out of order >&2; exit 1\n"
FINE = "#!/bin/sh\nexit 0\n"
DIGEST = f"sha256:{'1' * 64}"
DOCKER = f"""#!/bin/sh
printf '%s\\n' "$*" >> {{log}}
case "$1" in
    push) echo "1: digest: {DIGEST} size: 528";;
    save) cp {{archive}} "${{{{2#--output=}}}}";;
    buildx) if [ "$2" = build ]; then cat {{work}}/build-*/Dockerfile.dockerignore; fi;;
esac
"""


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, str]) -> None:
    write_files(folder, programs)
    for name in programs:
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.fixture
def said() -> list[Event]:
    return []


@pytest.fixture
def place(tmp_path: Path, said: list[Event]) -> BuildPlace:
    (tmp_path / "work").mkdir()
    return BuildPlace(tmp_path / "work", tmp_path / "cache", {}, Events(said.append))


@pytest.mark.parametrize(
    ("programs", "chosen"),
    [
        ({"buildah": FINE, "docker": FINE, "podman": FINE}, "buildah"),
        ({"buildah": BROKEN, "docker": FINE, "podman": FINE}, "docker buildx"),
        ({"buildah": BROKEN, "docker": BROKEN, "podman": FINE}, "podman"),
    ],
)
def test_the_first_that_works_builds(
    *,
    programs: dict[str, str],
    chosen: str,
    tmp_path: Path,
    place: BuildPlace,
    said: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_on_path(tmp_path / "bin", monkeypatch, programs)
    assert choose(place).name == chosen
    choice = said[-1].text
    assert choice.startswith(f"building with {chosen}")
    for name, script in programs.items():
        if script == BROKEN:
            assert f"{name}" in choice
            assert "out of order" in choice


def test_where_none_works_each_says_why(tmp_path: Path, place: BuildPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path / "bin", monkeypatch, dict.fromkeys(("buildah", "docker", "podman"), BROKEN))
    with pytest.raises(EnvironmentProblem) as caught:
        choose(place)
    assert [line.strip() for line in caught.value.message.splitlines()[1:]] == [
        "buildah: out of order",
        "docker buildx: out of order",
        "podman: out of order",
    ]
    assert "apt-get install buildah" in caught.value.hint


def archive(folder: Path) -> Path:
    """What `docker save` of Docker 25 writes, of a tiny image."""
    write_layout(folder / "layout", {"1": image(layer({"a": b"1"}), platform=str(Platform.host()))})
    file = folder / "image.tar"
    shutil.make_archive(str(file.with_suffix("")), "tar", folder / "layout")
    return file


def test_docker_builds_a_local_image(
    tmp_path: Path, place: BuildPlace, said: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    docker = DOCKER.format(log=log, archive=archive(tmp_path), work=place.work)
    put_on_path(tmp_path / "bin", monkeypatch, {"buildah": BROKEN, "docker": docker})
    what = spec(tmp_path / "context", "FROM scratch\n", {".containerignore": "secret\n"})
    built = build(
        what, Reference.parse("localhost/app:1"), Platform.host(), options={}, events=Events(said.append),
        work=place.work, cache=place.cache,
    )  # fmt: skip
    assert (built.builder, built.reused) == ("docker buildx", False)
    assert built.image.layout
    command = next(line for line in log.read_text().splitlines() if line.startswith("buildx build"))
    for option in (
        "--load",
        f"--platform={Platform.host()}",
        "--tag=localhost/app:1",
        f"dev.parbake.build={built.key}",
    ):
        assert option in command
    assert "secret" in [event.text for event in said], "docker is shown the ignore file that counts"


def test_docker_pushes_and_names_the_digest(tmp_path: Path, place: BuildPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    put_on_path(tmp_path / "bin", monkeypatch, {"docker": DOCKER.format(log=log, archive="", work=place.work)})
    assert DockerTool(place).push("team/app:1", Reference.parse("example.com/team/app:1")) == DIGEST
    assert log.read_text().splitlines() == ["tag team/app:1 example.com/team/app:1", "push example.com/team/app:1"]


def test_docker_that_names_no_digest(tmp_path: Path, place: BuildPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path / "bin", monkeypatch, {"docker": FINE})
    with pytest.raises(RegistryError, match="reported no digest"):
        DockerTool(place).push("app:1", Reference.parse("app:1"))


def test_old_docker_cannot_export(tmp_path: Path, place: BuildPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"legacy/manifest.json": "[]"})
    shutil.make_archive(str(tmp_path / "old"), "tar", tmp_path / "legacy")
    script = DOCKER.format(log=tmp_path / "log", archive=tmp_path / "old.tar", work=place.work)
    put_on_path(tmp_path / "bin", monkeypatch, {"docker": script})
    with pytest.raises(EnvironmentProblem, match="older than 25"):
        DockerTool(place).export("app:1", tmp_path / "layout")


@pytest.mark.parametrize(
    ("output", "kind", "hint"),
    [
        ("unauthorized: authentication required", Denied, "docker login example.com"),
        ("denied: requested access to the resource is denied", Denied, "log in"),
        ("dial tcp 10.0.0.1:443: connect: connection refused", Unreachable, "right host"),
        ("http: server gave HTTP response to HTTPS client", Unreachable, "plain_http"),
        ("tls: failed to verify certificate: x509: unknown authority", Unreachable, "right host"),
        ("received unexpected HTTP status: 500", RegistryError, "run it again"),
    ],
)
def test_how_a_push_failed(output: str, kind: type[RegistryError], hint: str) -> None:
    error = push_error(Reference.parse("example.com/app:1"), output)
    assert type(error) is kind
    assert hint in error.hint
    assert output in error.message


@pytest.mark.parametrize(
    ("registry", "insecure"),
    [
        ("localhost:5000", True), ("127.0.0.1:5000", True), ("127.8.8.8", True), ("[::1]:5000", True),
        ("localhost", True), ("example.com", False), ("10.0.0.1:5000", False), ("[fe80::1]:5000", False),
        ("plain.example:80", True), ("127.0.0.1.example.com", False), ("docker.io", False),
    ],
)  # fmt: skip
def test_which_registries_may_be_spoken_to_in_the_clear(registry: str, insecure: bool) -> None:
    options = {"plain.example:80": RegistryOptions(plain_http=True), "example.com": RegistryOptions()}
    assert is_insecure(registry, options) is insecure


def test_registries_conf_adds_to_the_machine(tmp_path: Path) -> None:
    machine = tmp_path / "registries.conf"
    write_files(
        tmp_path,
        {
            "registries.conf": 'unqualified-search-registries = ["q.example"]\n[[registry]]\nlocation = "a.example"\n'
            '[[registry.mirror]]\nlocation = "m.example"\ninsecure = true\n[aliases]\n"x" = "a.example/x"\n',
            "registries.conf.d/1.conf": '[[registry]]\nlocation = "b.example"\nblocked = true\n'
            '[aliases]\n"y" = "b.example/y"\n',
        },
    )
    containerfile = "FROM 127.0.0.1:5000/base:1\nCOPY --from=localhost:6000/x /a /b\nFROM example.com/localhost/x\n"
    text = registries_conf(containerfile, {"a.example": RegistryOptions(plain_http=True)}, machine)
    assert tomllib.loads(text) == {
        "unqualified-search-registries": ["q.example"],
        "registry": [
            {"location": "a.example", "mirror": [{"location": "m.example", "insecure": True}], "insecure": True},
            {"location": "b.example", "blocked": True},
            {"location": "127.0.0.1:5000", "insecure": True},
            {"location": "localhost", "insecure": True},
            {"location": "localhost:6000", "insecure": True},
        ],
        "aliases": {"x": "a.example/x", "y": "b.example/y"},
    }


def test_names_without_a_registry_are_docker_hubs(tmp_path: Path) -> None:
    text = registries_conf("FROM debian\n", {}, tmp_path / "none.conf")
    assert tomllib.loads(text)["unqualified-search-registries"] == ["docker.io"]


def test_a_broken_configuration_is_named(tmp_path: Path) -> None:
    machine = tmp_path / "registries.conf"
    machine.write_text("not = = toml")
    with pytest.raises(EnvironmentProblem, match=r"registries\.conf cannot be read"):
        registries_conf("", {}, machine)


@pytest.mark.parametrize(
    ("says", "kind", "hint"),
    [
        ("write /x: no space left on device", "DiskFull", "PARBAKE_CACHE"),
        ("exec /bin/sh: exec format error", "CommandFailed", "qemu-user-binfmt"),
        ("creating build container: could not find 'netavark' in one of [/usr/libexec]", "CommandFailed", "netavark"),
        ("exit status 7", "CommandFailed", "says why"),
    ],
)
def test_how_a_build_failed(
    *, says: str, kind: str, hint: str, tmp_path: Path, place: BuildPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'#!/bin/sh\nif [ "$2" = build ]; then echo "{says}"; exit 1; fi\n'
    put_on_path(tmp_path / "bin", monkeypatch, {"buildah": BROKEN, "docker": script})
    what = spec(tmp_path / "context", "FROM scratch\n", {})
    with pytest.raises(ParbakeError) as caught:
        build(
            what, Reference.parse("localhost/app:1"), Platform.host(), options={}, events=place.events,
            work=place.work, cache=place.cache,
        )  # fmt: skip
    assert type(caught.value).__name__ == kind
    assert says in str(caught.value)
    assert hint in caught.value.hint
