"""Pairs of keys, in files as openssl writes them."""

from __future__ import annotations

from pathlib import Path

from parbake.core.run import run
from parbake.core.signing import FileSigner

ED25519 = ("-algorithm", "ed25519")
P256 = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")


def key_pair(folder: Path, name: str = "key", kind: tuple[str, ...] = ED25519) -> FileSigner:
    """Write ``NAME.pem``, mode 0600, and ``NAME.pub``; return what signs with it."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    run(["openssl", "genpkey", *kind, "-out", str(private)])
    run(["openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public)])
    private.chmod(0o600)
    return FileSigner(private)
