"""What nodes with another snapshotter make of a bake: SOCI's, as a proxy plugin, in Debian's version 0.4.1.

On Amazon Linux 2023 it is `FastImagePull`, on Bottlerocket a setting. A bake for overlayfs alone fails there; a store
that SOCI's own snapshotter was given as well starts on both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from parbake.containerd import Client, Cri, Daemon
from parbake.containerd.cri import log_text
from parbake.containerd.labels import snapshot_reference
from parbake.containerd.own_root import OWN
from parbake.core.errors import ContainerdError
from parbake.core.run import Deadline, Process
from standins import containerd_support
from standins.containerd_support import SeeingDaemon, busybox, fill, pause, traces_of
from standins.newer import MACHINES, NEWER, program_of, soci_snapshotter

pytestmark = pytest.mark.root

APP, PAUSE = "registry.test/team/app:1", "localhost/pause:1"
MADE = busybox(Cmd=["/bin/busybox", "cat", "/greeting"])


class SociDaemon(SeeingDaemon):
    """A containerd whose snapshotter is SOCI's, which listens at ``<folder>/soci.sock``."""

    def _configure(self) -> None:
        super()._configure()
        path = self.folder / "config.toml"
        text = path.read_text().replace('snapshotter = "overlayfs"', 'snapshotter = "soci"')
        plugin = f'\n[proxy_plugins.soci]\ntype = "snapshot"\naddress = "{OWN / "soci.sock"}"\n'
        path.write_text(text + plugin)


@contextmanager
def soci(root: Path, store: Path, folder: Path, **options: Any) -> Iterator[SociDaemon]:
    """Run SOCI's snapshotter on ``root``, and a containerd on ``store`` that uses it."""
    folder.mkdir()
    socket = folder / "soci.sock"
    command = [soci_snapshotter(), "--address", str(socket), "--root", str(root)]
    with Process(command, log=folder / "soci.log") as process:
        deadline = Deadline(120, "SOCI's snapshotter listens")
        while not socket.exists():
            process.check_alive()
            deadline.sleep(0.05)
        with SociDaemon(store, folder, shown=root, **options) as daemon:
            yield daemon


def fill_both(client: Client) -> None:
    fill(client, PAUSE, pause())
    fill(client, APP, MADE)


def starts(daemon: Daemon, client: Client) -> str:
    """Start the image as a kubelet would that may not pull; return what it says."""
    cri = Cri(client.connection, cgroup_parent=daemon.cgroup_parent)
    assert cri.image_status(APP), "it counts as present: nobody pulls it"
    with cri.pod("app", log_directory=daemon.folder / "logs") as pod:
        container = cri.create_container(pod, "app", APP, log_path=f"{os.urandom(4).hex()}.log")
        cri.start_container(container)
        deadline = Deadline(60, "the container's end")
        while (status := cri.container_status(container)).state != "exited":
            deadline.sleep(0.02)
        return log_text(Path(status.log_path).read_bytes())


@pytest.mark.parametrize("which", [MACHINES, NEWER])
def test_a_bake_for_overlayfs_fails_and_one_for_both_starts(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    folder = tmp_path_factory.mktemp("soci")
    store, root = folder / "store", folder / "root"
    more: dict[str, Any] = {"containerd": program_of(which)}
    pods: dict[str, Any] = {**more, "cri": True, "sandbox_image": PAUSE}
    with Daemon(store, folder / "a", **more) as daemon, daemon.client() as client:
        fill_both(client)
    with (
        soci(folder / "empty", store, folder / "b", **pods) as daemon,
        daemon.client() as client,
        pytest.raises(ContainerdError, match="unpack"),
    ):
        starts(daemon, client)

    monkeypatch.setattr(containerd_support, "snapshot_reference", lambda chain: snapshot_reference(chain, "soci"))
    with soci(root, store, folder / "c", **more) as daemon, daemon.client() as client:
        fill_both(Client(client.connection, snapshotter="soci"))
        # The layout of containerd's own overlayfs snapshotter.
        assert sorted(each.name for each in (root / "snapshotter").iterdir()) == ["metadata.db", "snapshots"]
        assert all(each.name.isdecimal() for each in (root / "snapshotter/snapshots").iterdir())
    with soci(root, store, folder / "d", **pods) as daemon, daemon.client() as client:
        assert starts(daemon, client) == "hello\n"
        client.gc()
        assert starts(daemon, client) == "hello\n"
    with Daemon(store, folder / "e", **pods) as plain, plain.client() as client:
        assert starts(plain, client) == "hello\n"
    assert traces_of(str(folder)) == []
