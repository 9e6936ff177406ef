"""Signatures, with the real cosign as peer: it accepts ours, and we accept its, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import urllib3

from parbake import records
from parbake.core.errors import BakefileError, InputError, VerificationFailed
from parbake.core.events import Events
from parbake.core.model import Platform
from parbake.core.reference import Reference
from parbake.core.run import run
from parbake.core.signing import FileSigner, NotSigned, opened, public_key
from parbake.images.registry import Registry
from parbake.images.registry.documents import OCI_CONFIG, OCI_MANIFEST
from parbake.records import genuine
from parbake.workflows import bake, export, plan
from parbake.workflows.plan import BakeOptions
from standins.images import Blob, Built, image, index, json_blob, layer, push
from standins.keys import ED25519, P256, key_pair
from standins.plans import record
from standins.registry import DockerRegistry

OFFLINE = ("--insecure-ignore-tlog", "--private-infrastructure")
HOST = Platform.host()


def cosign(*words: str, code: int = 0, env: Mapping[str, str] = MappingProxyType({})) -> str:
    """Run cosign without a network and without a password; return what it says."""
    given = {"COSIGN_PASSWORD": "", "HOME": "/nonexistent", **env}
    done = run(["cosign", *words], env={**os.environ, **given}, check=False)
    said = f"{done.text}{done.stderr}"
    assert (done.code == 0) == (code == 0), said
    return said


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``cosign.key`` and ``cosign.pub`` as cosign makes them, and a second pair."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("cosign", "other"):
        cosign("generate-key-pair", "--output-key-prefix", str(folder / name))
    return folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


class TestRecords:
    """What parbake signs, cosign verifies, offline."""

    @pytest.mark.parametrize("kind", [ED25519, P256], ids=["ed25519", "p256"])
    def test_a_signed_record_is_accepted_by_cosign(self, tmp_path: Path, kind: tuple[str, ...]) -> None:
        signer = key_pair(tmp_path, kind=kind)
        disk = tmp_path / "disk"
        disk.write_bytes(b"a volume" * 1000)
        made = record(passed=True).model_copy(update={"sha256": digest_of(disk)})
        path = records.write(tmp_path, made, signer)
        bundle, detached = (str(tmp_path / f"{made.artefact}{each}") for each in (".intoto.jsonl", ".json.sig"))
        key = ("--key", str(tmp_path / "key.pub"))
        attested = ("verify-blob-attestation", *key, *OFFLINE, "--type", "slsaprovenance1", "--signature", bundle)
        assert "Verified OK" in cosign(*attested, str(disk))
        assert "Verified OK" in cosign("verify-blob", *key, *OFFLINE, "--signature", detached, str(path))
        disk.write_bytes(b"another volume")
        cosign(*attested, str(disk), code=1)
        path.write_text(path.read_text().replace("registry.example", "registry.evil"))
        cosign("verify-blob", *key, *OFFLINE, "--signature", detached, str(path), code=1)

    def test_cosigns_encrypted_key_is_refused_with_a_next_step(self, keys: Path) -> None:
        with pytest.raises(InputError, match="only cosign opens") as error:
            FileSigner(keys / "cosign.key")
        assert "openssl genpkey" in error.value.hint
        assert public_key(keys / "cosign.pub").fingerprint.startswith("sha256:")

    def test_what_cosign_attests_is_an_envelope_that_we_open(self, tmp_path: Path, keys: Path) -> None:
        blob, predicate, out = tmp_path / "blob", tmp_path / "predicate.json", tmp_path / "out"
        blob.write_bytes(b"x")
        predicate.write_text('{"a": 1}')
        words = ["--predicate", str(predicate), "--type", "custom", "--output-signature", str(out), str(blob)]
        cosign("attest-blob", "--yes", "--tlog-upload=false", "--key", str(keys / "cosign.key"), *words)
        payload, _ = opened(out.read_bytes(), [public_key(keys / "other.pub"), public_key(keys / "cosign.pub")])
        assert json.loads(payload)["subject"][0]["digest"]["sha256"] == digest_of(blob)
        with pytest.raises(NotSigned, match="none of the keys"):
            opened(out.read_bytes(), [public_key(keys / "other.pub")])


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TestImages:
    """``images[].signed_by``."""

    @pytest.fixture
    def name(self, shop: DockerRegistry, request: pytest.FixtureRequest) -> str:
        return f"{shop.host}/team/{request.node.originalname.replace('_', '-')[:60]}"

    def test_an_image_that_cosign_signed_is_taken(self, shop: DockerRegistry, keys: Path, name: str) -> None:
        built = pushed(shop, name, index(*both()))
        sign(name, built.digest, keys / "cosign.key")
        assert checked(name, keys / "cosign.pub").of == built.digest

    def test_one_that_nobody_signed_is_refused(self, shop: DockerRegistry, keys: Path, name: str) -> None:
        pushed(shop, name, both()[0])
        with pytest.raises(VerificationFailed, match=f"{name}:1 is not signed by .*it has no signature") as error:
            checked(name, keys / "cosign.pub")
        assert error.value.exit_code == 3

    def test_another_key_counts_for_nothing(self, shop: DockerRegistry, keys: Path, name: str) -> None:
        built = pushed(shop, name, both()[0])
        sign(name, built.digest, keys / "other.key")
        with pytest.raises(VerificationFailed, match="by another key"):
            checked(name, keys / "cosign.pub")
        sign(name, built.digest, keys / "cosign.key")  # cosign adds a layer to the same manifest
        assert checked(name, keys / "cosign.pub").kind == "signature"

    def test_the_platforms_manifest_may_be_signed_alone(self, shop: DockerRegistry, keys: Path, name: str) -> None:
        images = both()
        pushed(shop, name, index(*images))
        foreign, own = images[1], images[0]
        sign(name, foreign.digest, keys / "cosign.key")
        with pytest.raises(VerificationFailed, match="has no signature"):
            checked(name, keys / "cosign.pub")
        sign(name, own.digest, keys / "cosign.key")
        assert checked(name, keys / "cosign.pub").of == own.digest

    def test_a_signature_that_was_moved_to_another_image(self, shop: DockerRegistry, keys: Path, name: str) -> None:
        good, evil = pushed(shop, name, both()[0]), pushed(shop, name, both(b"evil")[0], tag="2")
        sign(name, good.digest, keys / "cosign.key")
        run(["skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false",
             f"docker://{name}:{good.digest.replace(':', '-')}.sig",
             f"docker://{name}:{evil.digest.replace(':', '-')}.sig"])  # fmt: skip
        with pytest.raises(VerificationFailed, match=f"a signature is for {good.digest}, not for {evil.digest}"):
            checked(name, keys / "cosign.pub", tag="2")

    def test_a_signature_as_a_referrer(self, shop: DockerRegistry, keys: Path, name: str) -> None:
        built = pushed(shop, name, both()[0])
        sign(name, built.digest, keys / "cosign.key", "--registry-referrers-mode=oci-1-1", COSIGN_EXPERIMENTAL="1")
        found = checked(name, keys / "cosign.pub")
        assert "sig" in found.kind
        with pytest.raises(VerificationFailed):
            checked(name, keys / "other.pub")

    def test_a_referrer_that_the_registrys_api_lists(self, shop: DockerRegistry, keys: Path, name: str) -> None:
        """docker-registry lacks the API of OCI 1.1: a front answers it, of what cosign wrote as the fallback."""
        built = pushed(shop, name, both()[0])
        sign(name, built.digest, keys / "cosign.key", "--registry-referrers-mode=oci-1-1", COSIGN_EXPERIMENTAL="1")
        with front(shop, built.digest) as (host, asked):
            found = checked(name.replace(shop.host, host), keys / "cosign.pub")
            assert (found.of, found.kind) == (built.digest, "application/vnd.dev.cosign.artifact.sig.v1+json")
            with pytest.raises(VerificationFailed, match="by another key"):
                checked(name.replace(shop.host, host), keys / "other.pub")
        assert any(f"/referrers/{built.digest}" in each for each in asked)
        assert not any(each.endswith(built.digest.replace(":", "-")) for each in asked), "no need of the fallback"

    def test_a_signature_in_the_new_bundle(self, shop: DockerRegistry, keys: Path, name: str, tmp_path: Path) -> None:
        """As cosign 3 signs: an in-toto statement in a bundle, attached as a referrer; cosign 2 attests so."""
        built = pushed(shop, name, both()[0])
        attest(name, built.digest, keys / "cosign.key", tmp_path, "https://spdx.dev/Document", "--new-bundle-format")
        with pytest.raises(VerificationFailed, match=r"has attested https://spdx\.dev/Document of it"):
            checked(name, keys / "cosign.pub")
        kind = "https://sigstore.dev/cosign/sign/v1"
        attest(name, built.digest, keys / "cosign.key", tmp_path, kind, "--new-bundle-format")
        assert "bundle" in checked(name, keys / "cosign.pub").kind
        with pytest.raises(VerificationFailed, match="a bundle is signed by none"):
            checked(name, keys / "other.pub")

    @pytest.mark.parametrize(
        ("payload", "says"),
        [
            ({"critical": {"type": "x", "image": {}}}, "something other than an image"),
            ({"critical": []}, "something other than an image"),
            ([], "not a JSON object"),
            ({"critical": {"type": "cosign container image signature", "image": {"docker-manifest-digest": "x"}}}, "x"),
        ],
    )
    def test_odd_payloads(self, shop: DockerRegistry, name: str, tmp_path: Path, payload: Any, says: str) -> None:
        signer = key_pair(tmp_path)
        built = pushed(shop, name, both()[0])
        attach(shop, name, built, json.dumps(payload).encode(), signer)
        with pytest.raises(VerificationFailed, match=says):
            checked(name, tmp_path / "key.pub")

    def test_a_plan_is_not_made_of_an_unsigned_image(
        self, shop: DockerRegistry, keys: Path, name: str, tmp_path: Path
    ) -> None:
        built = pushed(shop, name, both()[0])
        file = tmp_path / "parbake.yaml"
        entry = {"reference": f"{name}:1", "signed_by": str(keys / "cosign.pub")}
        file.write_text(json.dumps({"version": 1, "base": "none", "sandbox": "none", "images": [entry]}))
        with pytest.raises(VerificationFailed, match=name):
            plan.preview(file, Events())
        sign(name, built.digest, keys / "cosign.key")
        outlook = plan.preview(file, Events())
        assert outlook.plan
        assert outlook.plan.images[0].target.digest == built.digest
        packer = {
            "version": 1,
            "base": "ami-0123456789abcdef0",
            "builder": "packer",
            "sandbox": "none",
            "images": [entry],
        }
        file.write_text(json.dumps(packer))
        with pytest.raises(InputError, match=f"{name}:1 must be signed"):
            export.to_packer(file, tmp_path / "template", Events())
        file.write_text(json.dumps({"version": 1, "images": [{**entry, "signed_by": str(keys / "cosign.key")}]}))
        with pytest.raises(BakefileError, match=r"line 1: images.0..signed_by: .* holds a private key"):
            plan.preview(file, Events())

    def test_what_an_image_carries_goes_into_the_materials(
        self, shop: DockerRegistry, keys: Path, name: str, tmp_path: Path
    ) -> None:
        own = both()[0]
        notes = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": own.digest}
        built = pushed(shop, name, with_attestation(own, notes))
        sign(name, built.digest, keys / "cosign.key")
        attest(name, built.digest, keys / "cosign.key", tmp_path, "https://slsa.dev/provenance/v1")
        attest(name, own.digest, keys / "cosign.key", tmp_path, "https://spdx.dev/Document", "--new-bundle-format")
        (tmp_path / "sbom.json").write_text("{}")
        cosign(
            "attach", "sbom", "--allow-http-registry", "--sbom", str(tmp_path / "sbom.json"), f"{name}@{built.digest}"
        )
        with Registry() as registry:
            found = registry.resolve(Reference.parse(f"{name}:1"), HOST)
            carried = registry.find_attachments([found])()
        kinds = sorted((each.kind.split(".v0")[0], each.of) for each in carried[found.reference])
        assert kinds == sorted([
            ("signature", built.digest), ("attestation", built.digest), ("sbom", built.digest),
            ("attestation", own.digest), ("application/vnd.dev.sigstore.bundle", own.digest),
        ])  # fmt: skip
        made = record().model_copy(update={"attached": carried})
        materials = json.loads(records.statement(made))["predicate"]["buildDefinition"]["resolvedDependencies"]
        assert {each.digest for each in carried[found.reference]} <= {
            f"sha256:{each['digest']['sha256']}" for each in materials
        }


@pytest.mark.root
def test_a_signed_bake_of_a_signed_image(shop: DockerRegistry, keys: Path, tmp_path: Path) -> None:
    """One file says who must have signed what goes in, and who signs what comes out."""
    name = f"{shop.host}/team/whole"
    built = pushed(shop, name, both()[0])
    sign(name, built.digest, keys / "cosign.key")
    key_pair(tmp_path)
    said = {
        "version": 1,
        "name": "signed",
        "base": "none",
        "sandbox": "none",
        "images": [{"reference": f"{name}:1", "signed_by": str(keys / "cosign.pub")}],
        "sign": {"key": "key.pem"},
        "trust": ["key.pub"],
    }
    file = tmp_path / "parbake.yaml"
    file.write_text(json.dumps(said))
    options = BakeOptions(verify=False)
    first = bake.bake(file, Events(), options)
    record = genuine.need(first.artefact, [tmp_path / "key.pub"])
    assert (record, first.changed) == (first.record, True)
    [[carried]] = record.attached.values()
    assert (carried.kind, carried.of) == ("signature", built.digest)
    path = first.artefact.with_name(record.file_name)
    signed = path.read_bytes()
    assert carried.digest.removeprefix("sha256:") in signed.decode().partition('"runDetails"')[0], "a material"

    assert not bake.bake(file, Events(), options).changed
    path.write_bytes(signed.replace(b'"builder": "local"', b'"builder": "other"'))
    assert not bake.bake(file, Events(), options).changed
    assert path.read_bytes() == signed, "what was signed is written back"
    first.artefact.with_name(f"{record.artefact}.intoto.jsonl").unlink()
    again = bake.bake(file, Events(), options)
    assert again.changed, "what is not signed is baked again"
    assert genuine.need(again.artefact, [tmp_path / "key.pub"]) == again.record


def both(content: bytes = b"1") -> list[Built]:
    """Return an image for this machine, and one for another."""
    other = "linux/arm64" if HOST.architecture == "amd64" else "linux/amd64"
    return [image(layer({"a": content}), platform=each) for each in (str(HOST), other)]


def pushed(shop: DockerRegistry, name: str, built: Built, tag: str = "1") -> Built:
    push(shop.url, name.partition("/")[2], built, tag=tag)
    return built


def sign(name: str, digest: str, key: Path, *more: str, **env: str) -> None:
    words = ("--yes", "--tlog-upload=false", "--allow-http-registry", "--key", str(key), *more, f"{name}@{digest}")
    cosign("sign", *words, env=env)


def attest(name: str, digest: str, key: Path, folder: Path, kind: str, *more: str) -> None:
    predicate = folder / "predicate.json"
    predicate.write_text("{}")
    words = ("--yes", "--tlog-upload=false", "--allow-http-registry", "--key", str(key), "--type", kind)
    cosign("attest", *words, "--predicate", str(predicate), *more, f"{name}@{digest}")


def checked(name: str, key: Path, tag: str = "1") -> Any:
    with Registry() as registry:
        found = registry.resolve(Reference.parse(f"{name}:{tag}"), HOST)
        return registry.need_signature(found, public_key(key))


@contextmanager
def front(shop: DockerRegistry, digest: str) -> Iterator[tuple[str, list[str]]]:
    """Stand before a registry and answer its referrers; yield the host, and the paths that are asked for."""
    asked: list[str] = []
    fallback = f"manifests/{digest.replace(':', '-')}"

    class Front(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            path = self.path.replace(f"referrers/{digest}", fallback)
            accept = {"Accept": self.headers.get("Accept", "*/*")}
            answer = urllib3.request("GET", f"{shop.url}{path}", headers=accept)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
            self.send_header("Content-Length", str(len(answer.data)))
            self.end_headers()
            self.wfile.write(answer.data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def attach(shop: DockerRegistry, name: str, of: Built, payload: bytes, signer: FileSigner) -> None:
    """Push a signature of any payload, as cosign does it."""
    notes = {"dev.cosignproject.cosign/signature": base64.b64encode(signer.sign(payload)).decode()}
    blob = Blob("application/vnd.dev.cosign.simplesigning.v1+json", payload, annotations=notes)
    config = json_blob(OCI_CONFIG, {})
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.descriptor, "layers": [blob.descriptor]}
    built = Built(json_blob(OCI_MANIFEST, document), (config, blob))
    push(shop.url, name.partition("/")[2], built, tag=f"{of.digest.replace(':', '-')}.sig")


def with_attestation(of: Built, notes: dict[str, str]) -> Built:
    """Return an index of an image and an attestation manifest of it, as buildkit writes it."""
    statement = json_blob("application/vnd.in-toto+json", {"predicateType": "https://slsa.dev/provenance/v0.2"})
    config = json_blob(OCI_CONFIG, {"architecture": "unknown", "os": "unknown", "rootfs": {"type": "layers"}})
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.descriptor,
        "layers": [statement.descriptor],
    }
    words = {"os": "unknown", "architecture": "unknown"}
    root = json_blob(OCI_MANIFEST, document, platform=words, annotations=notes)
    return index(of, Built(root, (config, statement)))
