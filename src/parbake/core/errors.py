"""One tree of errors.

Every error says what failed, on what, and what to do next; the door (``parbake.cli.app``) turns it into an exit code
once. A library caller catches ``ParbakeError`` or any branch of it::

    ParbakeError                    1   the world failed
    ├── InputError                  2   the user's input is wrong
    │   ├── BakefileError               the Bakefile, with every problem and its line
    │   ├── BadReference                an image reference that cannot be parsed
    │   ├── NoSuchImage                 the registry has no such tag, digest or platform
    │   ├── BadBase                     the base is not a disk image, has no root file system or no runtime
    │   └── TargetMissing               a rollout's target is not there yet: the first rollout makes it
    ├── EnvironmentProblem          1   this machine cannot do it: a tool is missing, not root
    ├── CommandFailed               1   a program ended with an error
    ├── DeadlineExceeded            1   something did not happen in time
    ├── DiskFull                    1   no space left, on the host or in the artefact
    │   └── ArtefactFull                in the artefact: its file system has no space or no inodes left
    ├── RegistryError               1   the registry failed
    │   ├── Unreachable                 no connection, or TLS against a plain port
    │   ├── Denied                      401 or 403
    │   └── BadContent                  bytes do not match the digest or the size that names them
    │       └── CacheDamaged            they came from the cache of layers, which has dropped them: try again
    ├── LayerError                  1   a layer is corrupt, truncated or malicious
    │   ├── LayerEscape                 an entry would be written outside its root
    │   └── LayerBomb                   inflates beyond what its compressed size can honestly hold
    │       └── LayerTooLarge           inflates beyond the disk that was chosen: perhaps only its size was not known
    ├── ContainerdError             1   containerd answered with an error
    ├── MachineError                1   a virtual machine did not start, or stopped answering
    ├── AwsError                    1   AWS answered with an error, or could not be asked
    │   ├── AwsNoAccess                 no credentials, expired ones, or an action that they do not allow
    │   ├── AwsLimit                    a quota, no capacity, or throttled for too long
    │   └── AwsNotFound                 no such image, snapshot, subnet, parameter, …
    ├── Moved                       1   what was planned is not what the names mean now
    ├── BakeFailed                  1   the guest that bakes gave up; the message ends with its own log
    ├── RolloutError                1   a target refused what was handed to it, or did not follow
    │   ├── TargetMoved                 somebody else changed it meanwhile, or owns what would be changed
    │   ├── Stalled                     nodes did not come to run the artefact in time; names them and why
    │   └── CanarySilent                no pod has shown whether nodes use the bake
    ├── EngineUnreachable           1   the engine of fleets does not answer
    ├── FleetIncomplete             3   some cells of a fleet failed, the others are done
    ├── VerificationFailed          3   the artefact does not do what its record promises
    │   └── CanaryFailed                pods on a target's new nodes did not: the target has gone back
    └── Interrupted                 130 Ctrl-C or SIGTERM
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import ClassVar


class ParbakeError(Exception):
    """What failed (``message``), on what (named in it), and the next step (``hint``; a usual one if none is given)."""

    exit_code: ClassVar[int] = 1
    usual_hint: ClassVar[str] = "--debug shows where it happened"
    json_name: ClassVar[str] = "ParbakeError"
    """The name in ``--json``: the class's, or its former one, since these names are a contract."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "json_name" not in vars(cls):
            cls.json_name = cls.__name__

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.usual_hint

    def to_json(self) -> dict[str, object]:
        """Return the error as the JSON object that ``--json`` prints."""
        return {
            "error": self.json_name,
            "message": self.message,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class InputError(ParbakeError):
    """The user's input (Bakefile, arguments, references) is wrong."""

    exit_code = 2
    usual_hint = "correct it, and run the same command again"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file: ``where`` is a dotted path, ``line`` counts from 1 (0: unknown)."""

    where: str
    message: str
    line: int = 0
    suggestion: str = ""

    def __str__(self) -> str:
        line = f"line {self.line}: " if self.line else ""
        suggestion = f" ({self.suggestion})" if self.suggestion else ""
        return f"{line}{self.where}: {self.message}{suggestion}"


class BakefileError(InputError):
    """The Bakefile has problems; all of them are listed, in the order of their lines."""

    def __init__(self, source: str, problems: tuple[Problem, ...], *, hint: str = "") -> None:
        lines = "\n".join(f"  {problem}" for problem in problems)
        noun = "problem" if len(problems) == 1 else "problems"
        super().__init__(f"{source}: {len(problems)} {noun}\n{lines}", hint=hint)
        self.source = source
        self.problems = problems

    def to_json(self) -> dict[str, object]:
        """Return the error with its problems as a list."""
        problems = [
            {"line": p.line, "where": p.where, "message": p.message, "suggestion": p.suggestion} for p in self.problems
        ]
        return {**super().to_json(), "problems": problems}


class BadReference(InputError):
    """An image reference cannot be parsed."""

    usual_hint = "write [host[:port]/]repository[:tag][@digest]"


class NoSuchImage(InputError):
    """The registry has no such repository, tag, digest, or no manifest for the platform."""


class BadBase(InputError):
    """The base is not a disk image, has no root file system, or no container runtime."""

    usual_hint = "use another `base`: a raw or qcow2 disk image of a machine with containerd"


class TargetMissing(InputError):
    """A rollout's target is not there yet; the first rollout makes it."""

    json_name = "NotMade"

    usual_hint = "`parbake rollout` makes it"


class EnvironmentProblem(ParbakeError):
    """This machine cannot do it: a program is missing, a privilege is missing."""

    usual_hint = "`parbake doctor` says what this machine lacks, and how to get it"


class CommandFailed(ParbakeError):
    """A program that parbake ran ended with an error; ``output`` holds the end of what it said."""

    usual_hint = "run it by hand to see more; `parbake doctor` says what this machine lacks"

    def __init__(self, message: str, *, code: int, output: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.output = output


class DeadlineExceeded(ParbakeError):
    """Something did not happen within its time limit."""

    usual_hint = "try again when the machine has less to do"


class DiskFull(ParbakeError):
    """No space left, on the host or inside the artefact."""

    usual_hint = "free some space, or give the artefact a larger `size`"


class ArtefactFull(DiskFull):
    """The artefact's own file system has no space or no inodes left: a larger ``size`` helps."""


class RegistryError(ParbakeError):
    """The registry failed, after the retries that were worth it."""

    usual_hint = "try again; if it keeps failing, contact the registry's operators"


class Unreachable(RegistryError):
    """No connection to the registry, or TLS spoken to a port that does not."""


class Denied(RegistryError):
    """The registry answered 401 or 403."""


class BadContent(RegistryError):
    """Bytes that were delivered do not match the digest or the size that names them."""

    usual_hint = "push the image again; if that does not help, something on the way changes content"


class CacheDamaged(BadContent):
    """A cached layer was damaged; it is removed, so that the next try fetches it."""


class LayerError(ParbakeError):
    """The layer is corrupt, truncated, or malicious."""

    usual_hint = "build the image again, or do not use it: no container runtime could unpack it"


class LayerEscape(LayerError):
    """An entry of a layer would be written outside its root."""


class LayerBomb(LayerError):
    """A layer inflates to more, or into more files, than an honest one of its compressed size."""


class LayerTooLarge(LayerBomb):
    """Layers inflate to more than the disk that the plan chose for them: a larger one may help."""


class ContainerdError(ParbakeError):
    """The container runtime answered with an error."""

    json_name = "RuntimeFault"

    usual_hint = "try again; --keep-workspace keeps the log of containerd"


class MachineError(ParbakeError):
    """A virtual machine did not start or stopped answering; the message ends with its console's last lines."""

    json_name = "MachineFault"

    usual_hint = "try again; --keep-workspace keeps the log of the console"


class AwsError(ParbakeError):
    """AWS answered with an error, or could not be asked. ``code`` is AWS's own word for it, where there is one."""

    json_name = "AwsFault"

    usual_hint = "try again; if it keeps failing, see the AWS Health Dashboard or ask the account's administrators"

    def __init__(self, message: str, *, code: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class AwsNoAccess(AwsError):
    """No credentials, expired ones, or ones that do not allow the action."""

    usual_hint = "`parbake iam` prints the policies that this Bakefile needs"


class AwsLimit(AwsError):
    """A quota is used up, there is no capacity, or AWS throttled for longer than is worth waiting."""


class AwsNotFound(AwsError):
    """AWS knows no such thing in this account and region."""

    usual_hint = "check its id and the region (`aws.region` in the Bakefile, or AWS_REGION)"


class Moved(ParbakeError):
    """Names mean something else than when the bake was planned: its content key is another one."""

    usual_hint = "plan again: `parbake plan` prints the key of what the names mean now"


class ClaimLost(ParbakeError):
    """Another machine has taken over the bake: this one was not heard of for too long."""

    usual_hint = "run the same command again: it waits for the other machine, and takes what that has made"


class BakeFailed(ParbakeError):
    """The guest that bakes gave up, or its machine ended without a verdict; the message ends with the guest's log."""

    usual_hint = "the guest's log above says why; correct it, and run the same command again"


class RolloutError(ParbakeError):
    """A target of a rollout refused what was handed to it, or did not follow."""

    usual_hint = "`parbake status` shows what each target runs; `parbake rollback` returns to the previous artefact"


class TargetMoved(RolloutError):
    """Somebody else changed the target meanwhile, or owns what would be changed."""

    usual_hint = "run the same command again: it looks at what is there now"


class Stalled(RolloutError):
    """Nodes did not come to run the artefact in time; the message names them, and what they wait for."""

    usual_hint = "remove what they wait for and run the same command again to keep following; or run `parbake rollback`"


class CanarySilent(RolloutError):
    """No pod has shown whether a target's new nodes use the bake."""

    usual_hint = "let a pod start there and run the same command again: it looks again; or run `parbake rollback`"


class EngineUnreachable(ParbakeError):
    """The engine of fleets does not answer."""

    usual_hint = "is `parbake fleet up` running? For another server check TEMPORAL_ADDRESS and its certificates"


class WrongStore(ParbakeError):
    """The address of a fleet's store means another store on this machine than where the run was begun."""

    exit_code = 2


class FleetIncomplete(ParbakeError):
    """Some cells of a fleet failed; the others are done."""

    exit_code = 3


class VerificationFailed(ParbakeError):
    """The artefact does not do what its record promises."""

    exit_code = 3


class CanaryFailed(VerificationFailed):
    """Pods on a target's new nodes did not use the bake as its `canary` asks, and the target has gone back."""

    usual_hint = "correct what keeps the pods from it (`parbake observe`), and roll out again with --force"


class Interrupted(ParbakeError):
    """The user (Ctrl-C) or the system (SIGTERM) stopped the run."""

    exit_code = 130
    usual_hint = "run the same command again: it resumes where it can"


def from_os_error(error: OSError) -> ParbakeError:
    """Translate what the operating system said, for places where no room had a better word."""
    what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return DiskFull(what, hint="free some space, or move `output` or PARBAKE_CACHE to a larger disk")
        case errno.EROFS:
            return EnvironmentProblem(what, hint="set `output` or PARBAKE_CACHE to a writable folder")
        case errno.EACCES | errno.EPERM:
            return EnvironmentProblem(what, hint="run parbake with sudo, or give this user access")
        case errno.ENOENT | errno.ENOTDIR | errno.EISDIR | errno.EEXIST:
            return InputError(what, hint="check the path")
        case _:
            return ParbakeError(what, hint="check the kernel log (dmesg); --debug shows where it happened")
