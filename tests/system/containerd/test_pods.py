"""The CRI: pods and containers really start from images that were put into the store by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from parbake.coldstart.rehearsal.cold_start import LocalHost
from parbake.containerd import Client, Cri, Daemon, NotFound
from parbake.containerd.cri import ContainerStatus, log_text
from parbake.core import cgroups, mounts
from parbake.core.run import Deadline
from parbake.verify.starter import Starter
from standins import containerd_support as support
from standins import started_as
from standins.containerd_support import busybox, fill, pause, shared_places, traces_of

pytestmark = pytest.mark.root

APP = "registry.test/team/app:1"
PAUSE = "localhost/pause:1"
SAYS = "registry.test/team/says:1"
LIMITS = cgroups.Limits(memory=128 << 20, tasks=150)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pods")


@pytest.fixture(scope="module")
def daemon(place: Path) -> Iterator[Daemon]:
    before = shared_places()
    with Daemon(place / "store", place / "fill") as daemon, daemon.client() as client:
        fill(client, PAUSE, pause())
        fill(client, SAYS, busybox({"etc/passwd": started_as.PASSWD, "etc/app": started_as.OUTSIDE}))
        fill(client, APP, busybox(Entrypoint=["/bin/busybox"], Cmd=["cat", "/greeting"], Env=["FROM=image"]))
    with Daemon(place / "store", place / "run", cri=True, sandbox_image=PAUSE, limits=LIMITS) as daemon:
        yield daemon
    assert traces_of(str(place)) == []
    assert shared_places() == before
    cgroups = Path("/sys/fs/cgroup")  # v2, v1
    assert [*cgroups.glob(daemon.cgroup_parent[1:]), *cgroups.glob(f"*{daemon.cgroup_parent}")] == []


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.client() as client:
        yield client


@pytest.fixture
def cri(daemon: Daemon, client: Client) -> Cri:
    return daemon.cri(client)


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
    assert {tag for image in support.seen_images(cri) for tag in image.repo_tags} == {APP, PAUSE, SAYS}
    assert all(image.pinned for image in support.seen_images(cri))
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
    assert support.sandboxes(cri) == []
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


def said(cri: Cri, place: Path, script: str) -> tuple[ContainerStatus, str]:
    with cri.pod("said", log_directory=place / "run/logs") as pod:
        command = ["/bin/sh", "-c", script]
        container = cri.create_container(pod, "app", APP, command=command, log_path="said.log")
        cri.start_container(container)
        status = ended(cri, container)
        text = log_text((place / "run/logs/said.log").read_bytes())
        (place / "run/logs/said.log").unlink()
    return status, text


def test_what_runs_on_this_machine_is_confined(cri: Cri, place: Path) -> None:
    """``unshare`` of a user namespace is what the runtime's profile refuses to those without CAP_SYS_ADMIN."""
    disk = place.stat().st_dev
    script = f"""PATH=/bin; busybox cat /proc/self/status
        busybox unshare -U busybox echo in a namespace
        busybox mount -t tmpfs none /bin && echo mounted
        busybox mknod /disk b {os.major(disk)} {os.minor(disk)} && busybox head -c 1 /disk >/null && echo read a disk
        echo 1 >/proc/sys/vm/drop_caches && echo changed a setting
        busybox wc -c /proc/keys /proc/timer_list"""
    _, text = said(cri, place, script)
    status = dict(line.split(":", 1) for line in text.splitlines() if ":\t" in line)
    assert (status["Seccomp"].strip(), status["NoNewPrivs"].strip()) == ("2", "1")
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0xA80425FB  # those of containerd's own default
    assert {"in a namespace", "mounted", "read a disk", "changed a setting"}.isdisjoint(text.splitlines())
    assert "0 total" in text  # both are masked


def test_memory_and_processes_have_a_limit_that_is_told(daemon: Daemon, cri: Cri, place: Path) -> None:
    assert daemon.exceeded() == ""
    status, _ = said(cri, place, "exec /bin/busybox dd if=/dev/zero of=/dev/null bs=700M count=1")
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    assert daemon.exceeded() == "it had used all of the 128 MiB of memory that it gets on this machine"
    script = 'i=0; while [ $i -lt 400 ]; do /bin/sleep 20 & i=$((i+1)); echo "$i"; done'
    status, text = said(cri, place, script)
    assert status.exit_code != 0
    assert 100 < len([line for line in text.splitlines() if line.isdigit()]) < LIMITS.tasks
    assert "Resource temporarily unavailable" in text


def test_an_image_that_is_not_there(cri: Cri) -> None:
    with cri.pod("missing") as pod, pytest.raises(NotFound, match=r"registry\.test/none:1"):
        cri.create_container(pod, "app", "registry.test/none:1")
    assert support.sandboxes(cri) == []


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


@pytest.fixture(scope="module")
def starter(daemon: Daemon, client: Client) -> Starter:
    logs, places = (str(daemon.folder / name) for name in ("logs", "places"))
    return Starter(LocalHost(), daemon.cri(client), stretch=1.0, pause=PAUSE, logs=logs, places=places)


def test_an_image_starts_as_its_startup_says(starter: Starter) -> None:
    """User, folder, read-only root, writable folders and files; a link of the image leads nowhere outside."""
    outside = Path("/tmp") / Path(started_as.OUTSIDE).name
    for how, said in ((started_as.HOW, started_as.SAYS), (started_as.BY_NUMBER, started_as.SAYS_BY_NUMBER)):
        found = starter.start(SAYS, how)
        assert (found.problems, started_as.lines(found.output)) == ((), said)
    assert not outside.exists()


def test_a_user_is_one_of_the_image_and_not_of_this_machine(starter: Starter) -> None:
    assert "games:" in Path("/etc/passwd").read_text()
    [problem] = starter.start(SAYS, started_as.HOW.model_copy(update={"user": "games"})).problems
    assert "no users found" in problem or "no matching entries" in problem


def test_a_command_in_the_container_says_that_it_is_up(starter: Starter) -> None:
    up = starter.start(SAYS, started_as.ASKED)
    assert up.problems == ()
    assert up.seconds is not None
    assert up.seconds >= 0.4
    [problem] = starter.start(SAYS, started_as.NEVER).problems
    assert problem == "not up within 1 s: waited until `/bin/gone` in it ends with code 0"
