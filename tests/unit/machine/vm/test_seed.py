"""How a machine gets its orders: the seed disk, read back by mtools, and credentials."""

from __future__ import annotations

import base64
import configparser
import json
from pathlib import Path

import pytest

from parbake.core import run
from parbake.core.nodefiles import node_file
from parbake.machine.vm import Seed, agent_credentials, agent_seed
from parbake.verify.booted import BootedNode, Kind


def show(image: Path, name: str) -> bytes:
    return run.run(["mtype", "-i", str(image), f"::{name}"], env={"MTOOLS_SKIP_CHECK": "1"}).stdout


def test_it_is_a_nocloud_disk(tmp_path: Path) -> None:
    image = tmp_path / "seed.img"
    Seed("#cloud-config\n{}\n", {"more.bin": bytes(range(256)) * 8000}).write(image)
    assert run.run(["blkid", "-p", "-o", "value", "-s", "LABEL", str(image)]).text == "CIDATA"
    assert show(image, "user-data") == b"#cloud-config\n{}\n"
    assert show(image, "network-config") == b"network:\n  config: disabled\n"
    assert show(image, "more.bin") == bytes(range(256)) * 8000


def test_each_boot_is_a_new_instance(tmp_path: Path) -> None:
    identities = set()
    for number in range(2):
        image = tmp_path / f"{number}.img"
        Seed("").write(image)
        identities.add(show(image, "meta-data"))
    assert len(identities) == 2


def test_the_agent_is_part_of_its_orders() -> None:
    data = agent_seed().user_data
    first, _, rest = data.partition("\n")
    assert first == "#cloud-config"
    config = json.loads(rest)
    [[shell, option, script]] = config["bootcmd"]
    assert (shell, option) == ("sh", "-c")
    assert base64.b64encode(node_file("agent.py").read_bytes()).decode() in script
    assert config["cloud_final_modules"] == []


def parsed(unit: bytes) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(unit.decode())
    return parser


def test_systemd_gets_the_agent_and_a_unit_that_starts_it() -> None:
    credentials = agent_credentials()
    assert credentials["parbake.agent"] == node_file("agent.py").read_bytes()
    unit = parsed(credentials["systemd.extra-unit.parbake-agent.service"])
    assert unit["Service"]["ExecStart"].split() == ["python3", "-IS", "/run/credentials/@system/parbake.agent"]
    port = unit["Unit"]["Wants"]
    assert port == r"dev-virtio\x2dports-dev.parbake.agent.device"
    assert port in unit["Unit"]["After"].split()
    # However long a starved machine takes to find the port: who waits at the other end has a limit.
    assert parsed(credentials[f"systemd.unit-dropin.{port}"])["Unit"]["JobRunningTimeoutSec"] == "infinity"
    assert parsed(credentials["systemd.unit-dropin.sysinit.target"])["Unit"]["Wants"] == "parbake-agent.service"
    # Strings of SMBIOS, as QEMU takes them on its command line.
    assert all(len(data) < 64 << 10 for data in credentials.values())


@pytest.mark.parametrize(
    ("kind", "default_base", "reads", "by_systemd"),
    [
        ("volume", False, False, True),  # attached to the default base, whatever its own nodes run
        ("machine-image", True, False, True),
        ("machine-image", False, False, False),  # its systemd may be too old
        ("machine-image", True, True, False),  # the trace is of a boot with cloud-init, as on a cloud
    ],
)
def test_cloud_init_is_needed_for_other_bases_and_for_the_trace(
    tmp_path: Path, kind: Kind, *, default_base: bool, reads: bool, by_systemd: bool
) -> None:
    disk, log = tmp_path / "disk.raw", tmp_path / "reads" if reads else None
    node = BootedNode(
        disk, kind, "raw", folder=tmp_path, base=lambda: disk, memory=64, default_base=default_base, reads=log
    )
    assert (node.machine._seed is None, bool(node.machine._credentials)) == (by_systemd, by_systemd)
