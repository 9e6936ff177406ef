"""Keys in files, and DSSE envelopes."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path

import pytest

from parbake import records
from parbake.core.errors import InputError
from parbake.core.run import run
from parbake.core.signing import FileSigner, NotSigned, envelope, opened, pae, public_key
from standins.keys import ED25519, P256, key_pair
from standins.plans import record


def test_the_specifications_own_example() -> None:
    """From protocol.md of secure-systems-lab/dsse."""
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("x", "é".encode()) == b"DSSEv1 1 x 2 \xc3\xa9"


@pytest.mark.parametrize("kind", [ED25519, P256], ids=["ed25519", "p256"])
def test_what_is_signed_opens(tmp_path: Path, kind: tuple[str, ...]) -> None:
    signer, other = key_pair(tmp_path, kind=kind), key_pair(tmp_path, "other")
    text = envelope(b'{"a": 1}', signer)
    assert text.count(b"\n") == 1
    payload, key = opened(text, [other.public, public_key(tmp_path / "key.pub")])
    assert (payload, key.fingerprint) == (b'{"a": 1}', signer.public.fingerprint)
    with pytest.raises(NotSigned, match="none of the keys"):
        opened(text, [other.public])
    document = json.loads(text)
    for name in ("payload", "payloadType"):
        with pytest.raises(NotSigned):
            opened({**document, name: base64.b64encode(b"other").decode()}, [signer.public])


def test_envelopes_as_others_write_them(tmp_path: Path) -> None:
    """URL-safe base64, several signatures, key ids, keys that are not known."""
    signer, other = key_pair(tmp_path), key_pair(tmp_path, "other")
    payload = bytes(range(256))
    message = pae("application/vnd.in-toto+json", payload)
    signatures = [
        {"keyid": "x", "sig": base64.b64encode(b"no signature").decode(), "more": 1},
        {"sig": base64.urlsafe_b64encode(other.sign(message)).decode()},
    ]
    document = {
        "payload": base64.urlsafe_b64encode(payload).decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": signatures,
    }
    assert opened(json.dumps(document).encode(), [signer.public, other.public])[1] is other.public
    with pytest.raises(NotSigned, match="is not signed"):
        opened({**document, "signatures": []}, [signer.public])


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b"null", b"[" * 100_000, b'{"payload": 1, "payloadType": "", "signatures": {}}',
             b'{"payload": "!", "payloadType": "", "signatures": []}',
             b'{"payload": "", "payloadType": "application/vnd.in-toto+json", "signatures": [1]}'],
)  # fmt: skip
def test_what_is_no_envelope(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(NotSigned, match="not a DSSE envelope"):
        opened(text, [key_pair(tmp_path).public])


class TestKeyFiles:
    @pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
    def test_a_key_that_others_cannot_read_signs(self, tmp_path: Path, mode: int) -> None:
        key_pair(tmp_path)
        (tmp_path / "key.pem").chmod(mode)
        signer = FileSigner(tmp_path / "key.pem")
        assert signer.public.verifies(signer.sign(b"x"), b"x")

    @pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o602, 0o666])
    def test_a_key_that_others_can_read_is_refused(self, tmp_path: Path, mode: int) -> None:
        key_pair(tmp_path)
        (tmp_path / "key.pem").chmod(mode)
        with pytest.raises(InputError, match=f"its mode {mode:04o} lets others read it") as error:
            FileSigner(tmp_path / "key.pem")
        assert "chmod 600" in error.value.hint

    @pytest.mark.parametrize(
        ("command", "says"),
        [
            ("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048", "of another kind"),
            ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384", "on the curve secp384r1"),
            ("genpkey -algorithm ed25519 -aes256 -pass pass:secret", "is encrypted"),
            ("genpkey -algorithm x25519", "of another kind"),
        ],
        ids=["rsa", "p384", "encrypted", "x25519"],
    )
    def test_keys_of_other_kinds(self, tmp_path: Path, command: str, says: str) -> None:
        path = tmp_path / "key.pem"
        run(["openssl", *command.split(), "-out", str(path)])
        path.chmod(0o600)
        with pytest.raises(InputError, match=says) as error:
            FileSigner(path)
        assert "openssl" in error.value.hint
        body = path.read_text().splitlines()[1]
        assert body not in str(error.value)
        assert body not in error.value.hint

    def test_a_key_as_openssl_ecparam_writes_it(self, tmp_path: Path) -> None:
        path = tmp_path / "key.pem"
        run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-out", str(path)])
        path.chmod(0o600)
        assert FileSigner(path).public.fingerprint.startswith("sha256:")

    def test_files_that_are_no_key(self, tmp_path: Path) -> None:
        key_pair(tmp_path)
        (tmp_path / "text").write_text("no key")
        (tmp_path / "large").write_bytes(b"x" * (70 << 10))
        os.mkfifo(tmp_path / "pipe")
        for name, says in (
            ("text", "no public key"), ("large", "not a key"), ("pipe", "not a regular file"),
            ("nowhere", "cannot read"),
            ("key.pem", "holds a private key"), (".", "cannot read|not a regular file"),
        ):  # fmt: skip
            with pytest.raises(InputError, match=says):
                public_key(tmp_path / name)
        for name in ("text", "key.pub"):
            (tmp_path / name).chmod(0o600)
            with pytest.raises(InputError, match="holds no private key"):
                FileSigner(tmp_path / name)

    def test_the_private_key_is_in_nothing_that_is_written(self, tmp_path: Path) -> None:
        signer = key_pair(tmp_path)
        secret = (tmp_path / "key.pem").read_text().splitlines()[1]
        raw = base64.b64decode(secret)[-32:]
        (tmp_path / "out").mkdir()
        records.write(tmp_path / "out", record(), signer)
        for path in (tmp_path / "out").rglob("*"):
            if path.is_file():
                text = path.read_bytes()
                assert not any(each in text for each in (secret.encode(), raw, raw.hex().encode()))
        assert secret not in repr(signer) + repr(vars(signer))


def test_a_run_without_signatures_loads_no_cryptography() -> None:
    modules = "parbake.workflows.bake, parbake.workflows.rollout, parbake.images.registry"
    code = f"import sys, {modules}; print('cryptography' in sys.modules)"
    assert run([sys.executable, "-c", code]).text == "False"
