"""A private registry of ECR as a machine meets it: under its own name, on port 443, and by a token of its role.

    with private_ecr(folder) as registry: ...                  # programs that are started inside find and trust it
    with private_ecr(folder, trusted=False) as registry: ...   # they have to be told whom to trust: registry.ca
    push(registry.url, "shop/app", built, "1", user=USER, ca=registry.ca)

Needs root. ``/etc`` is one of this thread's own inside: nothing of the machine's is written to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parbake.core.run import run
from parbake.machine import disk
from standins.loopback import own_address
from standins.registry import DockerRegistry, certificates

HOST = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
TOKEN = "the-token-of-twelve-hours"
USER = ("AWS", TOKEN)
AWS = f"""\
case "$*" in "ecr get-login-password --region eu-west-1"*) echo {TOKEN} ;; *) exit 255 ;; esac
"""
"""What a node's ``aws`` does, whose role may pull."""

_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


@contextmanager
def private_ecr(folder: Path, *, trusted: bool = True) -> Iterator[DockerRegistry]:
    """Serve it; ``trusted``: its authority is one of the machine's."""
    with own_address() as address:
        tls = certificates(folder / "tls", names=f"IP:{address},DNS:{HOST}")
        registry = DockerRegistry(folder, tls=tls, users=dict([USER]), address=address)
        registry.host = f"{address}:443"
        with registry, disk.private_mounts():
            _own_etc(folder / "etc")
            with Path("/etc/hosts").open("a") as file:
                file.write(f"\n{address} {HOST}\n")
            if trusted:
                with _AUTHORITIES.open("ab") as file:
                    file.write(tls.ca.read_bytes())
            yield registry


def _own_etc(at: Path) -> None:
    at.mkdir()
    run(["mount", "-t", "tmpfs", "tmpfs", str(at)])
    for name in ("upper", "work"):
        (at / name).mkdir()
    options = f"lowerdir=/etc,upperdir={at}/upper,workdir={at}/work"
    run(["mount", "-t", "overlay", "overlay", "-o", options, "/etc"])
