"""Stand-ins for ``gcloud``, ``az`` and ``azcopy``: they take the documented options alone, and remember what they made.

    python cloud_tools.py STATE gcloud compute images create NAME --source-uri=gs://… …

STATE is a folder: ``state.json`` is what there is in the cloud, ``calls`` what was called, and files are objects in
buckets. What each cloud demands of what it is given is checked: the archive of Compute Engine, the VHD of Azure with
its size, the link to a disk. A file ``STATE/hang-WORD`` lets the call with that word create ``STATE/hangs`` and wait.
Options are those of the references of gcloud (569), az (2.80) and azcopy (10), as far as the scripts use them. Not
modelled: logins, permissions, quotas, regions, time, what a machine makes of a disk.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import jmespath

_GIB, _MIB = 1 << 30, 1 << 20
_LEAST_UPLOAD, _FOOTER = 20 * _MIB, 512  # Azure's compute API, CreationData.uploadSizeBytes
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_FEATURES = {"GVNIC", "VIRTIO_SCSI_MULTIQUEUE", "UEFI_COMPATIBLE"}


NEEDED: dict[str, Any] = {"required": True}
EVERY = {
    "--resource-group": NEEDED,
    "--name": NEEDED,
    "--query": {"default": "@"},
    "--output": {"choices": ["none", "tsv"], **NEEDED},
}
MADE = {"--location": NEEDED, "--os-type": {"choices": ["Linux"]}, "--hyper-v-generation": {"choices": ["V1", "V2"]}}
AZ: dict[str, dict[str, dict[str, Any]]] = {
    "disk create": {
        **MADE,
        "--sku": {"choices": ["StandardSSD_LRS"], **NEEDED},
        "--architecture": {"choices": ["x64", "Arm64"]},
        "--upload-type": {"choices": ["Upload"], **NEEDED},
        "--upload-size-bytes": {"type": int, **NEEDED},
        "--tags": {"nargs": "*", "default": []},
    },
    "disk show": {},
    "disk grant-access": {
        "--access-level": {"choices": ["Write"], **NEEDED},
        "--duration-in-seconds": {"type": int, **NEEDED},
    },
    "disk revoke-access": {},
    "disk update": {"--set": NEEDED},
    "disk delete": {"--yes": {"action": "store_true", **NEEDED}},
    "image create": {**MADE, "--source": NEEDED},
}


def refuse(text: str) -> None:
    sys.exit(f"ERROR: {text}")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


class Cloud:
    """What there is, for the time of one call."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "state.json"
        empty: dict[str, Any] = {"images": {}, "disks": {}, "azure-images": {}}
        self.state = json.loads(self.file.read_text()) if self.file.exists() else empty

    def save(self) -> None:
        self.file.write_text(json.dumps(self.state))

    def object(self, url: str) -> Path:
        bucket, _, name = url.removeprefix("gs://").partition("/")
        if not url.startswith("gs://") or not bucket or not name:
            refuse(f"{url} is no object")
        return self.folder / f"object-{bucket}-{name.replace('/', '_')}"

    # -- gcloud

    def storage_cp(self, asked: argparse.Namespace) -> None:
        shutil.copyfile(asked.source, self.object(asked.target))

    def storage_rm(self, asked: argparse.Namespace) -> None:
        self.object(asked.url).unlink()

    def images_create(self, asked: argparse.Namespace) -> None:
        if not _NAME.fullmatch(asked.name):
            refuse(f"Invalid value for field 'resource.name': '{asked.name}'")
        if asked.name in self.state["images"]:
            refuse(f"The resource 'projects/my-project/global/images/{asked.name}' already exists")
        with tarfile.open(self.object(asked.source_uri), "r:gz") as archive:
            disk = archive.next()
        if disk is None or disk.name != "disk.raw" or not disk.isreg():
            refuse("The tar archive must begin with disk.raw")
            return
        if disk.size % _GIB:
            refuse("The disk's size must be whole GB")
        features = asked.guest_os_features.split(",") if asked.guest_os_features else []
        if not set(features) <= _FEATURES:
            refuse(f"unknown guest OS features in {features}")
        said = {key: value for key, value in vars(asked).items() if key in {"architecture", "family", "labels"}}
        self.state["images"][asked.name] = {**said, "features": features, "status": "READY", "size": disk.size}

    def images_describe(self, asked: argparse.Namespace) -> None:
        if asked.name not in self.state["images"]:
            refuse(f"The resource 'projects/my-project/global/images/{asked.name}' was not found")
        say(self.state["images"][asked.name]["status"])

    def config_get_value(self, asked: argparse.Namespace) -> None:
        assert asked.property == "project"
        say("my-project")

    # -- az, azcopy

    def disk(self, asked: argparse.Namespace) -> dict[str, Any]:
        found: dict[str, Any] | None = self.state["disks"].get(f"{asked.resource_group}/{asked.name}")
        if found is None:
            sys.exit(f"ERROR: (ResourceNotFound) The Resource 'Microsoft.Compute/disks/{asked.name}' was not found")
        return found

    def disk_create(self, asked: argparse.Namespace) -> None:
        name = f"{asked.resource_group}/{asked.name}"
        if name in self.state["disks"]:
            refuse(f"{name} exists, and takes no other data")
        if asked.upload_size_bytes < _LEAST_UPLOAD + _FOOTER or (asked.upload_size_bytes - _FOOTER) % _MIB:
            refuse("uploadSizeBytes must be whole MiB and a footer")
        self.state["disks"][name] = {
            "id": f"/subscriptions/1/resourceGroups/{asked.resource_group}/disks/{asked.name}",
            "diskState": "ReadyToUpload",
            "hyperVGeneration": asked.hyper_v_generation,
            "osType": asked.os_type,
            "architecture": asked.architecture,
            "tags": dict(tag.split("=", 1) for tag in asked.tags),
            "size": asked.upload_size_bytes,
            "written": 0,
        }

    def disk_show(self, asked: argparse.Namespace) -> None:
        self.answer(self.disk(asked), asked)

    def disk_grant_access(self, asked: argparse.Namespace) -> None:
        disk = self.disk(asked)
        if disk["diskState"] != "ReadyToUpload":
            refuse(f"the disk is {disk['diskState']}")
        disk |= {"diskState": "ActiveUpload", "link": f"https://md.example/{asked.name}?sig=s"}
        self.answer({"accessSAS": disk["link"]}, asked)

    def disk_revoke_access(self, asked: argparse.Namespace) -> None:
        disk = self.disk(asked)
        disk.pop("link", None)
        disk["diskState"] = "Unattached"

    def disk_update(self, asked: argparse.Namespace) -> None:
        path, _, value = asked.set.partition("=")
        kind, _, key = path.partition(".")
        self.disk(asked)[kind][key] = value

    def disk_delete(self, asked: argparse.Namespace) -> None:
        if "link" in self.disk(asked):
            refuse("there is an active SAS")
        del self.state["disks"][f"{asked.resource_group}/{asked.name}"]

    def image_create(self, asked: argparse.Namespace) -> None:
        [source] = [disk for disk in self.state["disks"].values() if disk["id"] == asked.source]
        if source["written"] != source["size"] or source["diskState"] != "Unattached":
            refuse("the disk is not complete")
        if source["hyperVGeneration"] != asked.hyper_v_generation:
            refuse("the disk is of another generation")
        self.state["azure-images"][asked.name] = {"source": asked.source}

    def copy(self, asked: argparse.Namespace) -> None:
        [disk] = [disk for disk in self.state["disks"].values() if disk.get("link") == asked.target]
        data = Path(asked.source)
        if data.stat().st_size != disk["size"]:
            refuse("the blob has another size")
        with data.open("rb") as file:
            file.seek(-_FOOTER, 2)
            if file.read(8) != b"conectix":
                refuse("that is no VHD")
        disk["written"] = data.stat().st_size

    @staticmethod
    def answer(answer: dict[str, Any], asked: argparse.Namespace) -> None:
        if asked.output != "none":
            found = jmespath.search(asked.query, answer)
            say("" if found is None else found)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(allow_abbrev=False)
    tools = top.add_subparsers(required=True)

    def command(words: str, handler: str, *plain: str) -> argparse.ArgumentParser:
        where: Any = tools
        for word in words.split()[:-1]:
            group = where.choices.get(word) or where.add_parser(word, allow_abbrev=False)
            where = getattr(group, "subs", None) or group.add_subparsers(required=True)
            group.subs = where
        made: argparse.ArgumentParser = where.add_parser(words.rpartition(" ")[2], allow_abbrev=False)
        made.set_defaults(handler=handler)
        for each in plain:
            made.add_argument(each)
        return made

    command("gcloud storage cp", "storage_cp", "source", "target")
    command("gcloud storage rm", "storage_rm", "url")
    command("gcloud config get-value", "config_get_value", "property")
    made = command("gcloud compute images create", "images_create", "name")
    made.add_argument("--source-uri", required=True)
    made.add_argument("--architecture", choices=["ARM64", "X86_64"])
    for option in ("--guest-os-features", "--family", "--labels"):
        made.add_argument(option)
    made = command("gcloud compute images describe", "images_describe", "name")
    made.add_argument("--format", choices=["value(status)"], required=True)
    for words, options in AZ.items():
        made = command(f"az {words}", words.replace(" ", "_").replace("-", "_"))
        for option, more in {**EVERY, **options}.items():
            made.add_argument(option, **more)
    made = command("azcopy copy", "copy", "source", "target")
    made.add_argument("--blob-type", choices=["PageBlob"], required=True)
    return top


def main() -> None:
    folder, words = Path(sys.argv[1]), sys.argv[2:]
    asked = parser().parse_args(words)
    with (folder / "calls").open("a") as log:
        log.write(" ".join(words) + "\n")
    if any((folder / f"hang-{word}").exists() for word in words):
        (folder / "hangs").touch()
        time.sleep(600)
    cloud = Cloud(folder)
    getattr(cloud, asked.handler)(asked)
    cloud.save()


if __name__ == "__main__":
    main()
