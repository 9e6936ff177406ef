"""All that goes through the engine is sealed: it reads no errors and no progress, and workers obey nobody else.

AES-256-GCM with the fleet's key (NIST SP 800-38D; a random nonce of 96 bits). A payload that is not sealed with it is
refused: a development server has no log-in, so that any user of the machine could start workflows that run as root.

What was sealed for one place opens in no other: the place is the seal's associated data. The library tells a codec the
workflow or the activity that a payload belongs to, and no more; the rest is said inside what is sealed:

=====================  ======================================  ==================================================
what                   is bound to                             a replay of it
=====================  ======================================  ==================================================
start of a run or      the workflow's id; the time of asking,  fails: the store remembers the last one (``begun``)
rollout, also as a
child or a later part
start of a bake        its id: the content key and the store   makes sure of that key again
start of a schedule    its id, without the time of the tick    reads the fleet's file as it is then
signal, update         the workflow's id; inside: what it is,  is not heard: each is heard once (``messages``)
                       the run, the generation, a word of its
                       own
query's answer         the workflow's id; inside: the word     is refused by whoever has asked
                       that was asked with
an activity's          the workflow's id; the activity's type  is refused in any other run; within its run it lets
argument, heartbeat    and id, which names the run             a step be tried once more
an activity's result   the same; inside: that it is an answer  is refused, as is an empty one (``calls``)
or failure
a workflow's result    the workflow's id; inside: its run      is refused by whoever has waited for its end
a workflow's failure   the workflow's id                       can make a bake or a run fail
memo, summary          the workflow's id                       is shown; nothing is decided by it alone
=====================  ======================================  ==================================================
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.converter import (
    ActivitySerializationContext,
    DataConverter,
    DefaultFailureConverterWithEncodedAttributes,
    PayloadCodec,
    SerializationContext,
    WithSerializationContext,
    WorkflowSerializationContext,
)
from temporalio.exceptions import ApplicationError

from parbake.core import atomic
from parbake.core.errors import EnvironmentProblem, InputError

_ENCODING = b"binary/parbake-sealed"
_CONTEXT = "parbake fleet 2"
_NONCE = 12
_KEY = 32
_LINE = re.compile(r"[0-9a-f]{64}")
_TICK = re.compile(r"(tick/.*)-\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
"""What the engine makes of the id that a schedule names."""


def make_key(path: Path) -> None:
    """Write a new key, for its owner alone, unless there is one."""
    if not path.exists():
        atomic.replace(path, f"{os.urandom(_KEY).hex()}\n")


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Return the keys in a file, one a line: the first seals, all of them open. Raises InputError.

    A new key is added to the file's end on every machine, then moved to its beginning; then the old one may go.
    """
    try:
        lines = path.read_text().split()
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(
            f"there is no key {path}", hint="`parbake fleet up` makes one; or name it: PARBAKE_FLEET_KEY"
        ) from None
    except OSError as error:
        raise EnvironmentProblem(f"cannot read the fleet's key {path}: {error.strerror}") from error
    if mode & 0o037:  # the group may read it, as it may a key that signs: Kubernetes lends secrets so
        raise InputError(f"others can read the fleet's key {path}", hint=f"chmod 600 {path}")
    if not lines or not all(map(_LINE.fullmatch, lines)):
        raise InputError(f"{path} is not a key of a fleet", hint="it has 64 hexadecimal digits on each line")
    return tuple(map(bytes.fromhex, lines))


@dataclass(frozen=True)
class Seal(PayloadCodec, WithSerializationContext):
    """Seals with the first key, opens with any, for one ``place``: what was sealed for another does not open."""

    keys: tuple[bytes, ...]
    place: tuple[str, ...] = ()

    def with_context(self, context: SerializationContext) -> Seal:
        """Return the one for a workflow or an activity."""
        match context:
            case WorkflowSerializationContext(namespace=namespace, workflow_id=name):
                tick = _TICK.fullmatch(name)
                return replace(self, place=("workflow", namespace, tick[1] if tick else name))
            case ActivitySerializationContext(
                namespace=namespace, workflow_id=name, activity_type=kind, activity_id=of
            ):
                return replace(self, place=("activity", namespace, name or "", kind or "", of or ""))
        return replace(self, place=(type(context).__name__,))  # pragma: no cover  # nothing of ours is of that kind

    @property
    def _bound(self) -> bytes:
        return json.dumps([_CONTEXT, *self.place]).encode()

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return the payloads sealed."""
        return [self._sealed(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return what was sealed; raises ApplicationError for whatever was not, or by another key."""
        return [self._opened(payload) for payload in payloads]

    def _sealed(self, payload: Payload) -> Payload:
        nonce = os.urandom(_NONCE)
        data = AESGCM(self.keys[0]).encrypt(nonce, payload.SerializeToString(), self._bound)
        return Payload(metadata={"encoding": _ENCODING, "place": self._bound}, data=nonce + data)

    def _opened(self, payload: Payload) -> Payload:
        if (opened := _decrypted(payload, self.keys, self._bound)) is None:
            said = "a payload is not sealed with the key of this fleet, for its place"
            raise ApplicationError(said, type="NotSealed")
        return opened


def opened_for_view(payload: Payload, keys: Sequence[bytes]) -> Payload | None:
    """Return what was sealed for the place that a payload names itself, for people to look at; None for another one.

    Nothing may be decided by it: whoever shows it may have taken it from that place to another one.
    """
    return _decrypted(payload, keys, payload.metadata.get("place", b""))


def _decrypted(payload: Payload, keys: Sequence[bytes], bound: bytes) -> Payload | None:
    for key in keys:
        try:
            return Payload.FromString(AESGCM(key).decrypt(payload.data[:_NONCE], payload.data[_NONCE:], bound))
        except (InvalidTag, ValueError):
            continue
    return None


def of_workflow(client: Client, name: str) -> DataConverter:
    """Return what reads payloads of a workflow that come by themselves."""
    return client.data_converter.with_context(WorkflowSerializationContext(client.namespace, name))


def of_activity(client: Client, workflow: str, kind: str, identity: str) -> DataConverter:
    """Return what reads payloads of an activity that come by themselves."""
    return client.data_converter.with_context(
        ActivitySerializationContext(client.namespace, identity, kind, None, workflow, None, is_local=False)
    )


def converter(keys: tuple[bytes, ...]) -> DataConverter:
    """Return what clients and workers of a fleet read and write payloads with, those of failures too."""
    return replace(
        DataConverter.default,
        payload_codec=Seal(keys),
        failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
    )
