"""The CRI: pods and containers really start from images that were put into the store by hand."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from parbake.containerd import Client, Cri, Daemon, NotFound
from parbake.containerd.cri import ContainerStatus, log_text
from parbake.core import mounts
from parbake.core.run import Deadline
from tests.fakes.containerd_support import busybox, fill, pause, shared_places, traces_of

pytestmark = pytest.mark.root

APP = "registry.test/team/app:1"
PAUSE = "localhost/pause:1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pods")


@pytest.fixture(scope="module")
def client(place: Path) -> Iterator[Client]:
    before = shared_places()
    with Daemon(place / "store", place / "fill") as daemon, daemon.client() as client:
        fill(client, PAUSE, pause())
        fill(client, APP, busybox(Entrypoint=["/bin/busybox"], Cmd=["cat", "/greeting"], Env=["FROM=image"]))
    with Daemon(place / "store", place / "run", cri=True, sandbox_image=PAUSE) as daemon, daemon.client() as client:
        # As another process would find it: Cri gets the daemon's cgroup through the fixture below.
        (place / "cgroup").write_text(daemon.cgroup_parent)
        yield client
    assert traces_of(str(place)) == []
    assert shared_places() == before
    cgroups = Path("/sys/fs/cgroup")  # v2, v1
    assert [*cgroups.glob(daemon.cgroup_parent[1:]), *cgroups.glob(f"*{daemon.cgroup_parent}")] == []


@pytest.fixture
def cri(client: Client, place: Path) -> Cri:
    return Cri(client.connection, cgroup_parent=(place / "cgroup").read_text())


def ended(cri: Cri, container: str) -> ContainerStatus:
    deadline = Deadline(120, "the container's end")
    while (status := cri.container_status(container)).state != "exited":
        deadline.sleep(0.02)
    return status


def test_what_kubelet_sees(cri: Cri) -> None:
    assert cri.version().startswith("containerd ")
    assert cri.status()["RuntimeReady"] == ""
    status = cri.image_status(APP)
    assert status is not None
    made = busybox(Entrypoint=["/bin/busybox"], Cmd=["cat", "/greeting"], Env=["FROM=image"])
    assert status.id == made.config.digest
    assert status.tags == (APP,)
    assert status.pinned
    assert {tag for image in cri.list_images() for tag in image.tags} == {APP, PAUSE}
    assert all(image.pinned for image in cri.list_images())
    assert cri.image_status("registry.test/none:1") is None


def test_the_image_own_command_runs(cri: Cri, place: Path) -> None:
    with cri.pod("own", log_directory=place / "run/logs") as pod:
        container = cri.create_container(pod, "app", APP, log_path="app.log")
        assert cri.container_status(container).state == "created"
        cri.start_container(container)
        status = ended(cri, container)
        assert (status.exit_code, status.reason) == (0, "Completed")
        assert 0 < status.created <= min(status.started, status.finished)
        assert status.log_path == str(place / "run/logs/app.log")
        assert log_text((place / "run/logs/app.log").read_bytes()) == "hello\n"
    assert cri.list_pod_sandboxes() == ()
    with pytest.raises(NotFound):
        cri.container_status(container)


def test_command_arguments_environment_and_failure(cri: Cri, place: Path) -> None:
    with cri.pod("other", log_directory=place / "run/logs") as pod:
        container = cri.create_container(
            pod,
            "app",
            APP,
            command=["/bin/sh", "-c"],
            args=['echo "$FROM $MINE"; echo wrong >&2; exit 7'],
            env={"MINE": "pod"},
            log_path="fail.log",
        )
        cri.start_container(container)
        status = ended(cri, container)
        assert (status.exit_code, status.reason) == (7, "Error")
        assert sorted(log_text((place / "run/logs/fail.log").read_bytes()).splitlines()) == ["image pod", "wrong"]


def test_an_image_that_is_not_there(cri: Cri) -> None:
    with cri.pod("missing") as pod, pytest.raises(NotFound, match=r"registry\.test/none:1"):
        cri.create_container(pod, "app", "registry.test/none:1")
    assert cri.list_pod_sandboxes() == ()


def test_remove_image(client: Client, cri: Cri) -> None:
    fill(client, "registry.test/gone:1", busybox({"other": b"data\n"}), seen_by=cri)
    cri.remove_image("registry.test/gone:1")
    assert cri.image_status("registry.test/gone:1") is None
    cri.remove_image("registry.test/gone:1")


def test_a_store_that_only_this_thread_sees(tmp_path: Path) -> None:
    """The store of an artefact is mounted in a mount namespace of the thread that bakes."""
    store = tmp_path / "store"
    store.mkdir()

    def bake() -> str:
        with mounts.private_mounts():
            mounts.tmpfs(store, size="64m")
            with Daemon(store, tmp_path / "fill") as daemon, daemon.client() as client:
                fill(client, PAUSE, pause())
                fill(client, APP, busybox(Cmd=["/bin/busybox", "cat", "/greeting"]))
            daemon = Daemon(store, tmp_path / "run", cri=True, sandbox_image=PAUSE)
            with daemon, daemon.client() as client:
                cri = Cri(client.connection, cgroup_parent=daemon.cgroup_parent)
                with cri.pod("private", log_directory=tmp_path / "run/logs") as pod:
                    container = cri.create_container(pod, "app", APP, log_path="app.log")
                    cri.start_container(container)
                    ended(cri, container)
        return log_text((tmp_path / "run/logs/app.log").read_bytes())

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(bake).result() == "hello\n"
    assert list(store.iterdir()) == []
    assert traces_of(str(tmp_path)) == []
