"""The private containerd: it starts, ends, dies with us, and leaves the machine as it was."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from parbake.containerd import Daemon
from parbake.core import run
from parbake.core.errors import ContainerdError, DiskFull, EnvironmentProblem
from parbake.core.model import MIB, Descriptor
from standins.containerd_support import busybox, fill, pid_namespace_of, processes_in, shared_places, traces_of

pytestmark = pytest.mark.root


def test_it_starts_and_leaves_nothing(tmp_path: Path) -> None:
    before = shared_places()
    with Daemon(tmp_path / "store", tmp_path / "run") as daemon, daemon.client() as client:
        assert client.version()
        assert daemon.alive
        assert traces_of(str(tmp_path))
    assert not daemon.alive
    assert traces_of(str(tmp_path)) == []
    assert shared_places() == before
    # Only what parbake fills is in the store: no folders of other snapshotters or of runtimes.
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "io.containerd.metadata.v1.bolt",
        "io.containerd.snapshotter.v1.overlayfs",
        "tmpmounts",
    ]


def test_the_store_outlives_the_daemon(tmp_path: Path) -> None:
    made = busybox()
    for turn in range(2):
        with Daemon(tmp_path / "store", tmp_path / f"run{turn}") as daemon, daemon.client() as client:
            if turn == 0:
                fill(client, "registry.test/app:1", made)
            assert [image.name for image in client.images.list()] == ["registry.test/app:1"]
            assert client.content.read(made.manifest.digest) == made.blobs[made.manifest.digest]


def test_two_side_by_side(tmp_path: Path) -> None:
    with (
        Daemon(tmp_path / "a", tmp_path / "ra", cri=True) as one,
        Daemon(tmp_path / "b", tmp_path / "rb", cri=True) as two,
        one.client() as first,
        two.client() as second,
    ):
        fill(first, "registry.test/app:1", busybox())
        assert len(first.images.list()) >= 1
        assert second.images.list() == ()
        assert one.cgroup_parent != two.cgroup_parent
    assert traces_of(str(tmp_path)) == []


@pytest.mark.parametrize("cri", [False, True])
def test_a_folder_with_a_long_name(tmp_path: Path, *, cri: bool) -> None:
    folder = tmp_path / ("long-" * 25) / "run"
    with Daemon(tmp_path / "store", folder, cri=cri) as daemon, daemon.client() as client:
        client.make_namespace()
        assert "k8s.io" in run.run(["ctr", "--address", str(daemon.socket), "namespaces", "list"]).text


@pytest.mark.parametrize("length", range(97, 109))
def test_a_socket_at_the_longest_length(length: int, tmp_path: Path) -> None:
    """containerd adds `.ttrpc` to 104 bytes at most, gRPC and the kernel take 107: nothing between falls through."""
    room = length - len(str(tmp_path)) - len("//containerd.sock")
    if room < 1:
        pytest.skip("the temporary folder's own path is longer")
    folder = tmp_path / ("n" * room)
    assert len(str(folder / "containerd.sock")) == length
    with Daemon(tmp_path / "store", folder) as daemon, daemon.client() as client:
        assert client.version()


def test_no_such_program(tmp_path: Path) -> None:
    with (
        pytest.raises(EnvironmentProblem, match="is not installed"),
        Daemon(tmp_path / "store", tmp_path / "run", containerd="/nowhere/containerd"),
    ):
        pass


@pytest.mark.parametrize("cri", [False, True])
def test_one_that_does_not_start_tells_why(tmp_path: Path, *, cri: bool) -> None:
    database = tmp_path / "store/io.containerd.metadata.v1.bolt/meta.db"
    database.parent.mkdir(parents=True)
    database.write_text("no database " * 4096)
    with (
        pytest.raises(ContainerdError, match=r"(?s)did not start on .*store.*invalid database") as caught,
        Daemon(tmp_path / "store", tmp_path / "run", cri=cri),
    ):
        pass
    assert "containerd.log" in caught.value.hint
    assert traces_of(str(tmp_path)) == []


def test_a_program_that_ends_tells_why(tmp_path: Path) -> None:
    broken = tmp_path / "containerd"
    broken.write_text("#!/bin/sh\necho the disk is made of cheese >&2\nexit 1\n")
    broken.chmod(0o755)
    with (
        pytest.raises(ContainerdError, match="made of cheese"),
        Daemon(tmp_path / "store", tmp_path / "run", containerd=str(broken)),
    ):
        pass


def test_a_full_disk(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    run.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(store)])
    try:
        data = b"x" * (8 * MIB)
        descriptor = Descriptor(media_type="application/octet-stream", digest=f"sha256:{'0' * 64}", size=len(data))
        with Daemon(store, tmp_path / "run") as daemon, daemon.client() as client, pytest.raises(DiskFull):
            client.content.write(descriptor, data)
    finally:
        run.run(["umount", str(store)])


_VICTIM = """
import sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from standins.containerd_support import busybox, fill, pause
from parbake.containerd import Cri, Daemon
folder = Path({folder!r})
with Daemon(folder / "store", folder / "run", cri={cri}, sandbox_image="localhost/pause:1") as daemon:
    with daemon.client() as client:
        if {cri}:
            cri = Cri(client.connection, cgroup_parent=daemon.cgroup_parent)
            fill(client, "localhost/pause:1", pause(), seen_by=cri)
            fill(client, "registry.test/app:1", busybox(), seen_by=cri)
            pod = cri.run_pod_sandbox("victim", log_directory=folder / "run/logs")
            app = cri.create_container(pod, "app", "registry.test/app:1", command=["/bin/sleep", {marker!r}])
            cri.start_container(app)
        print(daemon.cgroup_parent, flush=True)
        time.sleep(100)
"""


def within(seconds: float, true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not (holds := true()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds


def keep(cgroup: str, keeper: int) -> list[Path]:
    """Put a process into a cgroup and return its folders: while it lives, no other daemon of this machine, each of
    which cleans up, can remove them."""
    kept = []
    for folder in (*Path("/sys/fs/cgroup").glob(cgroup[1:]), *Path("/sys/fs/cgroup").glob(f"*{cgroup}")):  # v2, v1
        (folder / "kept").mkdir()
        with suppress(OSError):  # a cpuset without processors takes no process
            (folder / "kept/cgroup.procs").write_text(str(keeper))
            kept.append(folder)
    return kept


@pytest.fixture
def keeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is killed."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("cri", [False, True])
def test_kill_takes_everything_along(tmp_path: Path, keeper: subprocess.Popen[bytes], *, cri: bool) -> None:
    kept: list[Path] = []
    before = shared_places()
    marker = f"{secrets.randbelow(10**6)}.5"  # containers are in PID namespaces of their own: found by this argument
    script = _VICTIM.format(here=str(Path(__file__).parents[3]), folder=str(tmp_path), marker=marker, cri=cri)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        cgroup = victim.stdout.readline().strip()
        try:
            namespace = pid_namespace_of(tmp_path / "run") if cri else ""
            if cri:
                running = processes_in(namespace)
                assert any("containerd-shim-runc-v2" in command for command in running)
                assert any("containerd --config" in command for command in running)
                assert within(120, lambda: bool(traces_of(f"/bin/sleep {marker}")))
                kept = keep(cgroup, keeper.pid)
        finally:
            victim.kill()
    within(120, lambda: not (traces_of(str(tmp_path)) or traces_of(marker) or (cri and processes_in(namespace))))
    assert traces_of(str(tmp_path)) == []
    assert traces_of(marker) == []
    assert not cri or processes_in(namespace) == []
    assert shared_places() == before
    if cri:  # the next daemon removes the cgroups that nobody could remove
        assert kept
        assert all(folder.exists() for folder in kept)
        keeper.kill()
        keeper.wait()
        procs = [folder / "kept/cgroup.procs" for folder in kept]
        assert within(120, lambda: not any(file.exists() and file.read_text() for file in procs))

        def swept() -> bool:
            with Daemon(tmp_path / "store", tmp_path / "again", cri=True):
                return not any(folder.exists() for folder in kept)

        assert within(120, swept), (
            "the kernel says for a moment that it is busy, and the daemon after the next tries again"
        )
