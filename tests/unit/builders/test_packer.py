"""Packer's folder: what a Bakefile becomes, read back as HCL and by a stand-in that refuses what Packer refuses."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from parbake.bakefile import Bakefile, load
from parbake.builders import packer
from parbake.builders.packer import builder
from parbake.core.errors import InputError, ParbakeError
from parbake.workflows.export import write
from standins import packer_program
from standins.plans import image

GOLDEN = Path(__file__).parent / "cases"
SMALL = 'builder: packer\nbase: {eks: al2023, kubernetes: "1.33"}\nplatform: linux/amd64\n'
FULL = """\
time_limit: 45m
builder: packer
platform: linux/arm64
base: {ami_filter: {name: "amazon-eks-arm64-node-1.22-*", owner: amazon}}
size: 40GiB
sandbox: registry.k8s.io/pause:3.9
aws:
  region: eu-west-1
  instance_types: [m7g.large, c7g.large]
  purchase: spot
  subnets: [subnet-0123456789abcdef0, subnet-0123456789abcdef1]
  security_groups: [sg-0123456789abcdef0]
  instance_profile: arn:aws:iam::123456789012:instance-profile/bakers/pull
  volume: {iops: 6000, throughput: 1000}
  encrypted: true
  kms_key: alias/nodes
  tags: {team: "it's ${data} & \\"co\\""}
  copy_to: [eu-central-1]
  share_with: ["123456789012", "arn:aws:organizations::123456789012:organization/o-a1", "arn:aws:organizations::123456789012:ou/o-a1/ou-b2"]
  deprecate_after: 90d
  fast_snapshot_restore: [eu-west-1a]
registries: {private.example.com: {credentials: environment}}
"""  # noqa: E501 - one list


def bakefile(folder: Path, text: str, *images: str) -> Bakefile:
    path = folder / "parbake.yaml"
    listed = "".join(f"  - {image}\n" for image in images or ("registry.example.com/team/app:1.4",))
    path.write_text(f"version: 1\nname: shop\nimages:\n{listed}{text}")
    return load(path)


@pytest.mark.parametrize("case", ["small", "full"])
def test_golden(case: str, tmp_path: Path) -> None:
    """The values are the only thing that differs between folders, but for where the source AMI comes from."""
    texts = {"small": (SMALL, []), "full": (FULL, ["private.example.com/app:1", "busybox@sha256:" + "0" * 64])}
    text, images = texts[case]
    made = packer.folder(bakefile(tmp_path, text, *images))
    shown = made.files[packer.VALUES] + "".join(f"# warning: {each}\n" for each in made.warnings)
    assert shown == (GOLDEN / f"{case}.pkrvars.json").read_text()
    parameter = "amazon-parameterstore" in made.files["source.pkr.hcl"]
    assert parameter == (case == "small")


@pytest.mark.parametrize("text", [SMALL, FULL])
def test_a_folder_is_valid_to_packer(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", packer.folder(bakefile(tmp_path, text)).files, force=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "Did you run packer init" in told("validate", tmp_path / "out", code=1)
    told("init", tmp_path / "out")
    assert "is valid" in told("validate", tmp_path / "out")


def test_the_stand_in_refuses_what_packer_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    monkeypatch.setenv("HOME", str(tmp_path))
    files = dict(packer.folder(bakefile(tmp_path, SMALL)).files)
    write(folder, files, force=False)
    told("init", folder)
    for name, old, new, said in (
        ("node.pkr.hcl", "ami_org_arns", "ami_organizations", "unsupported argument 'ami_organizations'"),
        ("node.pkr.hcl", "http_tokens", "tokens", "metadata_options: unsupported argument 'tokens'"),
        ("node.pkr.hcl", "timeadd(", "addtime(", "no function named 'addtime'"),
        ("node.pkr.hcl", "var.TAGS", "var.TAG", "var.TAG"),
        ("node.pkr.hcl", "scripts/", "skripts/", "no such file"),
        ("variables.pkr.hcl", '"KEY"', '"KEYS"', "unsupported attribute: var.KEY"),
        (packer.VALUES, '"IMAGE"', '"IMAGES"', "'IMAGES' is not declared"),
        ("node.pkr.hcl", "build {", "build {{", "node.pkr.hcl"),
    ):
        write(folder, {**files, name: files[name].replace(old, new)}, force=True)
        assert said in told("validate", folder, code=1), said
    assert "The RUNTIME must be" in told("validate", "-var", "RUNTIME=podman", write_back(folder, files), code=1)


def write_back(folder: Path, files: dict[str, str]) -> Path:
    write(folder, files, force=True)
    return folder


def told(*words: str | Path, code: int = 0) -> str:
    """Run the stand-in in this process, which parses equal files once."""
    output = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        patch.setattr(sys, "argv", ["packer", *map(str, words)])
        patch.setattr(packer_program, "HOME", Path(os.environ["HOME"]))
        ended = 0
        try:
            packer_program.main()
        except SystemExit as error:
            ended = int(error.code or 0)
    assert ended == code, output.getvalue()
    return output.getvalue()


def test_every_attribute_is_documented() -> None:
    """Without the stand-in's other checks: names in all files of the template, against the plugin's documentation."""
    blocks: dict[str, list[Any]] = {}
    for path in (Path(packer.__file__).parent / "files").glob("*.pkr.hcl"):
        for kind, found in packer_program.parse(path.read_text()).items():
            blocks.setdefault(kind, []).extend(found)
    assert list(packer_program.undocumented(blocks)) == []


def test_every_variable_is_declared_described_and_used() -> None:
    files = Path(packer.__file__).parent / "files"
    text = (files / "variables.pkr.hcl").read_text()
    declared = {packer_program.unquoted(name) for block in packer_program.parse(text)["variable"] for name in block}
    used = set(re.findall(r"var\.(\w+)", "".join(path.read_text() for path in files.glob("*.pkr.hcl"))))
    assert used == declared
    assert text.count("description = ") == len(declared)


def test_digests_that_are_known_are_baked(tmp_path: Path) -> None:
    found = image("registry.example.com/team/app:1.4")
    loaded = bakefile(tmp_path, SMALL)
    assert packer.reference_text(loaded, [found]) == [f"registry.example.com/team/app:1.4@{found.target.digest}"]
    assert packer.variables(loaded, [found], size=(33 << 30) + 1)["VOLUME_SIZE"] == 34


@pytest.mark.parametrize(
    ("text", "images", "said"),
    [
        ("base: debian\n", [], "Packer bakes onto an AMI"),
        ('builder: ec2\nbase: {eks: bottlerocket, kubernetes: "1.33"}\n', [], "Bottlerocket has no shell"),
        (SMALL, ["{reference: localhost/app:1, build: .}"], "localhost/app:1 is only on this machine"),
        (SMALL.replace("amd64", "riscv64"), [], "EC2 has no instances for linux/riscv64"),
    ],
)
def test_what_packer_cannot_do(text: str, images: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "Containerfile").touch()
    with pytest.raises(InputError, match=said):
        packer.folder(bakefile(tmp_path, text, *images))


def test_manifests_are_read() -> None:
    def build(run: str, amis: str, **data: str) -> dict[str, Any]:
        return {"packer_run_uuid": run, "artifact_id": amis, "custom_data": data or None}

    def text(last: str, *builds: dict[str, Any]) -> str:
        return json.dumps({"builds": builds, "last_run_uuid": last})

    old, new = build("1", "eu-west-1:ami-0a", key="a"), build("2", "eu-central-1:ami-0c,us-gov-west-1:ami-0b", key="b")
    assert builder.artefacts(text("2", old, new)) == {"eu-central-1": "ami-0c", "us-gov-west-1": "ami-0b"}
    assert builder.artefacts(text("1", old, new), key="a") == {"eu-west-1": "ami-0a"}
    for bad in (text("2", old), text("1", old, new).replace("eu-west-1:", ""), "", "[]", '{"builds": []}'):
        with pytest.raises(ParbakeError, match="manifest"):
            builder.artefacts(bad)
    with pytest.raises(ParbakeError, match="names no AMI of its last run"):
        builder.artefacts(text("2", old, new), key="a")
