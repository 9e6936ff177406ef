"""The images of the benchmark, made on the spot from Debian and PyPI content and kept in a registry's storage.

An image is named by its recipe: ``bench/NAME:HASH`` is there, or it is made. Nothing else is cached: unpacked trees and
tars are temporary, and what travels lies once on disk, in the registry that serves it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import urllib3

from parbake.core.events import Events
from parbake.core.model import MIB
from parbake.core.run import run
from parbake.core.workspace import remove_tree

Compression = Literal["gzip", "zstd"]
_FORMAT = 1  # part of every recipe: raise it when the way of making images changes
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+"
_RAW_SIZE = "dev.parbake.bench.raw-size"
_MINUTES = 60.0
_EPOCH = 1_700_000_000

# A service's base and its Python libraries: 60 MiB of gzip.
_SMALL = ("python3-cryptography", "python3-requests")
_SOURCES = "linux-source-6.12"
_SMALL_FILE = 16 << 10
_NOISE_LAYERS, _NOISE_FILES, _NOISE_FILE = 8, 36, 4 * MIB
# What a machine-learning service ships, in three layers as such images have them: CUDA, frameworks, libraries.
_CUDA = (
    "nvidia-cublas-cu12==12.6.4.1", "nvidia-cuda-cupti-cu12==12.6.80", "nvidia-cuda-nvrtc-cu12==12.6.77",
    "nvidia-cuda-runtime-cu12==12.6.77", "nvidia-cudnn-cu12==9.5.1.17", "nvidia-cufft-cu12==11.3.0.4",
    "nvidia-curand-cu12==10.3.7.77", "nvidia-cusolver-cu12==11.7.1.2", "nvidia-cusparse-cu12==12.5.4.2",
    "nvidia-cusparselt-cu12==0.6.3", "nvidia-nccl-cu12==2.26.2", "nvidia-nvjitlink-cu12==12.6.85",
)  # fmt: skip
_FRAMEWORKS = ("torch==2.7.1", "triton==3.3.1", "vllm==0.10.2")
_LIBRARIES = (
    "tensorflow==2.20.0", "onnxruntime-gpu==1.22.0", "cupy-cuda12x==13.4.1", "jax-cuda12-pjrt==0.6.2",
    "transformers==4.53.0", "scipy==1.16.0", "numpy==2.3.1", "pandas==2.3.0", "pyarrow==20.0.0",
)  # fmt: skip
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


@dataclass(frozen=True)
class Recipe:
    """How an image is made: ``words`` identify it, ``tars`` makes its layers below a folder, one at a time."""

    name: str
    compression: Compression
    words: tuple[str, ...]
    tars: Callable[[Path, Events], Iterator[Path]]

    @property
    def tag(self) -> str:
        """The tag that follows from the recipe."""
        text = json.dumps([_FORMAT, self.compression, self.words])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Layer:
    """A layer as it is stored: sizes in bytes, of what travels and of the tar."""

    digest: str
    size: int
    raw_size: int


@dataclass(frozen=True)
class Image:
    """An image that the registry serves."""

    name: str
    reference: str
    compression: Compression
    layers: tuple[Layer, ...]

    @property
    def size(self) -> int:
        """Bytes that travel."""
        return sum(layer.size for layer in self.layers)

    @property
    def raw_size(self) -> int:
        """Bytes of the tars."""
        return sum(layer.raw_size for layer in self.layers)


class Shelf:
    """Makes images that are missing and finds those that are there. ``host`` serves what lies in ``content``."""

    def __init__(self, host: str, content: Path, work: Path, events: Events) -> None:
        self._host, self._content, self._work, self._events = host, content, work, events
        self._http = urllib3.PoolManager(retries=False, timeout=600.0)

    def get(self, recipe: Recipe) -> Image:
        """Return an image; it is made first when its recipe is new."""
        manifest = self._manifest(recipe)
        if manifest is None:
            with self._events.stage(f"make-{recipe.name}", f"Make the image {recipe.name}"):
                manifest = self._make(recipe)
        layers = tuple(
            Layer(layer["digest"], layer["size"], int(layer["annotations"][_RAW_SIZE])) for layer in manifest["layers"]
        )
        return Image(recipe.name, f"{self._host}/bench/{recipe.name}:{recipe.tag}", recipe.compression, layers)

    def blob(self, digest: str) -> Path:
        """Return the file in which the registry keeps a blob (the layout of distribution's filesystem driver)."""
        word = digest.removeprefix("sha256:")
        return self._content / "docker/registry/v2/blobs/sha256" / word[:2] / word / "data"

    def _manifest(self, recipe: Recipe) -> dict[str, Any] | None:
        url = self._url(recipe.name, f"manifests/{recipe.tag}")
        reply = self._http.request("GET", url, headers={"Accept": _MANIFEST})
        return json.loads(reply.data) if reply.status == 200 else None

    def _make(self, recipe: Recipe) -> dict[str, Any]:
        layers, diff_ids = [], []
        for tar in recipe.tars(self._work, self._events):
            layer, diff_id = self._layer(recipe, tar)
            layers.append(layer)
            diff_ids.append(diff_id)
            raw_size = int(layer["annotations"][_RAW_SIZE])
            self._events.note(f"{recipe.name}: layer {len(layers)}, {raw_size / MIB:.0f} MiB unpacked")
        return self._name(recipe.name, recipe.tag, layers, diff_ids, recipe.words)

    def put_on_top(self, recipe: Recipe, tag: str, tar: Path) -> Image:
        """Put one more layer on an image, under another tag of its repository, which moves when it is there already."""
        below = self.get(recipe)
        manifest = self._manifest(recipe)
        assert manifest
        config = json.loads(self.blob(manifest["config"]["digest"]).read_bytes())
        layer, diff_id = self._layer(recipe, tar)
        diff_ids = [*config["rootfs"]["diff_ids"], diff_id]
        self._name(recipe.name, tag, [*manifest["layers"], layer], diff_ids, (*recipe.words, "one more layer"))
        raw_size = int(layer["annotations"][_RAW_SIZE])
        return Image(
            recipe.name, f"{self._host}/bench/{recipe.name}:{tag}", recipe.compression,
            (*below.layers, Layer(layer["digest"], layer["size"], raw_size)),
        )  # fmt: skip

    def _layer(self, recipe: Recipe, tar: Path) -> tuple[dict[str, Any], str]:
        """Compress, upload and remove a tar; return the layer's descriptor and its diffID."""
        packed = _pack(tar, recipe.compression)
        raw_size, diff_id = tar.stat().st_size, _digest(tar)
        tar.unlink()
        descriptor = self._upload(recipe.name, packed, _LAYER + recipe.compression)
        packed.unlink()
        return {**descriptor, "annotations": {_RAW_SIZE: str(raw_size)}}, diff_id

    def _name(
        self, name: str, tag: str, layers: list[dict[str, Any]], diff_ids: list[str], words: tuple[str, ...]
    ) -> dict[str, Any]:
        """Upload the configuration and the manifest of an image, and return the manifest."""
        config = self._work / "config"
        config.write_text(json.dumps({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": word} for word in words],
        }))  # fmt: skip
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._upload(name, config, _CONFIG),
            "layers": layers,
        }
        self._put(self._url(name, f"manifests/{tag}"), json.dumps(manifest).encode(), _MANIFEST)
        return manifest

    def _upload(self, name: str, file: Path, media_type: str) -> dict[str, Any]:
        digest = _digest(file)
        if self._http.request("HEAD", self._url(name, f"blobs/{digest}")).status != 200:
            reply = self._http.request("POST", self._url(name, "blobs/uploads/"))
            place = reply.headers["Location"]
            with file.open("rb") as body:
                self._put(f"{place}{'&' if '?' in place else '?'}digest={digest}", body, "application/octet-stream")
        return {"mediaType": media_type, "digest": digest, "size": file.stat().st_size}

    def _put(self, url: str, body: Any, media_type: str) -> None:
        size = len(body) if isinstance(body, bytes) else os.fstat(body.fileno()).st_size
        reply = self._http.request(
            "PUT", url, body=body, headers={"Content-Type": media_type, "Content-Length": str(size)}
        )
        if reply.status != 201:
            raise OSError(f"PUT {url}: {reply.status} {reply.data[:500]!r}")

    def _url(self, name: str, path: str) -> str:
        return f"http://{self._host}/v2/bench/{name}/{path}"


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return f"sha256:{hashlib.file_digest(handle, 'sha256').hexdigest()}"


def _pack(tar: Path, compression: Compression) -> Path:
    """Compress as builders do: gzip at level 6 (buildah, docker), zstd at level 3."""
    packed = tar.with_suffix(f".{compression}")
    if compression == "gzip":
        run(["pigz", "-6", "--no-name", "--keep", "--suffix", f".{compression}", str(tar)], timeout=60 * _MINUTES)
        tar.with_name(f"{tar.name}.{compression}").rename(packed)
    else:
        run(["zstd", "-3", "-T0", "--quiet", "--force", str(tar), "-o", str(packed)], timeout=60 * _MINUTES)
    return packed


# -- layers


def debian(work: Path, packages: tuple[str, ...], target: Path) -> None:
    """Write a Debian root file system as a tar."""
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=tar"]
    command += ["--dpkgopt=force-unsafe-io", f"--include={','.join(packages)}", "trixie", str(target)]
    run(command, cwd=work, env={"TMPDIR": str(work), "SOURCE_DATE_EPOCH": str(_EPOCH)}, timeout=20 * _MINUTES)


def wheels(work: Path, names: tuple[str, ...], target: Path) -> None:
    """Write Python packages, installed as pip lays them out, as a tar."""
    tree = work / "tree"
    place = tree / "opt/app/lib/python3.13/site-packages"
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    command = [
        str(Path(sys.executable).with_name("pip")),
        "install",
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--no-cache-dir",
    ]
    command += ["--ignore-installed", "--only-binary=:all:", "--python-version=3.13", "--implementation=cp"]
    command += [*(f"--platform={platform}" for platform in _PLATFORMS), f"--target={place}", *names]
    run(command, env={**settings, "TMPDIR": str(work)}, timeout=60 * _MINUTES)
    options = ["--sort=name", f"--mtime=@{_EPOCH}", "--owner=0", "--group=0", "--numeric-owner"]
    run(["tar", "--create", "--file", str(target), *options, "--directory", str(tree), "opt"], timeout=20 * _MINUTES)
    remove_tree(tree)


def small_files(work: Path, package: str, count: int, layers: int, copies: int = 1) -> Iterator[Path]:
    """Yield tars with the first ``count`` small files of a Debian source package, in ``layers`` equal parts.

    ``copies`` times, each in folders of its own.
    """
    run(["apt-get", "download", "--quiet=2", package], cwd=work, timeout=20 * _MINUTES)
    (archive,) = work.glob(f"{package}_*.deb")
    run(["dpkg-deb", "--extract", str(archive), str(work / "sources")], timeout=20 * _MINUTES)
    (packed,) = (work / "sources/usr/src").glob("*.tar.xz")
    archive.unlink()
    for copy in range(copies):
        with tarfile.open(packed, "r|xz") as sources:
            members = (member for member in sources if member.isfile() and 0 < member.size <= _SMALL_FILE)
            for number in range(copy * layers, (copy + 1) * layers):
                target = work / f"files{number}.tar"
                with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
                    _copy(sources, members, tar, count // layers, f"srv/part{number:02}")
                yield target
    remove_tree(work / "sources")


def _copy(
    sources: tarfile.TarFile, members: Iterator[tarfile.TarInfo], to: tarfile.TarFile, count: int, at: str
) -> None:
    known: set[PurePosixPath] = {PurePosixPath()}
    for _ in range(count):
        member = next(members)
        member.name = f"{at}/{member.name.partition('/')[2]}"
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        for folder in reversed(PurePosixPath(member.name).parents):
            if folder not in known:
                known.add(folder)
                entry = tarfile.TarInfo(str(folder))
                entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, _EPOCH
                to.addfile(entry)
        to.addfile(member, sources.extractfile(member))


# -- images


def _small(work: Path, _: Events) -> Iterator[Path]:
    debian(work, _SMALL, work / "layer.tar")
    yield work / "layer.tar"


def _many(work: Path, _: Events) -> Iterator[Path]:
    yield from small_files(work, _SOURCES, 60_000, 30)


def _many_large(work: Path, _: Events) -> Iterator[Path]:
    yield from small_files(work, _SOURCES, 60_000, 8, copies=5)


def _potato(work: Path, events: Events) -> Iterator[Path]:
    yield from _small(work, events)
    for names in (_CUDA, _FRAMEWORKS, _LIBRARIES):
        wheels(work, names, work / "layer.tar")
        yield work / "layer.tar"


def _noise(work: Path, _: Events) -> Iterator[Path]:
    """Yield layers that no compression makes smaller: what travels is as large as what is unpacked."""
    for number in range(_NOISE_LAYERS):
        target = work / "layer.tar"
        with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
            for place in range(_NOISE_FILES):
                member = tarfile.TarInfo(f"srv/part{number}/file{place:03}")
                member.size, member.mtime = _NOISE_FILE, _EPOCH
                tar.addfile(member, io.BytesIO(hashlib.shake_128(f"{number} {place}".encode()).digest(_NOISE_FILE)))
        yield target


SMALL = Recipe("small", "gzip", _SMALL, _small)
MANY = Recipe("many", "gzip", (_SOURCES, "60000 files", "30 layers"), _many)
MANY_LARGE = Recipe("many-large", "gzip", (_SOURCES, "300000 files", "40 layers"), _many_large)
NOISE = Recipe("noise", "gzip", ("1152 MiB", "8 layers"), _noise)
POTATO = Recipe("potato", "gzip", (*_SMALL, *_CUDA, *_FRAMEWORKS, *_LIBRARIES), _potato)


def recipes(shelf: Shelf) -> dict[str, Recipe]:
    """Return every image's recipe by name; the zstd one is made of the layers of the gzip one."""

    def repacked(work: Path, _: Events) -> Iterator[Path]:
        for layer in shelf.get(POTATO).layers:
            tar = work / "layer.tar"
            run(["igzip", "-d", "-f", "-o", str(tar), str(shelf.blob(layer.digest))], timeout=20 * _MINUTES)
            yield tar

    zstd = Recipe("potato-zstd", "zstd", POTATO.words, repacked)
    return {recipe.name: recipe for recipe in (SMALL, MANY, MANY_LARGE, POTATO, zstd)}
