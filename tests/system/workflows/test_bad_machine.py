"""A machine that lacks something: a clear error with the next step, exit 1, one JSON document, nothing left behind.

Programs are taken away in a mount namespace of the run's own: something that cannot be run lies in their place.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from parbake.core.run import find
from standins.disks import machine, node_tree
from standins.images import image, layer, push
from standins.registry import DockerRegistry
from standins.runs import Done, artefacts, as_program, bakefile, parbake, place, private_places, remove

pytestmark = pytest.mark.root
__all__ = ["place", "private_places"]

APP = image(layer({"etc/": None, "etc/motd": b"hello\n" * 1000}))
# Reads the tests' own folders, which are root's, as another user.
NOBODY = [
    "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
    "--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--",
]  # fmt: skip


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as served:
        push(served.url, "team/app", APP, "1")
        yield served


@pytest.fixture
def volume(place: Path, registry: DockerRegistry) -> Path:
    return bakefile(place, [f"{registry.host}/team/app:1"], base="none", size="64MiB")


def within(*preparations: Sequence[str | Path]) -> list[str]:
    """Return what to start a run through, so that ``preparations`` are made in a mount namespace of its own."""
    steps = "".join(f"{shlex.join(map(str, step))} && " for step in preparations)
    return ["unshare", "--mount", "--", "/bin/sh", "-c", f'{steps}exec "$@"', "sh"]


def without(*programs: str, to_begin: Sequence[str | Path] = ("true",)) -> list[str]:
    """Take programs away, wherever parbake looks for them."""
    paths = [path for path in map(find, programs) if path]
    return within(to_begin, *(["mount", "--bind", "/dev/null", path] for path in paths))


def bake(path: Path, *options: str, prefix: Sequence[str]) -> Done:
    return as_program("bake", "-f", path, "--json", "--progress", "none", *options, prefix=prefix)


def test_not_root(volume: Path, registry: DockerRegistry) -> None:
    """Planning takes no root, nor does an ext4 volume; what mounts does, and says so before it has fetched anything."""
    # Whether a file can be read is asked without privileges: it has to lie where anybody may look.
    volume.parent.chmod(0o755)
    prefix = [*within(["mount", "--bind", volume.parent, "/mnt"]), *NOBODY]
    path = Path("/mnt", volume.name)
    assert as_program("plan", "-f", path, "--json", prefix=prefix).good()["key"]
    here = bake(path, "--rehearse-in", "host", prefix=prefix)
    here.refused(1, "EnvironmentProblem", "a rehearsal on this machine needs root", hint="leave --rehearse-in host out")
    xfs_volume(volume.parent, registry)
    bake(path, "--no-verify", prefix=prefix).refused(1, "EnvironmentProblem", "baking needs root", hint="sudo")


def xfs_volume(place: Path, registry: DockerRegistry) -> Path:
    """Write a Bakefile of a volume that is mounted to be filled."""
    artefact = {"kind": "volume", "filesystem": "xfs"}
    return bakefile(place, [f"{registry.host}/team/app:1"], base="none", artefact=artefact)


def test_an_ext4_volume_takes_neither_root_nor_a_containerd(place: Path, volume: Path) -> None:
    place.chmod(0o755)
    found = []
    for prefix in ([], NOBODY):
        within_mnt = [*without("containerd", "mount", to_begin=["mount", "--bind", place, "/mnt"]), *prefix]
        record = bake(Path("/mnt", volume.name), "--no-verify", prefix=within_mnt).good()
        artefact = place / "artefacts" / record["artefact"]
        found.append(Path(f"{artefact}.blocks").read_bytes())
        assert artefact.stat().st_uid == (65534 if prefix else 0)
        shutil.rmtree(place / "artefacts")
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("program", "package", "filesystem"),
    [("containerd", "containerd", "xfs"), ("mke2fs", "e2fsprogs", "ext4"), ("mkfs.xfs", "xfsprogs", "xfs")],
)
def test_a_program_is_missing(
    place: Path, registry: DockerRegistry, program: str, package: str, filesystem: str
) -> None:
    artefact = {"kind": "volume", "filesystem": filesystem}
    path = bakefile(place, [f"{registry.host}/team/app:1"], base="none", artefact=artefact)
    done = bake(path, "--no-verify", prefix=without(program))
    done.refused(1, "EnvironmentProblem", f"{program} is not installed", hint=f"apt-get install {package}")


def test_no_qemu(place: Path, registry: DockerRegistry, volume: Path) -> None:
    """What is to be verified and cannot be is not baked first."""
    qemu = "qemu-system-x86_64"
    done = bake(volume, prefix=without(qemu))
    done.refused(1, "EnvironmentProblem", f"{qemu} is not installed", hint="apt-get install qemu-system-x86")
    assert artefacts(place / "artefacts") == []

    base = machine(place / "base.raw", "gpt", "ext4", node_tree(place / "tree"))
    path = bakefile(place, [f"{registry.host}/team/app:1"], base={"file": base})
    done = bake(path, "--no-verify", prefix=without("qemu-img"))
    done.refused(1, "EnvironmentProblem", "qemu-img is not installed", hint="apt-get install qemu-utils")


def test_verify_without_qemu(place: Path, registry: DockerRegistry) -> None:
    base = machine(place / "base.raw", "gpt", "ext4", node_tree(place / "tree"))
    path = bakefile(place, [f"{registry.host}/team/app:1"], base={"file": base}, size="160MiB")
    record = parbake("bake", "-f", path, "--no-verify", "--json").good()
    done = as_program("verify", record["artefact_path"], "-f", path, "--json", prefix=without("qemu-system-x86_64"))
    done.refused(1, "EnvironmentProblem", "qemu-system-x86_64 is not installed")
    remove(record)


def test_nothing_that_builds(place: Path, registry: DockerRegistry) -> None:
    (place / "context").mkdir()
    (place / "context/Containerfile").write_text("FROM scratch\nCOPY Containerfile /\n")
    entry = {"reference": f"{registry.host}/team/built:1", "build": "context"}
    path = bakefile(place, [entry], base="none")
    done = bake(path, "--no-verify", prefix=without("buildah", "docker", "podman"))
    done.refused(1, "EnvironmentProblem", "buildah", "docker", "podman", hint="apt-get install buildah")


def test_no_default_base(place: Path, registry: DockerRegistry) -> None:
    path = bakefile(place, [f"{registry.host}/team/app:1"])
    done = bake(path, "--no-verify", prefix=without("mmdebstrap"))
    done.refused(1, "EnvironmentProblem", "default base", hint="apt-get install mmdebstrap")


def test_an_output_that_cannot_be_written(place: Path, volume: Path) -> None:
    output = place / "artefacts"
    output.mkdir()
    prefix = within(["mount", "--bind", "-o", "ro", output, output])
    bake(volume, "--no-verify", prefix=prefix).refused(1, "EnvironmentProblem", "Read-only", str(output), hint="output")


def test_the_host_s_disk_is_full(place: Path, registry: DockerRegistry) -> None:
    """The volume has room, the disk that it lies on has not."""
    push(registry.url, "team/big", image(layer({"big": bytes(range(256)) * (48 << 12)})), "1")
    path = bakefile(place, [f"{registry.host}/team/big:1"], base="none", size="256MiB")
    output = place / "artefacts"
    output.mkdir()
    prefix = within(["mount", "-t", "tmpfs", "-o", "size=36m", "tmpfs", output])
    bake(path, "--no-verify", prefix=prefix).refused(1, "DiskFull", "no space left")


def test_no_mount_namespace(place: Path, registry: DockerRegistry) -> None:
    """As in a container that is not privileged."""
    prefix = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", "--"]
    bake(xfs_volume(place, registry), "--no-verify", prefix=prefix).refused(
        1, "EnvironmentProblem", "namespace", hint="privileged"
    )


def test_no_loop_device(place: Path, registry: DockerRegistry) -> None:
    prefix = within(["mount", "--bind", "/dev/null", "/dev/loop-control"])
    path = xfs_volume(place, registry)
    bake(path, "--no-verify", prefix=prefix).refused(1, "EnvironmentProblem", "loop device")


def test_a_home_that_is_nowhere(place: Path, volume: Path) -> None:
    """The cache is a file: nothing can be put there."""
    shutil.rmtree(place / "cache")
    (place / "cache").write_text("no folder")
    done = bake(volume, "--no-verify", prefix=[])
    assert done.code in {1, 2}
    done.refused(done.code, done.document["error"], "cache")
