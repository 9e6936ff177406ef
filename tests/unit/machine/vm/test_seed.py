"""The seed disk, read back by mtools."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from parbake.core import run
from parbake.core.nodefiles import node_file
from parbake.machine.vm import Seed, agent_seed


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
