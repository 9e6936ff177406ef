from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from parbake.bakefile import Bakefile, BaseChoice, ImageEntry, advice, load, loader, schema
from parbake.core.errors import BakefileError, InputError
from parbake.core.model import (
    GIB,
    MIB,
    Artefact,
    ExitProbe,
    HttpProbe,
    LogProbe,
    Platform,
    RegistryOptions,
    RunningProbe,
    Startup,
    StartupFile,
    TcpProbe,
)

GOLDEN = Path(__file__).parent / "cases"

EVERYTHING = """\
version: 1
name: gpu-node.1
platform: linux/arm64
images:
  - busybox
  - reference: ghcr.io/team/app:1.4
    platform: linux/arm64/v8
    also_by_digest: true
    startup:
      command: [/bin/app, 1]
      args: [--port, 8080]
      env: {VERSION: 1.20, DEBUG: True, port: 80, DATE: 2026-11-24}
      user: 10001:0
      workdir: /srv
      read_only: true
      writable: [/tmp]
      files:
        /etc/app/app.yaml: |
          level: 1
        /usr/bin/port: {content: "exit 0", mode: 0755}
      timeout: 1m30s
      up: {http: {port: 8080, path: /healthz}}
  - reference: localhost/here:1
    build: {context: app, file: Other, args: {RELEASE: 1.10}, target: 2}
  - reference: localhost/there:1
    build: app
base: {debian: {packages: [htop, curl, htop], serial: 2026-11-24}}
artefact: vmdk
runtime: containerd
size: 20GiB
sandbox: registry.k8s.io/pause:3.10
keep_layers: true
registries:
  index.docker.io: {mirrors: ["mirror.example.com:5000/hub"]}
  ghcr.io: {plain_http: true, credentials: environment, ca: ca.pem}
output: out/here
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    world = tmp_path / "My_Node"
    (world / "app").mkdir(parents=True)
    (world / "app" / "Dockerfile").write_text("FROM scratch\n")
    (world / "app" / "Other").write_text("FROM scratch\n")
    (world / "ca.pem").write_text("a certificate\n")
    (world / "disk.raw").write_bytes(bytes(512))
    return world


def _load(folder: Path, text: str) -> Bakefile:
    file = folder / "parbake.yaml"
    file.write_text(text)
    return load(file)


def _up(folder: Path, text: str) -> object:
    bakefile = _load(folder, f"version: 1\nimages: [{{reference: a/b:1, startup: {{up: {text}}}}}]\n")
    assert bakefile.images[0].startup is not None
    return bakefile.images[0].startup.up


def _with(folder: Path, *lines: str) -> Bakefile:
    return _load(folder, "\n".join(["version: 1", "images: [a/b:1]", *lines]))


def test_several_platforms(folder: Path) -> None:
    both = _with(folder, "platforms: [linux/amd64, linux/arm64]")
    assert [str(each) for each in both.platforms] == ["linux/amd64", "linux/arm64"]
    assert str(both.platform) == "linux/amd64", "what concerns one artefact takes the first"
    second = load(folder / "parbake.yaml", {"platform": "linux/arm64"})
    assert (str(second.platform), len(second.platforms)) == ("linux/arm64", 2)
    with pytest.raises(BakefileError, match="linux/s390x is not one of `platforms`"):
        load(folder / "parbake.yaml", {"platform": "linux/s390x"})
    assert _with(folder, "platform: linux/arm64").platforms == ()


def test_every_key_is_read(folder: Path) -> None:
    bakefile = _load(folder, EVERYTHING)
    short, app, here, there = bakefile.images
    assert (bakefile.name, bakefile.platform) == ("gpu-node.1", Platform(architecture="arm64"))
    assert (short.reference.written, str(short.reference)) == ("busybox", "docker.io/library/busybox:latest")
    assert app.platform == Platform(architecture="arm64")
    assert app.also_by_digest
    assert app.startup == Startup(
        command=("/bin/app", "1"),
        args=("--port", "8080"),
        env={"VERSION": "1.20", "DEBUG": "True", "port": "80", "DATE": "2026-11-24"},
        user="10001:0",
        workdir="/srv",
        read_only=True,
        writable=("/tmp",),
        files={
            "/etc/app/app.yaml": StartupFile(content="level: 1\n"),
            "/usr/bin/port": StartupFile(content="exit 0", mode="0755"),
        },
        timeout=90,
        up=HttpProbe(port=8080, path="/healthz"),
    )
    assert type(app.startup) is Startup
    assert here.build is not None
    assert here.build.context == folder / "app"
    assert here.build.file == folder / "app" / "Other"
    assert (here.build.args, here.build.target) == ({"RELEASE": "1.10"}, "2")
    assert there.build is not None
    assert there.build.file == folder / "app" / "Dockerfile"
    assert bakefile.base == BaseChoice(kind="debian", packages=("curl", "htop"), serial="2026-11-24")
    assert bakefile.artefact == Artefact(kind="machine-image", format="vmdk")
    assert (bakefile.runtime, bakefile.size, bakefile.keep_layers) == ("containerd", 20 * GIB, True)
    assert str(bakefile.sandbox) == "registry.k8s.io/pause:3.10"
    assert bakefile.registries == {
        "docker.io": RegistryOptions(mirrors=("mirror.example.com:5000/hub",)),
        "ghcr.io": RegistryOptions(plain_http=True, credentials="environment", ca=str(folder / "ca.pem")),
    }
    assert bakefile.output == folder / "out" / "here"


def test_little_is_enough(folder: Path) -> None:
    bakefile = _with(folder)
    assert bakefile.name == "my-node"
    assert bakefile.platform == Platform.host()
    assert bakefile.images == (ImageEntry(reference="a/b:1"),)
    assert bakefile.base == BaseChoice(kind="debian")
    assert bakefile.artefact == Artefact(kind="machine-image", format="raw")
    assert (bakefile.size, bakefile.sandbox, bakefile.keep_layers) == (0, "auto", False)
    assert bakefile.registries == {}
    assert bakefile.output == folder / "artefacts"


def test_containerfile_goes_before_dockerfile(folder: Path) -> None:
    (folder / "app" / "Containerfile").write_text("FROM scratch\n")
    build = _load(folder, "version: 1\nimages: [{reference: localhost/a:1, build: app}]\n").images[0].build
    assert build is not None
    assert build.file == folder / "app" / "Containerfile"


@pytest.mark.parametrize(
    ("text", "probe"),
    [
        ("exit", ExitProbe()),
        ("running", RunningProbe()),
        ("{running: 2s}", RunningProbe(seconds=2)),
        ("{running: 500ms}", RunningProbe(seconds=0.5)),
        ('{log: "listening on [0-9]+"}', LogProbe(pattern="listening on [0-9]+")),
        ("{log: 8080}", LogProbe(pattern="8080")),
        ("{tcp: 22}", TcpProbe(port=22)),
        ("{http: 8080}", HttpProbe(port=8080)),
        ("{http: 8080/health/z}", HttpProbe(port=8080, path="/health/z")),
        ("{http: {port: 80}}", HttpProbe(port=80)),
    ],
)
def test_ways_to_know_that_it_is_up(folder: Path, text: str, probe: object) -> None:
    assert _up(folder, text) == probe


@pytest.mark.parametrize(
    ("lines", "artefact"),
    [
        ("artefact: qcow2", Artefact(kind="machine-image", format="qcow2")),
        ("artefact: {format: vhd}", Artefact(kind="machine-image", format="vhd")),
        ("artefact: {kind: machine-image}", Artefact(kind="machine-image")),
        ("base: none", Artefact(kind="volume", filesystem="ext4")),
        ("base: none\nartefact: {filesystem: xfs}", Artefact(kind="volume", filesystem="xfs")),
        ("base: none\nartefact: {kind: volume, format: raw}", Artefact(kind="volume", filesystem="ext4")),
        ("base: {file: disk.raw}", Artefact(kind="machine-image")),
    ],
)
def test_artefacts_follow_from_what_is_written(folder: Path, lines: str, artefact: Artefact) -> None:
    assert _with(folder, lines).artefact == artefact


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("auto", 0),
        ("20GiB", 20 * GIB),
        ("20 GiB", 20 * GIB),
        ("1.5GiB", 1536 * MIB),
        ("20480KiB", 20 * MIB),
        ("1TiB", 1024 * GIB),
        ("20GB", 19073 * MIB),
        ("500MB", 476 * MIB),
    ],
)
def test_sizes_are_whole_mebibytes(folder: Path, text: str, size: int) -> None:
    assert _with(folder, f"size: {text}").size == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("2m", 120), ("1h", 3600), ("1h2m3s", 3723), ("1.5s", 1.5), ("250ms", 0.25), ("24h", 86400)]
)
def test_durations_are_seconds(folder: Path, text: str, seconds: float) -> None:
    bakefile = _load(folder, f"version: 1\nimages: [{{reference: a/b:1, startup: {{timeout: {text}}}}}]\n")
    assert bakefile.images[0].startup == Startup(timeout=seconds)


def test_a_base_file_is_found_from_the_bakefile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "parbake.yaml"
    file.write_text("version: 1\nimages: [a/b:1]\nbase: {file: ./disk.raw}\n")
    monkeypatch.chdir(folder.parent)
    assert load(Path("My_Node/parbake.yaml")).base == BaseChoice(kind="file", path=folder / "disk.raw")


def test_anchors_and_merges_work(folder: Path) -> None:
    bakefile = _load(
        folder,
        "version: 1\nimages:\n  - &web {reference: a/b:1, startup: {up: exit}}\n  - {<<: *web, reference: a/c:1}\n",
    )
    assert [entry.reference.written for entry in bakefile.images] == ["a/b:1", "a/c:1"]
    assert bakefile.images[1].startup == Startup(up=ExitProbe())


@pytest.mark.parametrize(
    ("name", "expected"), [("My_Node", "my-node"), ("..x", "x"), ("ÄÖ", "node"), ("a" * 80, "a" * 63), ("-a-", "a")]
)
def test_the_folder_names_the_artefact(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / name).mkdir()
    assert _with(tmp_path / name).name == expected


def test_a_loaded_bakefile_is_frozen_and_can_be_printed(folder: Path) -> None:
    bakefile = _load(folder, EVERYTHING)
    with pytest.raises(ValueError, match="frozen"):
        bakefile.name = "other"  # type: ignore[misc]
    dumped = json.loads(bakefile.model_dump_json())
    assert dumped["images"][1]["startup"]["up"] == {"kind": "http", "port": 8080, "path": "/healthz"}
    base = {"kind": "debian", "path": None, "packages": ["curl", "htop"], "serial": "2026-11-24", "ami": None}
    assert dumped["base"] == base
    assert dumped["artefact"]["format"] == "vmdk"


class TestFilesThatAreNone:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="there is no Bakefile") as caught:
            load(tmp_path / "parbake.yaml")
        assert "parbake init" in caught.value.hint

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="is a folder"):
            load(tmp_path)
        (tmp_path / "parbake.yaml").touch()
        with pytest.raises(InputError) as caught:
            load(tmp_path)
        assert caught.value.hint == f"write -f {tmp_path / 'parbake.yaml'}"

    def test_below_a_file(self, folder: Path) -> None:
        with pytest.raises(InputError, match="cannot read"):
            load(folder / "disk.raw" / "parbake.yaml")

    def test_huge(self, tmp_path: Path) -> None:
        file = tmp_path / "parbake.yaml"
        with file.open("wb") as handle:
            handle.truncate(1 << 40)
        with pytest.raises(InputError, match="larger than 1 MiB"):
            load(file)


def test_errors_as_json(folder: Path) -> None:
    with pytest.raises(BakefileError) as caught:
        _load(folder, "version: 1\nimages: [a/b:1]\nsise: 20GiB\n")
    assert caught.value.to_json()["problems"] == [
        {"line": 3, "where": "sise", "message": "no such key", "suggestion": "did you mean 'size'?"}
    ]


def test_advice(folder: Path) -> None:
    text = """\
version: 1
images:
  - nginx
  - ghcr.io/a/b:latest
  - docker.io/library/redis:7
  - bitnami/redis:7
  - localhost:5000/x/y
  - ghcr.io/a/c:latest@sha256:0000000000000000000000000000000000000000000000000000000000000000
sandbox: registry.k8s.io/pause:3.10
registries: {ghcr.io: {mirrors: [m.example.com/x]}, m.example.com: {}, registry.k8s.io: {}, ghrc.io: {}}
"""
    assert [line.split(";")[0] for line in advice(_load(folder, text))] == [
        "images[0]: nginx: no tag means :latest, which moves",
        "images[0]: nginx: a short name, baked as docker.io/library/nginx:latest",
        "images[1]: ghcr.io/a/b:latest: `latest` moves, and pods that ask for it also ask the registry at every start "
        "(imagePullPolicy is then Always unless set)",
        "images[3]: bitnami/redis:7: a short name, baked as docker.io/bitnami/redis:7",
        "images[4]: localhost:5000/x/y: no tag means :latest, which moves",
        "registries: no image is from ghrc.io (did you mean 'ghcr.io'?)",
    ]
    assert advice(_with(folder, "name: a"))[0].startswith("images[0]: a/b:1: a short name")
    old = _with(folder, 'builder: ec2\nbase: {eks: al2, kubernetes: "1.32"}')
    assert "Amazon Linux 2 is past its end" in advice(old)[-1]
    assert not any("Amazon Linux 2" in each for each in advice(_with(folder, "builder: ec2\nbase: ami-12345678")))


class TestSchema:
    def check(self, text: str) -> list[str]:
        data: Any = YAML(typ="safe", pure=True).load(text)
        # Editors read dates as the text that they are.
        plain = json.loads(json.dumps(data, default=str))
        validator = jsonschema.Draft202012Validator(schema())
        return [error.message for error in validator.iter_errors(plain)]

    def test_it_is_one(self) -> None:
        jsonschema.Draft202012Validator.check_schema(schema())
        assert schema()["$schema"].endswith("2020-12/schema")
        json.dumps(schema())

    def test_every_key_is_described(self) -> None:
        whole = schema()
        for section in (whole, *whole["$defs"].values()):
            assert section.get("description"), section
            for key, value in section.get("properties", {}).items():
                assert value.get("description"), key

    def test_good_files_fit(self, folder: Path) -> None:
        for text in (EVERYTHING, "version: 1\nimages: [a/b:1]\n", "version: 1\nimages: [a]\nbase: none\n"):
            assert self.check(text) == []
            _load(folder, text)

    @pytest.mark.parametrize(
        "case",
        [
            "no-version-no-images", "no-images", "version-of-the-future", "wrong-types", "unknown-keys",
            "size-unit", "sizes", "size-words", "base-both-valid", "base-bare-path", "base-misspelt",
            "artefact-kind", "artefact-misspelt", "artefact-file-system", "everything-wrong", "startups",
            "registries", "not-a-mapping",
        ],
    )  # fmt: skip
    def test_what_a_schema_can_see_is_refused(self, case: str) -> None:
        assert self.check((GOLDEN / f"{case}.yaml").read_text())


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99999) | st.sampled_from(["auto", "none", "a/b:1", "", "20GiB", "x y"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["reference", "up", "build", "context", "startup", "file", "tcp", "http", "kind", "debian"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
_keys = st.sampled_from(sorted(Bakefile.model_fields))


@given(st.dictionaries(_keys, _values, max_size=6))
@settings(max_examples=150, deadline=None)
def test_whatever_is_written_is_loaded_or_explained(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, object]
) -> None:
    """And where both can see it, the published schema and the loader agree: what loads fits the schema."""
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    data = {"version": 1, "images": ["a/b:1"], **data}
    file.write_text(json.dumps(data))
    try:
        load(file)
    except BakefileError as error:
        problems = error.problems
    else:
        problems = ()
        jsonschema.Draft202012Validator(schema()).validate(_as_read(data))
    assert all(problem.line and problem.message for problem in problems)
    assert not any("Input should" in problem.message for problem in problems)


def _as_read(value: object, key: str = "") -> object:
    """Write scalars as the texts that the loader takes them for: what is unquoted in YAML may look like a number."""
    if isinstance(value, dict):
        return {name: _as_read(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_as_read(each) for each in value]
    if value is None or isinstance(value, str) or key in {"version", "keep_layers", "tcp"}:
        return value
    return json.dumps(value)


AWS_FILE = """
version: 1
images: [a.example/b:1]
builder: ec2
base: {eks: al2023, kubernetes: 1.33, gpu: nvidia}
aws:
  region: eu-west-1
  instance_types: m7i.large
  volume: {iops: 4000, throughput: 1000}
  encrypted: true
  kms_key: alias/nodes
  tags: {team: 12}
  share_with: [123456789012]
  deprecate_after: 90d
time_limit: 20m
"""


def test_a_bake_in_ec2(tmp_path: Path) -> None:
    (tmp_path / "parbake.yaml").write_text(AWS_FILE)
    found = load(tmp_path / "parbake.yaml")
    assert found.base.ami
    assert (found.base.kind, found.base.ami.eks, found.base.ami.kubernetes) == ("ami", "al2023", "1.33")
    assert (found.artefact.kind, found.artefact.format) == ("machine-image", "ami")
    assert found.aws.instance_types == ("m7i.large",)
    assert (found.aws.deprecate_after, found.time_limit) == (90, 1200.0)
    assert found.aws.tags == {"team": "12"}
    assert found.aws.share_with == ("123456789012",)


MRK = "arn:aws:kms:eu-west-1:123456789012:key/mrk-1234abcd12ab34cd56ef1234567890ab"


@pytest.mark.parametrize(
    ("keys", "there"),
    [
        ("alias/nodes", "alias/nodes"),
        (MRK, MRK.replace("eu-west-1", "us-east-1")),
        ("{eu-west-1: alias/nodes, us-east-1: alias/others}", "alias/others"),
    ],
)
def test_a_key_for_each_region(tmp_path: Path, keys: str, there: str) -> None:
    text = AWS_FILE.replace("kms_key: alias/nodes", f"kms_key: {keys}\n  copy_to: [us-east-1]")
    (tmp_path / "parbake.yaml").write_text(text)
    found = load(tmp_path / "parbake.yaml").aws
    assert found.key_in("us-east-1") == there
    assert found.key_in("eu-west-1") in {"alias/nodes", MRK}


@pytest.mark.parametrize("region", ["eu-west-1", "us-gov-east-1", "eusc-de-east-1"])
def test_a_region_is_the_same_everywhere(tmp_path: Path, region: str) -> None:
    text = (
        "version: 1\nimages: [a.example/b:1]\n"
        + f"aws: {{region: {region}}}\nrollout: [{{ssm: /a, region: {region}}}]\n"
    )
    (tmp_path / "parbake.yaml").write_text(text)
    found = load(tmp_path / "parbake.yaml")
    assert (found.aws.region, found.rollout[0].region) == (region, region)


def test_a_volume_for_ec2_is_a_snapshot(tmp_path: Path) -> None:
    (tmp_path / "parbake.yaml").write_text("version: 1\nimages: [a.example/b:1]\nbase: none\nbuilder: ebs\n")
    found = load(tmp_path / "parbake.yaml")
    assert (found.artefact.kind, found.artefact.format) == ("volume", "snapshot")
    assert found.artefact.file_format == "raw"


@pytest.mark.parametrize(("builder", "base"), [("ec2", "ami-0123456789abcdef0"), ("ebs", "none")])
def test_a_volume_in_ec2_needs_no_format(tmp_path: Path, builder: str, base: str) -> None:
    text = f"version: 1\nimages: [a.example/b:1]\nbase: {base}\nbuilder: {builder}\n"
    path = tmp_path / "parbake.yaml"
    path.write_text(text + "artefact: {kind: volume, filesystem: xfs}\n")
    assert load(path).artefact == Artefact(kind="volume", format="snapshot", filesystem="xfs")
    path.write_text(text.replace(f"builder: {builder}", "builder: packer") + "artefact: {kind: volume}\n")
    with pytest.raises(BakefileError):
        load(path)


def test_numbers_and_truths_are_read_as_such() -> None:
    """All scalars are text but those that `load` knows by name: a new key must be among them."""
    document = schema()
    parts = (document, *document["$defs"].values())
    found = set()
    for key, value in ((key, value) for part in parts for key, value in part["properties"].items()):
        types = [each.get("type") for each in (value, *value.get("anyOf", ()))]
        kinds = {each for each in types if isinstance(each, str)} - {"null"}
        if kinds and kinds <= {"boolean", "integer", "number"}:
            found.add(key)
    assert found == loader.BAKEFILE.not_text
