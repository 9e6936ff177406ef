"""An image that says how it was started, for every way of starting one."""

from __future__ import annotations

from parbake.core.model import ExecProbe, ExitProbe, Startup, StartupFile

PASSWD = b"root:x:0:0::/:/bin/sh\napp:x:4242:4343::/:/bin/sh\n"
OUTSIDE = "/../../../../../../tmp/parbake-outside"
"""What ``/etc/app`` links to in the image: inside of it, whatever the path says."""
_SCRIPT = """\
b=/bin/busybox
$b echo "$($b id -u):$($b id -g) in $($b pwd)"
$b echo "file: $($b cat /etc/app/app.conf), $($b stat -c %a:%u /etc/app/app.conf)"
$b echo changed >/etc/app/app.conf || $b echo fixed
$b echo x >/scratch/x && $b echo "wrote, $($b ls -A /scratch | $b wc -l)"
$b echo x >/x || $b echo read-only
"""
FILES = {"/etc/app/app.conf": StartupFile(content="level: 'info'\n", mode="0604")}
HOW = Startup(
    command=("/bin/busybox", "sh", "-c"),
    args=(_SCRIPT,),
    user="app",
    workdir="/srv/work",
    read_only=True,
    writable=("/scratch",),
    files=FILES,
    up=ExitProbe(),
)
SAYS = ("4242:4343 in /srv/work", "file: level: 'info', 604:0", "fixed", "wrote, 1", "read-only")
BY_NUMBER = HOW.model_copy(update={"user": "10001:10002"})
SAYS_BY_NUMBER = ("10001:10002 in /srv/work", *SAYS[1:])
# Up when the file that it writes is there, which only a program in the container can see.
ASKED = Startup(
    command=("/bin/busybox", "sh", "-c"),
    args=("/bin/busybox sleep 0.4; echo >/there; exec /bin/busybox sleep 1000",),
    up=ExecProbe(command=("/bin/busybox", "test", "-e", "/there")),
    timeout=20,
    watch=0.2,
)
NEVER = ASKED.model_copy(update={"up": ExecProbe(command=("/bin/gone",)), "timeout": 1.0})


def lines(output: str) -> tuple[str, ...]:
    """Return what the image says, without the words of its shell on what it may not do."""
    return tuple(line for line in output.splitlines() if "can't create" not in line)
