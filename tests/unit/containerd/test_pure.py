"""What is decided without a containerd: conventions, configuration, log format, names, generated code."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake import containerd
from parbake.containerd.config import configuration
from parbake.containerd.cri import log_text
from parbake.containerd.labels import chain_ids, merge_labels, reference_labels, source_label, unpack_key
from parbake.containerd.snapshots import Mount, SnapshotFolders, folders
from parbake.core import run
from parbake.core.errors import ContainerdError

SOURCES = Path(__file__).parents[3] / "src"
PROTO = SOURCES / "parbake/containerd/proto"


def test_generated_code_is_what_the_protos_say(tmp_path: Path) -> None:
    protos = sorted(str(path.relative_to(SOURCES)) for path in PROTO.glob("*.proto"))
    outs = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    run.run([sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={SOURCES}", *outs, *protos], cwd=SOURCES)
    made = {path.name: path.read_bytes() for path in tmp_path.rglob("*_pb2.py*")}
    committed = {path.name: path.read_bytes() for path in PROTO.glob("*_pb2.py*")}
    assert made == committed, "run `make proto`"


def test_grpc_is_loaded_only_when_it_is_needed() -> None:
    program = "import sys; from parbake.containerd import Daemon; print('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = containerd.Nothing


# ---- conventions


def test_chain_ids() -> None:
    one, two, three = (f"sha256:{digit * 64}" for digit in "123")
    second = f"sha256:{hashlib.sha256(f'{one} {two}'.encode()).hexdigest()}"
    third = f"sha256:{hashlib.sha256(f'{second} {three}'.encode()).hexdigest()}"
    assert chain_ids([one, two, three]) == (one, second, third)
    assert chain_ids([]) == ()


def test_labels_of_a_manifest_in_docker_words() -> None:
    docker = "application/vnd.docker"
    layers = ["image.rootfs.diff.tar.gzip", "image.rootfs.foreign.diff.tar.gzip", "image.rootfs.diff.tar"]
    document = {
        "config": {"mediaType": f"{docker}.container.image.v1+json", "digest": "sha256:c"},
        "layers": [{"mediaType": f"{docker}.{kind}", "digest": f"sha256:{kind}"} for kind in layers],
    }
    prefix = "containerd.io/gc.ref.content"
    assert reference_labels(document) == {
        f"{prefix}.config": "sha256:c",
        **{f"{prefix}.l.{number}": f"sha256:{kind}" for number, kind in enumerate(layers)},
    }


def test_labels_of_what_containerd_does_not_know() -> None:
    """An artefact's config and blobs: containerd numbers what is neither config, manifest nor layer by itself."""
    document = {
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": "sha256:1"},
        "layers": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": "sha256:2"},
            {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar", "digest": "sha256:3"},
            {"mediaType": "application/vnd.docker.image.rootfs.diff.tarball", "digest": "sha256:4"},
        ],
    }
    prefix = "containerd.io/gc.ref.content"
    assert reference_labels(document) == {
        f"{prefix}.0": "sha256:1",
        f"{prefix}.l.0": "sha256:2",
        f"{prefix}.l.1": "sha256:3",
        f"{prefix}.1": "sha256:4",
    }


def test_labels_of_a_nested_index() -> None:
    document = {
        "manifests": [
            {"mediaType": "application/vnd.docker.distribution.manifest.v2+json", "digest": "sha256:1"},
            {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": "sha256:2"},
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:3"},
        ]
    }
    prefix = "containerd.io/gc.ref.content"
    assert reference_labels(document) == {
        f"{prefix}.m.0": "sha256:1",
        f"{prefix}.0": "sha256:2",
        f"{prefix}.m.1": "sha256:3",
    }
    assert reference_labels({"layers": None, "manifests": None}) == {}


@pytest.mark.parametrize(
    ("registry", "host"),
    [
        ("docker.io", "docker.io"),
        ("localhost:5000", "localhost"),
        ("[::1]:5000", "::1"),
        ("a.b-c.example", "a.b-c.example"),
    ],
)
def test_source_label(registry: str, host: str) -> None:
    assert source_label(registry, "team/app") == {f"containerd.io/distribution.source.{host}": "team/app"}


def test_labels_of_what_is_there_already_are_kept() -> None:
    here, there = source_label("r.test", "team/b"), source_label("other.test", "team/b")
    assert merge_labels({"x": "1", **here}, {"y": "2", **there}) == {"x": "1", "y": "2", **here, **there}
    for old, new in (("team/b", "team/a"), ("team/a,team/b", "team/b"), ("team/b", "team/a,team/b")):
        merged = merge_labels(source_label("r.test", old), source_label("r.test", new))
        assert merged == source_label("r.test", "team/a,team/b")


def test_unpack_key() -> None:
    assert unpack_key("run-1", "sha256:a") == "extract-run-1 sha256:a"


# ---- snapshots' folders


def test_folders() -> None:
    bind = Mount("bind", "/s/1/fs", ("rw", "rbind"))
    assert folders((bind,)) == SnapshotFolders(Path("/s/1/fs"), ())
    options = ("index=off", "workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs")
    overlay = Mount("overlay", "overlay", options)
    assert folders((overlay,)) == SnapshotFolders(Path("/s/3/fs"), (Path("/s/2/fs"), Path("/s/1/fs")))


@pytest.mark.parametrize(
    "mounts",
    [
        (),
        (Mount("overlay", "overlay", ("lowerdir=/a:/b",)),),
        (Mount("erofs", "/x", ()),),
        (Mount("bind", "/", ()),) * 2,
    ],
)
def test_other_mounts_are_refused(mounts: tuple[Mount, ...]) -> None:
    with pytest.raises(ContainerdError, match="not an overlay with an upper folder"):
        folders(mounts)


# ---- configuration


@pytest.mark.parametrize("cri", [False, True])
def test_the_configuration_is_confined(*, cri: bool) -> None:
    root, folder = Path('/stores/one "two" \\ three é'), Path("/places/run")
    text = configuration(root, folder, folder / "sock", cri=cri, sandbox_image="localhost/pause:1")
    config = tomllib.loads(text)
    assert config["version"] == 2
    assert config["root"] == str(root)
    assert config["grpc"]["address"] == "/places/run/sock"
    assert all(Path(config[key]).is_relative_to(folder) for key in ("state", "temp"))
    disabled = config["disabled_plugins"]
    assert ("io.containerd.grpc.v1.cri" in disabled) is not cri
    assert not set(config["required_plugins"]) & set(disabled)
    # containerd refuses a configuration that names a plugin in any other form.
    assert all(name.startswith("io.containerd.") and len(name.split(".")) >= 4 for name in disabled)
    plugins = config["plugins"]
    if cri:
        options = plugins["io.containerd.grpc.v1.cri"]
        assert options["sandbox_image"] == "localhost/pause:1"
        paths = [*options["cni"].values(), plugins["io.containerd.internal.v1.opt"]["path"]]
        paths.append(options["containerd"]["runtimes"]["runc"]["options"]["Root"])
        assert all(Path(path).is_relative_to(folder) for path in paths)
    else:
        assert "io.containerd.grpc.v1.cri" not in plugins


# ---- the CRI's log format


def test_log_text() -> None:
    log = (
        b"2026-01-02T03:04:05.123456789Z stdout F first line\n"
        b"2026-01-02T03:04:05.123456790Z stderr F an error\n"
        b"2026-01-02T03:04:05.123456791Z stdout P half \n"
        b"2026-01-02T03:04:05.123456792Z stdout F and half\n"
        b"2026-01-02T03:04:05.123456793Z stdout F \n"
        b"2026-01-02T03:04:05.123456794Z stdout F \xff\n"
        b"2026-01-02T03:04:05.123456795Z stdout F still being wri"
    )
    assert log_text(log) == "first line\nan error\nhalf and half\n\n\N{REPLACEMENT CHARACTER}\n"
    assert log_text(b"") == ""
    assert log_text(b"no log at all\n") == ""


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\n", codec="utf-8")),
            st.integers(1, 5),
            st.sampled_from(["stdout", "stderr"]),
        )
    )
)
def test_log_text_gives_back_what_was_written(lines: list[tuple[str, int, str]]) -> None:
    log = b""
    for text, width, stream in lines:
        data = text.encode()
        pieces = [data[start : start + width] for start in range(0, len(data), width)] or [b""]
        for number, piece in enumerate(pieces, 1):
            tag = b"F" if number == len(pieces) else b"P"
            log += b" ".join([b"2026-01-02T03:04:05Z", stream.encode(), tag, piece]) + b"\n"
    assert log_text(log) == "".join(f"{text}\n" for text, _, _ in lines)
