"""How a machine gets its orders: from a seed disk, which cloud-init reads, or from credentials, which systemd reads.

The seed is a NoCloud data source (volume label CIDATA). Credentials come in SMBIOS strings, so that systemd has them
before any unit starts; it makes units of them since version 256. Sources: cloud-init's documentation, data sources,
NoCloud; systemd.system-credentials(7), systemd-debug-generator(8).
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
    "python3 -IS /run/parbake/agent.py"
)

# The same for systemd: as soon as files can be written and the port is there. An emulated machine on a busy host may
# take minutes to find it: systemd's own limit (90 s) must not send the agent to the slow serial line before.
_PORT_UNIT = r"dev-virtio\x2dports-dev.parbake.agent.device"
_AGENT_UNIT = f"""\
[Unit]
DefaultDependencies=no
Wants={_PORT_UNIT}
After={_PORT_UNIT} local-fs.target
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart=python3 -IS /run/credentials/@system/parbake.agent
"""


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


def agent_credentials() -> dict[str, bytes]:
    """Return credentials, by name, that start the guest agent where systemd is 256 or later.

    cloud-init then finds no data source and does not run, which is most of a boot's work.
    """
    return {
        "parbake.agent": node_file("agent.py").read_bytes(),
        "systemd.extra-unit.parbake-agent.service": _AGENT_UNIT.encode(),
        f"systemd.unit-dropin.{_PORT_UNIT}": b"[Unit]\nJobRunningTimeoutSec=infinity\n",
        "systemd.unit-dropin.sysinit.target": b"[Unit]\nWants=parbake-agent.service\n",
    }
