"""Write what other tools take: their own files, so that they do what the Bakefile says, or take what was baked."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML

from parbake import records
from parbake.aws import ebs
from parbake.bakefile import load
from parbake.builders import packer
from parbake.core import atomic
from parbake.core.errors import InputError, VerificationFailed
from parbake.core.events import Events
from parbake.core.model import GIB, Base, Image
from parbake.core.plan import disk_size
from parbake.core.reference import Reference
from parbake.core.run import need_root
from parbake.core.workspace import publish, remove_leftovers, work_folder
from parbake.machine import disk
from parbake.records import Record, genuine
from parbake.records.held import held
from parbake.workflows import plan
from parbake.workflows.export.formats import vhd_size, write_archive, write_vhd
from parbake.workflows.export.gke import secondary_boot_disk
from parbake.workflows.export.scripts import azure_script, gcp_script, gke_script, resource_name

# The root volumes of EKS's AMIs; which one it will be, only AWS knows.
_NODE_BASE = Base(kind="ami", size=20 * GIB)


def to_packer(
    bakefile_path: Path, folder: Path, events: Events, *, pin: bool = False, force: bool = False
) -> tuple[Path, ...]:
    """Write Packer's folder for a Bakefile; return its files.

    ``pin`` asks the registries for the digests that the tags have now, and for sizes; nothing else needs a network.
    Raises InputError where Packer cannot bake what the Bakefile says, without ``pin`` also for images that must be
    signed, and when files in the folder say something else (unless ``force``); VerificationFailed for what is not
    signed.
    """
    loaded = load(bakefile_path)
    unchecked = [entry.reference.written for entry in loaded.images if entry.signed_by]
    if unchecked and not pin:
        raise InputError(
            f"{unchecked[0]} must be signed, and its tag may name something else when Packer runs",
            hint="--pin checks the signatures now, and writes the digests that were signed",
        )
    images = _resolved(bakefile_path, events) if pin else []
    # nerdctl and ctr keep the compressed layers.
    size = disk_size(images, _NODE_BASE, keep_layers=True) if images else 0
    made = packer.folder(loaded, images, size=size)
    for warning in made.warnings:
        events.warn(warning)
    return write(folder, made.files, force=force)


def references(
    bakefile_path: Path, output: Path, selector: str, trust: Sequence[Path], events: Events
) -> tuple[Reference, ...]:
    """Return the images of a record, or without a selector those that the Bakefile names.

    Raises VerificationFailed for a record that none of the keys in ``trust`` has signed, or that contradicts itself.
    """
    if not selector:
        return tuple(entry.reference for entry in load(bakefile_path).images if not entry.layers)
    hint = "name a record, or leave it out for the Bakefile"
    artefact, _ = records.locate_record(selector, output, events, hint=hint)
    record = genuine.need(artefact, trust)
    return tuple(image.reference for image in record.plan.whole_images)


def _resolved(bakefile_path: Path, events: Events) -> list[Image]:
    with plan.open_session(bakefile_path, events) as run:
        found = plan.resolve(run)
        missing = [reference.written for reference, image in found.items() if image is None]
        if missing:
            hint = "build and push them first (a bake does), or leave out --pin"
            raise InputError(f"not built yet: {', '.join(missing)}", hint=hint)
        sandbox = plan.sandbox_of(run)
    return [image for image in (*found.values(), sandbox) if image]


def write(folder: Path, files: Mapping[str, str], *, force: bool) -> tuple[Path, ...]:
    """Write files below a folder, which is created if missing; what says the same already is left alone.

    Raises InputError that names what is in the way, before anything is written, unless ``force``; and for a folder of
    a file that is a link.
    """
    changed = refuse_others(folder, files, force=force)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in changed.items():
        mode = 0o755 if text.startswith("#!") else 0o644
        atomic.replace(folder / name, text, mode=mode, beneath=folder)
    return tuple(folder / name for name in files)


def refuse_others(folder: Path, files: Mapping[str, str], *, force: bool) -> dict[str, str]:
    """Return those of the files that say something else than what is there, or are not; raises as ``write`` does."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file", hint="name a folder; it is created if missing")
    changed = {
        name: text for name, text in files.items() if not (folder / name).is_file() or _text(folder / name) != text
    }
    in_the_way = [name for name in changed if (folder / name).exists()]
    if in_the_way and not force:
        raise InputError(
            f"{folder} holds other files of these names: {', '.join(in_the_way)}",
            hint="name another folder, or replace them with --force",
        )
    return changed


def _text(path: Path) -> str:
    return path.read_text(errors="replace")


@dataclass(frozen=True, slots=True)
class _LocalArtefact:
    """An artefact on this machine: its record, its disk as a raw file, and a work folder beside the export."""

    record: Record
    raw: Path
    work: Path
    name: str
    events: Events

    @property
    def uefi(self) -> bool:
        """Whether the disk boots by UEFI."""
        return self.bootable and ebs.boot_mode(self.raw, self.record.plan.platform) != "legacy-bios"

    @property
    def bootable(self) -> bool:
        return self.record.plan.artefact.kind == "machine-image"


@dataclass(frozen=True, slots=True)
class _Cloud:
    """How a cloud's files are named, and what writes the script (first) and the disk, both in the work folder."""

    suffix: str
    script: str
    text: Callable[[_LocalArtefact, str], str]
    disk: Callable[[_LocalArtefact, Path], object]
    refuse: Callable[[Record], None] = lambda _record: None


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How to export: ``force`` also what is not proven, over what is there.

    ``trust`` are the keys of which one must have signed the record (PEM files; none: it need not be signed).
    """

    force: bool = False
    trust: Sequence[Path] = ()


def to_gcp(
    selector: str, output: Path, folder: Path, events: Events, options: ExportOptions | None = None
) -> tuple[Path, ...]:
    """Write an artefact as Compute Engine takes it, and the script that makes an image of it; return both files.

    ``selector`` names the artefact, see ``records.locate``. An export that is complete, and no older than the artefact,
    is left as it is unless ``force``. Raises InputError (none, in a cloud, files in the way), VerificationFailed unless
    the artefact is proven or ``force`` says so, and for a record that cannot be trusted, DiskFull.
    """

    def text(local: _LocalArtefact, archive: str) -> str:
        return gcp_script(archive, local.name, local.record.plan.platform, uefi=local.uefi)

    def archive(local: _LocalArtefact, target: Path) -> None:
        write_archive(local.raw, target, local.events)

    cloud = _Cloud(".tar.gz", "create-image.sh", text, archive)
    return _export(selector, output, folder, events, cloud, options or ExportOptions())


def to_gke(
    selector: str, output: Path, folder: Path, events: Events, options: ExportOptions | None = None
) -> tuple[Path, ...]:
    """Write a volume as a secondary boot disk of GKE's, and the script that makes a disk image of it. Needs root.

    Raises what ``to_gcp`` raises, and InputError for what is not an ext4 volume.
    """
    need_root("arranging the volume")

    def refuse(record: Record) -> None:
        artefact = record.plan.artefact
        if artefact.kind != "volume" or artefact.filesystem != "ext4":
            raise InputError(
                f"{record.artefact} is not an ext4 volume, which GKE's secondary boot disks are made of",
                hint="bake one: `base: none`, and `filesystem: ext4` in `artefact`",
            )

    def text(local: _LocalArtefact, archive: str) -> str:
        return gke_script(archive, local.name)

    def archive(local: _LocalArtefact, target: Path) -> None:
        arranged = local.work / "gke.raw"
        secondary_boot_disk(local.raw, arranged, local.work, local.events)
        write_archive(arranged, target, local.events)

    cloud = _Cloud("-gke.tar.gz", "create-disk-image.sh", text, archive, refuse)
    return _export(selector, output, folder, events, cloud, options or ExportOptions())


def to_azure(
    selector: str, output: Path, folder: Path, events: Events, options: ExportOptions | None = None
) -> tuple[Path, ...]:
    """Write an artefact as a VHD for Azure, and the script that makes a managed disk (and an image) of it.

    Raises what ``to_gcp`` raises.
    """

    def text(local: _LocalArtefact, vhd: str) -> str:
        platform, size = local.record.plan.platform, vhd_size(local.raw)
        return azure_script(vhd, local.name, platform, size=size, uefi=local.uefi, bootable=local.bootable)

    def vhd(local: _LocalArtefact, target: Path) -> None:
        write_vhd(local.raw, target, local.work, local.events)

    cloud = _Cloud(".vhd", "create-disk.sh", text, vhd)
    return _export(selector, output, folder, events, cloud, options or ExportOptions())


def _export(
    selector: str, output: Path, folder: Path, events: Events, cloud: _Cloud, options: ExportOptions
) -> tuple[Path, ...]:
    """Write the script, then the disk, which appears when it is complete: a run that ends before it is none.

    Neither appears unless the artefact's bytes are those of its record, also once the disk was made of them. What runs
    that were killed left in the folder goes on the way.
    """
    force = options.force
    artefact, record = _proven(selector, output, events, options)
    cloud.refuse(record)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file", hint="name a folder; it is created if missing")
    remove_leftovers(folder)
    name = resource_name(record.plan.name, record.key)
    made, script = folder / f"{name}{cloud.suffix}", folder / cloud.script
    if not force and script.is_file() and _is_newer(made, artefact):
        events.note(f"{made} exists already (--force overwrites it)")
        return made, script
    with work_folder(folder, "export") as work, held(artefact, record, work, events) as bytes_:
        raw = bytes_.path
        if record.plan.artefact.format != "raw":
            raw = work / "disk.raw"
            disk.to_raw(bytes_.path, raw, events)
        local = _LocalArtefact(record, raw, work, name, events)
        text = cloud.text(local, made.name)
        refuse_others(folder, {cloud.script: text}, force=force)
        cloud.disk(local, work / made.name)
        bytes_.need_unchanged()  # what follows hands out what was made of them
        made.unlink(missing_ok=True)  # of an earlier artefact: it and the new script would not go together
        write(folder, {cloud.script: text}, force=force)
        publish(work / made.name, made, mode=stat.S_IMODE(artefact.stat().st_mode) & 0o666)  # as readable as that
    return made, script


def _proven(selector: str, output: Path, events: Events, options: ExportOptions) -> tuple[Path, Record]:
    artefact, _ = records.locate_record(selector, output, events, hint="export what parbake has baked")
    record = genuine.need(artefact, options.trust)
    if not artefact.is_file():
        where = "lies in a cloud" if record.published else "is no longer on this machine"
        raise InputError(f"{artefact.name} {where}", hint="bake it with `builder: local`")
    if not record.verified:
        if not options.force:
            raise VerificationFailed(
                f"{record.artefact} is not verified: nodes may not start its images",
                hint=f"`parbake verify {record.artefact}`; --force exports it anyway",
            )
        events.warn(f"--force: {record.artefact} is not verified; exporting it anyway")
    return artefact, record


def _is_newer(made: Path, artefact: Path) -> bool:
    return made.is_file() and made.stat().st_mtime_ns >= artefact.stat().st_mtime_ns


type Form = Literal["kubelet", "nodeadm"]
_KUBELET_HEAD = """\
# Baked images start without their registry, also after a pod has pulled one of them. All other images are verified.
# For kubelets of Kubernetes 1.35 and later; 1.33 and 1.34 refuse it without the gate KubeletEnsureSecretPulledImages.
"""


def kubelet_document(references: Iterable[Reference], form: Form) -> dict[str, Any]:
    """Return a KubeletConfiguration that leaves images to pods whatever happens to their registry. Pure.

    For nodeadm it is a NodeConfig with that. Sources: KubeletConfiguration v1beta1; KEP-2535; kubernetes
    ``pkg/kubelet/images/pullmanager/image_pull_policies.go`` (an entry is a whole normalised name, without tag and
    digest, or ends with ``/*``; from 1.36 on the pod's name is normalised before it is compared). Seen on kubelet
    1.36.2: with the list, an image starts although a record of the kubelet's says that it must be verified.
    """
    names = sorted({each.name for each in references})
    found: dict[str, Any] = {
        "imagePullCredentialsVerificationPolicy": "NeverVerifyAllowlistedImages",
        "preloadedImagesVerificationAllowlist": names,
    }
    if form == "nodeadm":
        return {"apiVersion": "node.eks.aws/v1alpha1", "kind": "NodeConfig", "spec": {"kubelet": {"config": found}}}
    return {"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", **found}


def kubelet_text(document: dict[str, Any]) -> str:
    """Return an object as YAML, with what to know of it."""
    writer, stream = YAML(), StringIO()
    writer.indent(mapping=2, sequence=4, offset=2)
    writer.dump(document, stream)
    return _KUBELET_HEAD + stream.getvalue().rstrip()
