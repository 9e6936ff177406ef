"""What containerd's answers mean: gRPC status codes to parbake's errors."""

from __future__ import annotations

from parbake.core.errors import BadContent, ContainerdError, DeadlineExceeded, DiskFull, ParbakeError
from parbake.core.printable import word


class NotFound(ContainerdError):
    """Containerd has no such thing."""


class AlreadyExists(ContainerdError):
    """Containerd has such a thing already."""


class Unavailable(ContainerdError):
    """Containerd cannot answer now: it ended, the connection broke, or what is asked for is locked."""


# Go's texts of ENOSPC and EDQUOT: containerd passes them on with no code of their own.
_FULL = ("no space left on device", "disk quota exceeded")
# What a commit says of other bytes than those announced (plugins/content/local/writer.go, Commit).
_WRONG = ("unexpected commit digest", "unexpected commit size", "failed size validation")
_LOG = "look at containerd's log"

# gRPC's codes that have an error of their own, and the next step for each.
_KINDS: dict[str, tuple[type[ParbakeError], str]] = {
    "NOT_FOUND": (NotFound, ""),
    "ALREADY_EXISTS": (AlreadyExists, ""),
    "RESOURCE_EXHAUSTED": (DiskFull, "make the artefact larger (`size`), or free space on the host"),
    "DEADLINE_EXCEEDED": (DeadlineExceeded, "the machine may be overloaded: look at containerd's log"),
    "UNAVAILABLE": (Unavailable, "containerd ended or the connection to it broke: look at its log"),
    "UNIMPLEMENTED": (ContainerdError, "this containerd was started without that service, or is too old"),
}


def fault(code: str, details: str, what: str) -> ParbakeError:
    """Return the error for a gRPC status (its code's name, its text); ``what`` names the method and its subject.

    NotFound, AlreadyExists and Unavailable are RuntimeFaults, and so is all that has no better name: DiskFull (also
    when only the text says so), DeadlineExceeded, BadContent (a commit whose digest or size is not the expected one).
    """
    text = f"containerd: {what}: {word(details or code)}"
    lowered = details.lower()
    if any(full in lowered for full in _FULL):
        code = "RESOURCE_EXHAUSTED"
    elif code == "RESOURCE_EXHAUSTED" and "message larger than max" in lowered:
        code = "INTERNAL"  # gRPC's own limit, not the disk's
    elif code == "FAILED_PRECONDITION" and any(wrong in lowered for wrong in _WRONG):
        return BadContent(text, hint="the bytes are not those that the digest names: fetch them again")
    kind, hint = _KINDS.get(code, (ContainerdError, _LOG))
    return kind(text, hint=hint)
