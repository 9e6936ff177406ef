"""Building and pushing for real: buildah, a real registry, small images."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parbake.core.errors import BadReference, CommandFailed, Denied, Unreachable
from parbake.core.events import Event, Events
from parbake.core.model import Platform, RegistryOptions
from parbake.core.reference import Reference
from parbake.core.run import Deadline, find, run
from parbake.images.build import BuildPlace, Containers
from parbake.images.build.build import LABEL, BuiltImage, build, clear, existing
from parbake.images.build.context import IgnoreRules, walk
from parbake.images.registry import Layout, Registry
from standins.contexts import Spec, spec, write_files
from standins.images import image, layer, push
from standins.registry import DockerRegistry, certificates

pytestmark = pytest.mark.root

HOST = Platform.host()
BUSYBOX = Path("/bin/busybox")
CONTAINERFILE = """\
FROM scratch
ADD busybox /bin/busybox
ARG WHO=world
RUN ["/bin/busybox", "sh", "-c", "echo hello $WHO > /hello"]
CMD ["/bin/busybox", "cat", "/hello"]
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests here: steps that repeat are cached, as for a user."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as served:
        yield served


class Harness:
    """Builds with everything in place, and remembers what was said."""

    def __init__(self, work: Path, cache: Path) -> None:
        self.work, self.cache = work, cache
        self.said: list[Event] = []

    def build(
        self,
        what: Spec,
        reference: str,
        options: Mapping[str, RegistryOptions] | None = None,
        *,
        force: bool = False,
    ) -> BuiltImage:
        return build(
            what,
            Reference.parse(reference),
            HOST,
            options=options or {},
            events=Events(self.said.append),
            work=self.work,
            cache=self.cache,
            force=force,
        )

    @property
    def log(self) -> str:
        return "\n".join(event.text for event in self.said)


@pytest.fixture
def harness(tmp_path: Path, cache: Path) -> Harness:
    work = tmp_path / "work"
    work.mkdir()
    return Harness(work, cache)


def busybox(folder: Path, containerfile: str = CONTAINERFILE) -> Spec:
    what = spec(folder, containerfile, {"busybox": BUSYBOX.read_bytes()})
    (folder / "busybox").chmod(0o755)
    return what


def config(built: BuiltImage, registry: DockerRegistry) -> dict[str, Any]:
    """The image's config, as skopeo reads it from the registry."""
    where = f"docker://{registry.host}/{built.image.reference.repository}@{built.image.manifest.digest}"
    text = run(["skopeo", "inspect", "--config", "--tls-verify=false", where]).text
    found: dict[str, Any] = json.loads(text)
    return found


def test_builds_pushes_and_builds_no_more(tmp_path: Path, harness: Harness, registry: DockerRegistry) -> None:
    what = busybox(tmp_path / "context")
    reference = f"{registry.host}/team/hello:1"

    first = harness.build(what, reference)
    assert (first.reused, first.builder) == (False, "buildah")
    assert config(first, registry)["config"]["Labels"][LABEL] == first.key
    assert config(first, registry)["config"]["Cmd"] == ["/bin/busybox", "cat", "/hello"]
    assert str(first.image.reference) == reference
    assert {layer.media_type for layer in first.image.layers} == {"application/vnd.oci.image.layer.v1.tar+zstd"}
    assert "STEP 4/" in harness.log
    assert not list(harness.work.iterdir()), "the work folder is left as it was"

    again = harness.build(what, reference)
    assert (again.reused, again.image.manifest.digest) == (True, first.image.manifest.digest)

    gzip = harness.build(replace(what, compression="gzip"), reference)
    assert {layer.media_type for layer in gzip.image.layers} == {"application/vnd.oci.image.layer.v1.tar+gzip"}
    assert [layer.diff_id for layer in gzip.image.layers] == [layer.diff_id for layer in first.image.layers]

    changed = harness.build(Spec(what.context, what.file, {"WHO": "moon"}), reference)
    assert not changed.reused
    assert changed.image.manifest.digest != first.image.manifest.digest

    forced = harness.build(Spec(what.context, what.file, {"WHO": "moon"}), reference, force=True)
    assert (forced.reused, forced.key) == (False, changed.key)


def test_local_images_live_in_the_cache(tmp_path: Path, harness: Harness) -> None:
    what = busybox(tmp_path / "context")
    name = Reference.parse("localhost/hello:1")
    with Registry() as none:
        assert existing(name, HOST, f"sha256:{'0' * 64}", registry=none, cache=harness.cache) is None

    first = harness.build(what, str(name))
    layout = Path(first.image.layout)
    assert layout.is_relative_to(harness.cache)
    assert Layout(layout).resolve(name, HOST).manifest == first.image.manifest
    assert harness.build(what, str(name)).reused

    (layout / "index.json").unlink()  # damaged, as by a cleaner
    repaired = harness.build(what, str(name))
    assert not repaired.reused
    assert Layout(Path(repaired.image.layout)).resolve(name, HOST).manifest == repaired.image.manifest

    for who in ("a", "b"):
        harness.build(Spec(what.context, what.file, {"WHO": who}), str(name))
    assert len(list(layout.parent.glob("?" * 32))) == 2, "older layouts go"


def test_a_step_that_fails_shows_its_output(tmp_path: Path, harness: Harness, registry: DockerRegistry) -> None:
    containerfile = (
        'FROM scratch\nADD busybox /bin/busybox\nRUN ["/bin/busybox", "sh", "-c", "echo the reason; exit 7"]\n'
    )
    what = busybox(tmp_path / "context", containerfile)
    with pytest.raises(CommandFailed, match=r"(?s)building .*/fails:1 failed.*the reason.*exit status 7"):
        harness.build(what, f"{registry.host}/fails:1")
    assert not list(harness.work.iterdir())


def test_base_images(tmp_path: Path, harness: Harness, registry: DockerRegistry) -> None:
    push(registry.url, "base", image(layer({"base": b"1"})), "1")
    good = spec(tmp_path / "good", f"FROM {registry.host}/base:1\nCOPY more /\n", {"more": "2"})
    built = harness.build(good, f"{registry.host}/derived:1")
    assert len(built.image.layers) == 2

    bad = spec(tmp_path / "bad", f"FROM {registry.host}/base:none\n", {})
    with pytest.raises(CommandFailed, match="manifest unknown"):
        harness.build(bad, f"{registry.host}/derived:1")


def test_no_registry_no_build(tmp_path: Path, harness: Harness) -> None:
    what = spec(tmp_path / "context", "FROM scratch\nCOPY a /\n", {"a": "1"})
    with pytest.raises(Unreachable):
        harness.build(what, "127.0.0.1:9/app:1")
    assert not harness.said, "nothing was built in vain"


def test_a_digest_is_no_name_for_a_build(tmp_path: Path, harness: Harness) -> None:
    what = spec(tmp_path / "context", "FROM scratch\n", {})
    with pytest.raises(BadReference, match="gets its digest from the build"):
        harness.build(what, f"localhost/app@sha256:{'0' * 64}")


def test_credentials_and_authorities(tmp_path: Path, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    what = spec(tmp_path / "context", "FROM scratch\nCOPY a /\n", {"a": "1"})
    monkeypatch.setenv("HOME", str(tmp_path))
    with DockerRegistry(tmp_path, tls=certificates(tmp_path), users={"ann": "top-secret"}) as served:
        reference = f"{served.host}/private/app:1"
        trusted = RegistryOptions(ca=served.ca)
        with pytest.raises(Denied, match="was not pushed"):
            harness.build(what, reference, {served.host: trusted})
        monkeypatch.setenv("PARBAKE_USERNAME", "ann")
        monkeypatch.setenv("PARBAKE_PASSWORD", "top-secret")
        ours = trusted.model_copy(update={"credentials": "environment"})
        built = harness.build(what, reference, {served.host: ours})
        assert str(built.image.reference) == reference
        assert harness.build(what, reference, {served.host: ours}).reused
    assert "top-secret" not in harness.log
    assert not list(harness.work.iterdir()), "no credentials are left"


def test_where_overlay_does_not_work_vfs_does(
    tmp_path: Path, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes, real = tmp_path / "bin", find("buildah")
    refuse = 'case "$*" in "--storage-driver overlay"*) echo no overlay here >&2; exit 1;; esac'
    write_files(fakes, {"buildah": f'#!/bin/sh\n{refuse}\nexec {real} "$@"\n'})
    (fakes / "buildah").chmod(0o755)
    monkeypatch.setenv("PATH", f"{fakes}:{os.environ['PATH']}")
    what = spec(tmp_path / "context", "FROM scratch\nCOPY a /\n", {"a": "1"})
    alone = Harness(harness.work, tmp_path / "cache")
    assert not alone.build(what, "localhost/app:1").reused
    assert "no overlay storage here, so slower vfs: no overlay here" in alone.log
    assert (tmp_path / "cache/buildah/vfs").is_dir()


def test_a_store_that_cannot_be_read_is_made_anew(tmp_path: Path, harness: Harness) -> None:
    what = spec(tmp_path / "context", "FROM scratch\nCOPY a /\n", {"a": "1"})
    alone = Harness(harness.work, tmp_path / "cache")
    alone.build(what, "localhost/app:1")
    clear(alone.cache)
    assert not (alone.cache / "buildah").exists()
    assert alone.build(what, "localhost/app:1").reused, "its layout needs no store"
    alone.build(what, "localhost/app:1", force=True)
    shutil.rmtree(alone.cache / "images")
    (alone.cache / "buildah/overlay/overlay-layers/layers.json").write_text("{ torn")
    assert not alone.build(what, "localhost/app:1").reused


BUILD_SLOWLY = """
import sys
from pathlib import Path
from parbake.images.build.build import build
from parbake.core.events import Events
from parbake.core.model import Platform
from parbake.core.reference import Reference
from standins.contexts import Spec

folder = Path(sys.argv[1])
what = Spec(folder / "context", folder / "context" / "Containerfile")
build(what, Reference.parse("localhost/slow:1"), Platform.host(), options={}, work=folder / "work",
      cache=Path(sys.argv[2]), events=Events(lambda event: print(event.text, flush=True)))
"""


def test_nothing_is_left_of_a_build_that_was_killed(tmp_path: Path, harness: Harness) -> None:
    marker = f"5{os.getpid():07d}"
    containerfile = f'FROM scratch\nADD busybox /bin/busybox\nRUN ["/bin/busybox", "sleep", "{marker}"]\n'
    what = busybox(tmp_path / "context", containerfile)
    log = tmp_path / "log"
    with log.open("wb") as output:
        building = subprocess.Popen(
            [sys.executable, "-c", BUILD_SLOWLY, str(tmp_path), str(harness.cache)],
            stdout=output,
            cwd=Path(__file__).parents[4],
        )
    deadline = Deadline(60, "the step runs")
    while not _processes(marker):
        assert building.poll() is None
        deadline.sleep(0.05)
    building.send_signal(signal.SIGKILL)
    building.wait()
    gone = Deadline(120, "the step's processes end")
    while _processes(marker):
        gone.sleep(0.05)
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(harness.cache) not in mounts
    assert str(tmp_path) not in mounts

    what.file.write_text(containerfile.replace(marker, "0"))
    assert not harness.build(what, "localhost/slow:1").reused
    assert re.search("removing [1-9] containers of a build that was killed", harness.log)


def _processes(marker: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:3] == [b"/bin/busybox", b"sleep", marker.encode()]:
            found.append(path.parent.name)
    return found


TREE = {
    "README.md": "", "a.txt": "", "d.txt": "", "[a-c].txt": "", "temp": "", "tempa": "", "x+y(z)": "",
    "docs/README.md": "", "docs/a/b.md": "", "docs/temp/c": "", "src/main.py": "", "src/keep/a": "", "src/keep/not": "",
    "lib/node_modules/m/index.js": "", "node_modules/n": "", "lib/deep/node_modules/k": "",
    "empty": None, "lib/empty": None, ".git/config": "", ".env": "",
}  # fmt: skip
IGNORES = (
    "*.md",
    "**/*.md",
    "docs",
    "/docs/\n**/empty",
    "docs/**",
    "**/node_modules",
    "lib/**/k\n*/temp",
    "temp?\n[a-c].txt\n.git\n.env",
    "[^a-c].txt\nx+y(z)",
    "*\n!src",
    "*\n!src/keep\nsrc/keep/not",
    "**\n!**/*.md",
    "src\n!src/keep\n*.md\n!README*",
    "./lib/../docs\n!docs/a",
)


# buildah 1.39 takes back only from the top folder here; docker takes back everywhere, as its documentation says.
BUILDAH_FORGETS = {"**\n!**/*.md": ("docs", "docs/README.md", "docs/a", "docs/a/b.md")}


@pytest.mark.parametrize("patterns", IGNORES)
def test_ignore_rules_agree_with_buildah(patterns: str, tmp_path: Path, cache: Path) -> None:
    context, out = tmp_path / "context", tmp_path / "out"
    write_files(context, {**TREE, ".containerignore": patterns})
    containerfile = tmp_path / "Containerfile"
    containerfile.write_text("FROM scratch\nCOPY . /all/\n")
    rules = IgnoreRules.find(context, containerfile)
    place = BuildPlace(tmp_path, cache, {}, Events())
    tool = Containers("buildah", place, "overlay")
    arguments = ["build", f"--ignorefile={rules.source}", f"--file={containerfile}", f"--output=type=local,dest={out}"]
    run(tool.command(*arguments, str(context)))
    theirs = {str(path.relative_to(out / "all")) for path in (out / "all").rglob("*")}
    ours = {entry.path for entry in walk(context, rules)}
    assert theirs <= ours, "a change of a file that the build sees must change the digest"
    assert ours - theirs == set(BUILDAH_FORGETS.get(patterns, ())), "only a needless build would follow"
