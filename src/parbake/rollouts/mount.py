"""The part of a node's user data that mounts a baked volume over the runtime's store, before the runtime starts.

Facts: cloud-init runs a cloud-boothook in its network stage, at each boot, before it comes to scripts. On AL2023
nodeadm writes containerd's configuration before that (``nodeadm-config.service`` is ``Before=cloud-init.service``), and
starts containerd after all of cloud-init (``nodeadm-run.service`` is ``After=cloud-final.service``). Where
containerd was started earlier (Ubuntu), the program stops it, and starts it again. k3s and RKE2 run a containerd of
their own, whose store is ``agent/containerd`` below their data folder (docs.rke2.io, ``data-dir``); the units are those
that their installers make.
"""

from __future__ import annotations

import shlex

from parbake.core.nodefiles import packed, short

_USER_DATA = """\
#cloud-boothook
#!/bin/sh
# Mounts the volume of baked images over the container runtime's store. Written by parbake; goes first in user data.
mkdir -p /etc/parbake
base64 -d <<'END' | gzip -d >/etc/parbake/mount.sh
{program}
END
base64 -d <<'END' | gzip -d >/etc/systemd/system/parbake-mount.service
{unit}
END
for unit in {units}; do
  mkdir -p /etc/systemd/system/$unit.service.wants
  ln -sfn ../parbake-mount.service /etc/systemd/system/$unit.service.wants/parbake-mount.service
done
sh /etc/parbake/mount.sh
exit 0
"""


_OWN_UNITS = "k3s k3s-agent rke2-server rke2-agent"
"""What runs the containerd of a store that is not containerd's own."""


def user_data(sandbox: str, root: str = "", *, uuid: str = "") -> str:
    """Return user data that mounts a volume, to be the first part of a node's. Pure.

    ``sandbox`` is the reference of the pause image that the volume carries; empty: none. ``root`` is the path of the
    runtime's store on the node; empty: as its containerd is configured. ``uuid`` is that of the volume's file system:
    no other disk is mounted then, whatever its label; empty: the label does.
    """
    units = f"containerd {_OWN_UNITS}" if root else "containerd"
    program = f"SANDBOX={shlex.quote(sandbox)}\n"
    if uuid:
        program += f"UUID={shlex.quote(uuid)}\n"
    if root:
        program += f"ROOT={shlex.quote(root)}\nUNITS={shlex.quote(units)}\n"
    program += short("mount.sh")
    unit = short("parbake-mount.service")
    return _USER_DATA.format(program=packed(program.encode()), unit=packed(unit.encode()), units=units)
