"""The seed: a small disk from which cloud-init takes its orders (NoCloud data source, volume label CIDATA).

Source: cloud-init's documentation, data sources, NoCloud.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from parbake.core import run
from parbake.core.nodefiles import node_file

LABEL = "CIDATA"
_SLACK = 512 << 10  # bytes for FAT's own tables and the rounding of files to clusters

# Starts the agent as its own unit, at once: not after the network, not after other units that wait for it.
_START = (
    "mkdir -p /run/parbake && echo {agent} | base64 -d >/run/parbake/agent.py && "
    "systemd-run --no-block --collect --unit=parbake-agent --property=DefaultDependencies=no "
    "python3 /run/parbake/agent.py"
)


@dataclass(frozen=True, slots=True)
class Seed:
    """What cloud-init reads: the user data (a ``#cloud-config`` document) and further files on the same disk.

    ``files`` may replace the usual ones: ``user-data``, ``meta-data``, ``network-config``.
    """

    user_data: str
    files: Mapping[str, bytes] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the seed as a FAT file system image; raises CommandFailed, EnvironmentProblem."""
        identity = f"parbake-{os.urandom(8).hex()}"  # new for each boot: cloud-init then does all its work
        files = {
            "user-data": self.user_data.encode(),
            "meta-data": f"instance-id: {identity}\n".encode(),
            "network-config": b"network:\n  config: disabled\n",
            **self.files,
        }
        size = sum(map(len, files.values())) + _SLACK
        run.run(["mkfs.vfat", "-n", LABEL, "-C", str(path), str(-(-size // 1024))])
        for name, data in files.items():
            run.run(["mcopy", "-i", str(path), "-", f"::{name}"], stdin=data, env={"MTOOLS_SKIP_CHECK": "1"})


def agent_seed() -> Seed:
    """Return a seed that starts the guest agent as early as cloud-init can, and leaves all else undone.

    cloud-init makes no host keys, grows nothing and installs nothing: the machine is looked at, not set up.
    """
    agent = base64.b64encode(node_file("agent.py").read_bytes()).decode()
    config = {
        "bootcmd": [["sh", "-c", _START.format(agent=agent)]],
        "cloud_init_modules": ["bootcmd"],
        "cloud_config_modules": [],
        "cloud_final_modules": [],
    }
    return Seed(f"#cloud-config\n{json.dumps(config)}\n")  # JSON is YAML
