"""All that goes through the engine is sealed: it reads no errors and no progress, and workers obey nobody else.

AES-256-GCM with the fleet's key (NIST SP 800-38D; a random nonce of 96 bits). A payload that is not sealed with it is
refused: a development server has no log-in, so that any user of the machine could start workflows that run as root.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from temporalio.api.common.v1 import Payload
from temporalio.converter import DataConverter, DefaultFailureConverterWithEncodedAttributes, PayloadCodec
from temporalio.exceptions import ApplicationError

from parbake.core import atomic
from parbake.core.errors import EnvironmentProblem, InputError

_ENCODING = b"binary/parbake-sealed"
_CONTEXT = b"parbake fleet 1"
_NONCE = 12
_KEY = 32
_LINE = re.compile(r"[0-9a-f]{64}")


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
class Seal(PayloadCodec):
    """Seals with the first key, opens with any."""

    keys: tuple[bytes, ...]

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return the payloads sealed."""
        return [self._sealed(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return what was sealed; raises ApplicationError for whatever was not, or by another key."""
        return [self._opened(payload) for payload in payloads]

    def _sealed(self, payload: Payload) -> Payload:
        nonce = os.urandom(_NONCE)
        data = AESGCM(self.keys[0]).encrypt(nonce, payload.SerializeToString(), _CONTEXT)
        return Payload(metadata={"encoding": _ENCODING}, data=nonce + data)

    def _opened(self, payload: Payload) -> Payload:
        if payload.metadata.get("encoding") == _ENCODING:
            for key in self.keys:
                try:
                    opened = AESGCM(key).decrypt(payload.data[:_NONCE], payload.data[_NONCE:], _CONTEXT)
                except (InvalidTag, ValueError):
                    continue
                return Payload.FromString(opened)
        raise ApplicationError("a payload is not sealed with the key of this fleet", type="NotSealed")


def converter(keys: tuple[bytes, ...]) -> DataConverter:
    """Return what clients and workers of a fleet read and write payloads with, those of failures too."""
    return replace(
        DataConverter.default,
        payload_codec=Seal(keys),
        failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
    )
