"""The QEMU builder: boots the base and lets it bake by itself, with the script and the protocol of an EC2 bake.

It is the rehearsal of an EC2 bake on any machine, and the way for bases whose runtime must do the pulling itself.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parbake import disk
from parbake.builders import Baked, Ingredients
from parbake.builders.guest import Console, user_data
from parbake.builders.local import grown_copy, in_format
from parbake.errors import BakeFailed, InputError
from parbake.model import Descriptor, Image, Plan, Platform, RegistryOptions, Source
from parbake.run import Deadline, need_root, run, sleep

HOST = "10.0.2.2"
"""Where a machine with QEMU's user-mode network finds this host's loopback."""

_POLL = 0.5
_GRACE = 300.0  # seconds beyond the guest's own limit, for the boot and the power-off; longer in emulation
_MEMORY = 2048  # MiB
# Whatever cards the machine has, by DHCP, and nothing in it that is this machine's alone.
_NETWORK = b'version: 2\nethernets:\n  all:\n    match: {name: "e*"}\n    dhcp4: true\n'


class QemuBuilder:
    """Bakes in a virtual machine of this host; needs root, for mounts. ``limit`` is the guest's own, in seconds."""

    name = "qemu"

    def __init__(self, registries: Mapping[str, RegistryOptions], *, limit: float) -> None:
        self._registries = registries
        self._limit = limit

    def build(self, plan: Plan, ingredients: Ingredients) -> Baked:
        """Make the artefact in the work folder.

        Raises BakeFailed with the guest's own log, ArtefactFull, MachineFault, InputError for another architecture
        than this host's, and BadBase.
        """
        from parbake.vm import Machine, Seed

        need_root("baking")
        if plan.platform.architecture != Platform.host().architecture:
            raise InputError(
                f"a machine for {plan.platform} is not booted on {Platform.host()}", hint="write `builder: local`"
            )
        work, events, token = ingredients.work, ingredients.events, os.urandom(6).hex()
        raw = work / "disk.raw"
        files = _archives(plan, ingredients)
        names = {reference: path.name for reference, path in files.items()}
        with disk.private_mounts():
            root = grown_copy(plan, ingredients)
        seed_files = {"network-config": _NETWORK, **{path.name: path.read_bytes() for path in files.values()}}
        with events.stage("guest", "Boot the base and let it bake"):
            probe = Machine(raw, work / "vm", network=True, memory=_MEMORY)
            limit = self._limit * probe.stretch
            data = user_data(plan, token, "bake", limit=limit, registries=self._registries, loopback=HOST, files=names)
            machine = Machine(
                raw, work / "vm", seed=Seed("", {**seed_files, "user-data": data}), network=True, memory=_MEMORY
            )
            with machine:
                _follow(machine, Console(token), plan, ingredients, limit + _GRACE * machine.stretch)
            run(["qemu-img", "commit", "-q", str(work / "vm" / "root.qcow2")], timeout=7200)
        with events.stage("check", "Check the file system"), disk.private_mounts():
            disk.check_filesystem(raw, root.filesystem, offset=root.start, size=root.size)
        return Baked(in_format(raw, plan, ingredients))


def _follow(machine: Any, console: Console, plan: Plan, ingredients: Ingredients, seconds: float) -> None:
    """Follow the serial console to the power-off; raises BakeFailed, ArtefactFull."""
    from parbake.vm import console as serial

    deadline = Deadline(seconds, "the guest's bake")
    while machine.alive and deadline.left:
        for stage in console.read(serial.clean(serial.read(machine.console_log))):
            ingredients.events.note(f"guest: {stage}")
        sleep(_POLL)
    console.read(serial.clean(serial.read(machine.console_log)))
    if machine.alive:
        raise BakeFailed(
            f"the machine did not power off within {seconds:.0f} s; its last stage was `{console.stage}`\n"
            f"{machine.console}",
            hint="raise `time_limit` in the Bakefile if it only needs longer",
        )
    for warning in console.warnings:
        ingredients.events.warn(f"guest: {warning}")
    console.judge(plan.all_images, machine.console)


def _archives(plan: Plan, ingredients: Ingredients) -> dict[str, Path]:
    """Write an archive for each image that is in no registry: the machine finds them on the seed's disk."""
    made = {}
    for number, image in enumerate(image for image in plan.all_images if image.layout):
        path = ingredients.work / f"image{number}.tar"
        write_archive(image, ingredients.source(image), path)
        made[image.reference] = path
    return made


def write_archive(image: Image, source: Source, path: Path) -> None:
    """Write an image as an OCI archive with one name in it (OCI image layout; containerd's annotation)."""
    name = {"io.containerd.image.name": image.names[0]}
    target = {
        "mediaType": image.target.media_type,
        "digest": image.target.digest,
        "size": image.target.size,
        "annotations": name,
    }
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [target]}
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", json.dumps(index).encode())
        documents = {each.digest: each for each in (image.target, image.manifest, image.config)}
        for document in documents.values():
            _add(archive, _blob(document.digest), source.read(document))
        for layer in {layer.digest: layer for layer in image.layers}.values():
            descriptor = Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size)
            content = bytearray(layer.size)
            with source.open(descriptor) as stream:
                view, done = memoryview(content), 0
                while count := stream.readinto(view[done:]):
                    done += count
            _add(archive, _blob(layer.digest), bytes(content))


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
