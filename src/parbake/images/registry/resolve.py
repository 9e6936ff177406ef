"""From a name's document to an image: the same rules for a registry and for a layout on disk.

Sources: OCI image specification (image-index.md, config.md "Layer ChainID"), containerd core/images (which entry of an
index is taken) and platforms (``Normalize``, ``Only``: arm falls back to older variants, amd64 to lower levels and at
last to 386, arm64 to its older variants and at last to 32-bit arm), RFC 1952 (gzip's ISIZE), RFC 8878 (zstd's frame
header).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Protocol

import zstandard

from parbake.core.errors import BadContent, NoSuchImage
from parbake.core.model import Descriptor, Image, Layer, Platform
from parbake.core.reference import Reference
from parbake.images.bounds import most_inflated
from parbake.images.registry.documents import (
    CONFIG_LIMIT,
    DEEPEST,
    DOCUMENTS,
    MANIFEST_LIMIT,
    MOST_DOCUMENTS,
    Config,
    FetchedDocument,
    Index,
    IndexEntry,
    Manifest,
    check_image,
    read_config,
    read_document,
    sha256,
)

_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386"}
_OLDEST_ARM = 5
# Armv9.x implements all of Armv8.(x+5) (Arm architecture reference manual, supplement for A-profile).
_V9_IS_V8 = 5
_MOST_ENTRIES = 1000
# Deflate shrinks at most 1032:1, but a layer that shrinks more than this is less likely than a wrong guess.
_PLAUSIBLE_RATIO = 40
_TAR_BLOCK = 512
_ZSTD_HEADER = 18  # bytes of the longest zstd frame header (RFC 8878 section 3.1.1)


class DocumentStore(Protocol):
    """Where documents and pieces of blobs come from."""

    def small(self, descriptor: Descriptor, limit: int) -> bytes:
        """Return a document, verified against its digest and size; raises BadContent above ``limit`` bytes."""
        ...

    def piece(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        """Return ``length`` bytes of a blob; nothing when the place cannot read in the middle.

        Raises BadContent when the place has another size of it than the descriptor says, as far as it tells.
        """
        ...

    def submit[T](self, call: Callable[[], T]) -> Future[T]:
        """Run ``call`` beside others."""
        ...


class _Counting:
    """A store that gives a bounded number of documents: indexes in indexes can ask for a million."""

    def __init__(self, store: DocumentStore, what: str) -> None:
        self._what, self._left = what, MOST_DOCUMENTS
        self._store = store

    def small(self, descriptor: Descriptor, limit: int) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise BadContent(f"{self._what}: more than {MOST_DOCUMENTS} manifests and configs would have to be read")
        return self._store.small(descriptor, limit)

    def piece(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        return self._store.piece(descriptor, offset, length)

    def submit[T](self, call: Callable[[], T]) -> Future[T]:
        return self._store.submit(call)


def resolve(
    store: DocumentStore, reference: Reference, top: FetchedDocument, platform: Platform, *, layout: str = ""
) -> Image:
    """Return the image that ``top``, to which ``reference`` points, means for ``platform``.

    Raises NoSuchImage (with the platforms there are), InputError for an image that cannot be baked, BadContent.
    """
    what = str(reference)
    store = _Counting(store, what)
    wanted = acceptable(platform)
    seen: list[Platform] = []
    for document, entry in _candidates(store, what, top, wanted, seen):
        manifest = document.content
        if not isinstance(manifest, Manifest):
            continue
        if entry is not None and entry.platform is None and not _is_image(manifest):
            continue  # an artifact that an index lists beside its images
        check_image(what, manifest)
        hints = [store.submit(_raw_size_of(store, layer)) for layer in manifest.layers]
        config = read_config(what, store.small(manifest.config.descriptor, CONFIG_LIMIT))
        actual = _platform(entry, config, platform)
        if rank(wanted, actual) is None:
            seen.append(actual)
            continue
        return Image(
            reference=reference,
            platform=actual,
            target=top.descriptor,
            manifest=document.descriptor,
            config=manifest.config.descriptor,
            layers=_layers(what, manifest, config, [hint.result() for hint in hints]),
            layout=layout,
        )
    there = ", ".join(dict.fromkeys(map(str, seen))) or "none"
    raise NoSuchImage(
        f"{what}: no image for {platform}; the available platforms are: {there}",
        hint="set the platform in the Bakefile, or build and push the image for it",
    )


def all_platforms(store: DocumentStore, what: str, top: FetchedDocument) -> tuple[Platform, ...]:
    """Return the platforms that a document offers, in its order."""
    found: list[Platform] = []
    _collect(_Counting(store, what), what, top, found, DEEPEST)
    return tuple(dict.fromkeys(found))


def _collect(store: DocumentStore, what: str, document: FetchedDocument, found: list[Platform], depth: int) -> None:
    if isinstance(document.content, Manifest):
        check_image(what, document.content)
        config = read_config(what, store.small(document.content.config.descriptor, CONFIG_LIMIT))
        if config.architecture:
            found.append(normalise(config.os, config.architecture, config.variant or ""))
        return
    for entry in _entries(what, document.content, depth):
        if entry.platform is not None and entry.platform.architecture:
            found.append(_spelled(entry))
            continue
        child = _child(store, what, entry)
        if isinstance(child.content, Index) or _is_image(child.content):
            _collect(store, what, child, found, depth - 1)


def _candidates(
    store: DocumentStore,
    what: str,
    document: FetchedDocument,
    wanted: Sequence[Platform],
    seen: list[Platform],
    *,
    depth: int = DEEPEST,
) -> Iterator[tuple[FetchedDocument, IndexEntry | None]]:
    """Yield the manifests that may be meant, the best first; what is for other machines goes to ``seen``."""
    if isinstance(document.content, Manifest):
        yield document, None
        return
    ranked: list[tuple[int, IndexEntry]] = []
    for entry in _entries(what, document.content, depth):
        place: int | None = len(wanted)  # without a platform: last, after a look into the config
        if entry.platform is not None and entry.platform.architecture:
            place = rank(tuple(wanted), _spelled(entry))
            if place is None:
                seen.append(_spelled(entry))
        if place is not None:
            ranked.append((place, entry))
    for _, entry in sorted(ranked, key=lambda pair: pair[0]):
        child = _child(store, what, entry)
        if isinstance(child.content, Index):
            yield from _candidates(store, what, child, wanted, seen, depth=depth - 1)
        else:
            yield child, entry


def _entries(what: str, index: Index, depth: int) -> list[IndexEntry]:
    if depth <= 1:
        raise BadContent(f"{what}: indexes are nested more than {DEEPEST - 1} deep")
    if len(index.manifests) > _MOST_ENTRIES:
        raise BadContent(f"{what}: the index lists {len(index.manifests)} manifests, more than {_MOST_ENTRIES}")
    return [entry for entry in index.manifests if entry.media_type in DOCUMENTS and not entry.is_attestation]


def _child(store: DocumentStore, what: str, entry: IndexEntry) -> FetchedDocument:
    return read_document(what, store.small(entry.descriptor, MANIFEST_LIMIT), entry.media_type)


def _is_image(manifest: Manifest) -> bool:
    return manifest.config.media_type.endswith(("container.image.v1+json", "oci.image.config.v1+json"))


def _spelled(entry: IndexEntry) -> Platform:
    words = entry.platform
    return normalise(words.os, words.architecture, words.variant or "") if words else Platform(architecture="")


def _platform(entry: IndexEntry | None, config: Config, wanted: Platform) -> Platform:
    """Return what an image is for: the index knows the variant, which builders often leave out of the config."""
    if entry is not None and entry.platform is not None and entry.platform.architecture:
        return _spelled(entry)
    if not config.architecture:
        return wanted  # an old or hand-made image that does not say: taken at the user's word
    return normalise(config.os, config.architecture, config.variant or "")


def _layers(what: str, manifest: Manifest, config: Config, raw_sizes: Sequence[int]) -> tuple[Layer, ...]:
    diff_ids = config.rootfs.diff_ids
    if len(diff_ids) != len(manifest.layers):
        raise BadContent(
            f"{what}: the manifest has {len(manifest.layers)} layers, its config names {len(diff_ids)} diff IDs",
            hint="rebuild the image: containerd would refuse it as well",
        )
    layers: list[Layer] = []
    chain = ""
    for entry, diff_id, raw_size in zip(manifest.layers, diff_ids, raw_sizes, strict=True):
        chain = sha256(f"{chain} {diff_id}".encode()) if chain else diff_id
        layers.append(
            Layer(
                media_type=entry.media_type, digest=entry.digest, size=entry.size, diff_id=diff_id, chain_id=chain,
                raw_size=raw_size,
            )
        )  # fmt: skip
    return tuple(layers)


def _raw_size_of(store: DocumentStore, layer: IndexEntry) -> Callable[[], int]:
    """Return what looks how large a layer's tar is; the place that is asked holds the layer's size to what it has."""

    def look() -> int:
        if not layer.size:
            return 0
        if layer.media_type.endswith("zstd"):
            return zstd_raw_size(store.piece(layer.descriptor, 0, min(_ZSTD_HEADER, layer.size)), layer.size)
        length = min(4, layer.size)
        end = store.piece(layer.descriptor, layer.size - length, length)
        return gzip_raw_size(end, layer.size) if layer.media_type.endswith("gzip") else layer.size

    return look


def gzip_raw_size(trailer: bytes, size: int) -> int:
    """Guess the inflated bytes of a gzip file of ``size`` bytes from its last four; 0 when they tell nothing.

    They hold the size modulo 2^32 of the *last* member. The smallest size that fits is taken; seekable formats
    (eStargz) end with an empty member, and what is not a whole number of tar blocks is the size of a part only.
    """
    if len(trailer) != 4:
        return 0
    guess = int.from_bytes(trailer, "little")
    if not guess or guess % _TAR_BLOCK:
        return 0
    while not _fits(guess, size):
        guess += 1 << 32
        if guess > size * _PLAUSIBLE_RATIO:
            return 0
    return guess if guess <= most_inflated(size) else 0


def zstd_raw_size(header: bytes, size: int) -> int:
    """Return the inflated bytes that a zstd frame header states; 0 when it states none or speaks of a part only."""
    try:
        stated = zstandard.get_frame_parameters(header).content_size
    except zstandard.ZstdError:
        return 0
    known = stated not in {zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR}
    plausible = stated % _TAR_BLOCK == 0 and _fits(stated, size) and stated <= most_inflated(size)
    return stated if known and plausible else 0


def _fits(raw: int, size: int) -> bool:
    """Whether ``raw`` bytes can become ``size``: what does not compress grows by headers and a little a block."""
    return raw + raw // 1000 + 64 >= size


def normalise(os: str, architecture: str, variant: str = "") -> Platform:
    """Return the one spelling of a platform: arm64/v8 is arm64, amd64/v1 is amd64, arm is arm/v7."""
    os, architecture, variant = os.lower(), architecture.lower(), variant.lower()
    architecture = _ARCHITECTURES.get(architecture, architecture)
    if architecture in {"armhf", "armel"}:
        architecture, variant = "arm", "v7" if architecture == "armhf" else "v6"
    if architecture in {"arm", "arm64"}:
        variant = f"v{variant}" if variant[:1].isdecimal() else variant
        variant = variant.removesuffix(".0")
    if architecture == "arm" and not variant:
        variant = "v7"
    if architecture == "386" or (architecture, variant) in {("amd64", "v1"), ("arm64", "v8")}:
        variant = ""
    return Platform(os=os or "linux", architecture=architecture, variant=variant)


def acceptable(platform: Platform) -> tuple[Platform, ...]:
    """Return the platforms that run on ``platform``, best first: in containerd's order, as a pull chooses."""
    wanted = normalise(platform.os, platform.architecture, platform.variant)
    pairs = [(wanted.architecture, wanted.variant)]
    match wanted.architecture:
        case "amd64":
            pairs += [("amd64", f"v{level}") for level in range(_number(wanted.variant) - 1, 0, -1)]
            pairs.append(("386", ""))
        case "arm":
            pairs += [("arm", f"v{version}") for version in range(_number(wanted.variant) - 1, _OLDEST_ARM - 1, -1)]
        case "arm64":
            pairs += _older_arm64(wanted.variant)
            pairs += [("arm", f"v{version}") for version in range(8, _OLDEST_ARM - 1, -1)]
    found = [normalise(wanted.os, architecture, variant) for architecture, variant in pairs]
    return tuple(dict.fromkeys(found))


def rank(wanted: tuple[Platform, ...], candidate: Platform) -> int | None:
    """Return the place of ``candidate`` in what ``acceptable`` returned; None when it does not run there."""
    return wanted.index(candidate) if candidate in wanted else None


def _older_arm64(variant: str) -> list[tuple[str, str]]:
    major, _, minor = (variant or "v8").removeprefix("v").partition(".")
    if not (major.isdecimal() and (minor or "0").isdecimal()):
        return []
    step = int(minor or 0)
    if major == "9":
        older = [f"v9.{number}" for number in range(step - 1, -1, -1)]
        return [("arm64", name) for name in (*older, *(f"v8.{number}" for number in range(step + _V9_IS_V8, -1, -1)))]
    return [("arm64", f"v{major}.{number}") for number in range(step - 1, -1, -1)]


def _number(variant: str) -> int:
    digits = variant.removeprefix("v")
    return int(digits) if digits.isdecimal() and len(digits) < 3 else 0
