"""The part of a node's user data that mounts a baked volume over the runtime's store, before the runtime starts.

Facts: cloud-init runs a cloud-boothook in its network stage, at each boot, before it comes to scripts; on AL2023
nodeadm starts containerd after all of cloud-init (``nodeadm-run.service`` is ``After=cloud-final.service``). Where
containerd was started earlier (Ubuntu), the program stops it, and starts it again.
"""

from __future__ import annotations

import shlex

from parbake.core.nodefiles import packed, short

_USER_DATA = """\
#cloud-boothook
#!/bin/sh
# Mounts the volume of baked images over the container runtime's store. Written by parbake; goes first in user data.
mkdir -p /etc/parbake /etc/systemd/system/containerd.service.wants
base64 -d <<'END' | gzip -d >/etc/parbake/mount.sh
{program}
END
base64 -d <<'END' | gzip -d >/etc/systemd/system/parbake-mount.service
{unit}
END
ln -sfn ../parbake-mount.service /etc/systemd/system/containerd.service.wants/parbake-mount.service
sh /etc/parbake/mount.sh
exit 0
"""


def user_data(sandbox: str) -> str:
    """Return user data that mounts a volume, to be the first part of a node's. Pure.

    ``sandbox`` is the reference of the pause image that the volume carries; empty: none.
    """
    program = f"SANDBOX={shlex.quote(sandbox)}\n{short('mount.sh')}"
    unit = short("parbake-mount.service")
    return _USER_DATA.format(program=packed(program.encode()), unit=packed(unit.encode()))
