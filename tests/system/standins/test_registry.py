"""The shared fixtures do what they say, judged by skopeo."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from parbake.core.run import run
from standins.images import image, index, layer, push, write_layout
from standins.registry import DockerRegistry, certificates

BASE = layer({"etc/": None, "etc/motd": b"hi\n"})


def test_skopeo_reads_what_was_pushed(tmp_path: Path) -> None:
    both = index(image(BASE), image(BASE, platform="linux/arm64/v8", compression="zstd"))
    with DockerRegistry(tmp_path, tls=certificates(tmp_path), users={"ann": "secret"}) as registry:
        digest = push(registry.url, "team/app", both, "v1", user=("ann", "secret"), ca=registry.ca)
        command = ["skopeo", "inspect", "--raw", "--creds", "ann:secret", "--cert-dir", str(tmp_path)]
        (tmp_path / "ca.crt").write_bytes(Path(registry.ca).read_bytes())
        (tmp_path / "ca.key").unlink()
        (tmp_path / "server.key").unlink()
        raw = run([*command, f"docker://{registry.host}/team/app:v1"]).stdout
    assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == digest


def test_skopeo_copies_a_docker_image_out_of_a_layout(tmp_path: Path) -> None:
    source = write_layout(tmp_path / "layout", {"v1": image(BASE, docker=False, config={"Cmd": ["/app"]})})
    run(["skopeo", "--insecure-policy", "copy", f"oci:{source}:v1", f"dir:{tmp_path / 'copy'}"])
    manifest = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    assert len(manifest["layers"]) == 1


def test_docker_media_types_are_accepted(tmp_path: Path) -> None:
    with DockerRegistry(tmp_path) as registry:
        push(registry.url, "team/app", index(image(BASE, docker=True), docker=True))
        inspected = run(["skopeo", "inspect", "--tls-verify=false", f"docker://{registry.host}/team/app"]).text
    assert json.loads(inspected)["Architecture"] == "amd64"
