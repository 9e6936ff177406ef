"""What the engine's library raises, in words: no name of its own, and what to do next.

The library tells of a failed connection as its parts are written in Rust, and of everything else by classes that mean
something to programmers. Their own text goes along as the cause, which ``--debug`` shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate

from temporalio.client import Client
from temporalio.exceptions import ApplicationError, CancelledError, FailureError, TemporalError, TerminatedError
from temporalio.exceptions import TimeoutError as TimedOut
from temporalio.service import RPCError, RPCStatusCode

from parbake.core.errors import EngineUnreachable, InputError
from parbake.fleet.engine.tasks import Failure

_AUTHORITY = "TEMPORAL_TLS_SERVER_CA_CERT_PATH names its authority, TEMPORAL_TLS_SERVER_NAME what it calls itself"
_CERTIFICATE = "TEMPORAL_TLS_CLIENT_CERT_PATH and TEMPORAL_TLS_CLIENT_KEY_PATH name the certificate of this machine"
_TLS = "TEMPORAL_TLS says whether TLS is spoken, TEMPORAL_ADDRESS to whom"
_WAIT = f"wait until it is ready; {_TLS}"
_RIGHTS = "check TEMPORAL_API_KEY, or the certificate, and what they may do in the namespace"
_AGAIN = "run the same command again; `parbake fleet doctor` says what the engine lacks"
# What the library's text has in it, what that means, and the next step (empty: the usual one). The first that fits.
_CONNECTING = (
    (r"ConnectionRefused|Connection refused", "does not answer: nobody listens there", ""),
    (r"dns error|lookup address", "does not answer: its name is not known here", ""),
    (r"nreachable|No route", "does not answer: no network leads there", ""),
    (r"InvalidContentType|WrongVersion", "does not speak TLS", _TLS),
    (r"PrivateKey|NoCertificates|PemError", "cannot be asked: this machine's certificate cannot be read", _CERTIFICATE),
    (r"CertificateRequired|HandshakeFailure|BadCertificate|DecryptError", "wants another certificate", _CERTIFICATE),
    (r"InvalidCertificate|UnknownIssuer|NotValidForName", "has a certificate that is not trusted here", _AUTHORITY),
    (r"imed ?out|deadline|Timeout|Elapsed", "does not answer in time", ""),
    (r"ConnectionReset|Broken ?[Pp]ipe|UnexpectedEof", "does not answer: it ended the connection", _WAIT),
    (r"http2 error|FRAME_SIZE", "does not speak as an engine does", _TLS),
)
_STATUS = {
    RPCStatusCode.UNAVAILABLE: ("does not answer: it is not ready, or gone", ""),
    RPCStatusCode.DEADLINE_EXCEEDED: ("does not answer in time", ""),
    RPCStatusCode.CANCELLED: ("does not answer in time", ""),
    RPCStatusCode.UNAUTHENTICATED: ("does not know who asks", _RIGHTS),
    RPCStatusCode.PERMISSION_DENIED: ("does not let this machine do that", _RIGHTS),
    RPCStatusCode.RESOURCE_EXHAUSTED: ("is asked too much at once", _AGAIN),
    RPCStatusCode.UNIMPLEMENTED: ("does not know what was asked for", "use Temporal server 1.28 or later"),
}
_OF_PROGRAMS = re.compile(r"[\w:<>]*(::|\w[({]).*", re.DOTALL)
"""Where words end, and what only a program reads begins."""


def unreachable(address: str, error: Exception) -> EngineUnreachable:
    """Return the error for an engine that does not answer, or refuses."""
    if isinstance(error, RPCError):
        what, hint = _refused(error)
    elif isinstance(error, TemporalError):
        what, hint = f"has something that this fleet cannot use: {_words(error)}", _AGAIN
    else:
        what, hint = _connecting(str(error))
    return EngineUnreachable(f"the engine at {address} {what}", hint=hint)


def in_words[**Arguments, Answer](
    ask: Callable[Concatenate[Client, Arguments], Coroutine[Any, Any, Answer]],
) -> Callable[Concatenate[Client, Arguments], Coroutine[Any, Any, Answer]]:
    """Let what asks the engine raise EngineUnreachable, and nothing of the library."""

    @wraps(ask)
    async def asked(client: Client, /, *arguments: Arguments.args, **more: Arguments.kwargs) -> Answer:
        try:
            return await ask(client, *arguments, **more)
        except TemporalError as error:
            raise unreachable(client.service_client.config.target_host, error) from error

    return asked


def is_missing(error: RPCError) -> bool:
    """Whether the engine has no such workflow or schedule; a namespace that it lacks is another matter."""
    return error.status is RPCStatusCode.NOT_FOUND and not _of_namespace(error)


def wrong_settings(error: Exception) -> InputError:
    """Return the error for variables or a file of settings that the library cannot read."""
    hint = "correct TEMPORAL_ADDRESS, TEMPORAL_PROFILE, or the file that TEMPORAL_CONFIG_FILE names"
    return InputError(f"the settings of the engine cannot be read: {_words(error)}", hint=hint)


def describe(cell: str, error: BaseException | None) -> Failure:
    """Return what failed at the bottom: parbake's own error, the death of workers, or what somebody did to it."""
    cause = error
    while isinstance(cause, FailureError) and cause.cause is not None:
        cause = cause.cause
    match cause:
        case ApplicationError():
            hint = str(cause.details[0]) if cause.details else ""
            return Failure(cell, cause.type or "ParbakeError", cause.message, hint)
        case TimedOut():
            hint = "see the workers' logs; did they run out of memory?"
            return Failure(cell, "WorkerLost", "its workers died, or did not answer", hint)
        case CancelledError():
            return Failure(cell, "Interrupted", "it was cancelled", "`parbake fleet run` tries again")
        case TerminatedError():
            return Failure(cell, "Interrupted", "somebody ended it in the engine", "`parbake fleet run` tries again")
        case FailureError():
            return Failure(cell, EngineUnreachable.json_name, f"the engine failed: {_words(cause)}", _AGAIN)
    return Failure(cell, type(cause).__name__, str(cause))


def told(error: BaseException) -> str:
    """Return in a line why a try has failed."""
    found = describe("", error)
    said = f"{found.error}: {found.message}" if isinstance(error, ApplicationError) else found.message
    return (said.splitlines() or [""])[0]


def _refused(error: RPCError) -> tuple[str, str]:
    if error.status is RPCStatusCode.NOT_FOUND and _of_namespace(error):
        return f"lacks what was asked for: {_words(error)}", "TEMPORAL_NAMESPACE names the namespace"
    return _STATUS.get(error.status) or (f"refuses: {_words(error)}", _AGAIN)


def _of_namespace(error: RPCError) -> bool:
    return "namespace" in error.message.lower()


def _connecting(said: str) -> tuple[str, str]:
    found = (each for each in _CONNECTING if re.search(each[0], said))
    _, what, hint = next(found, ("", "does not answer", ""))
    return what, hint


def _words(error: BaseException) -> str:
    """Return the words of an error, without what only a program reads."""
    said = error.message if isinstance(error, RPCError | FailureError) else str(error)
    kept = _OF_PROGRAMS.sub("", (said.splitlines() or [""])[0]).strip(" :`")
    return kept or "it does not say why"
