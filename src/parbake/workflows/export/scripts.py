"""Scripts for the clouds' own command-line tools. What they need to know besides comes from the environment.

A script that ran through leaves alone what it has made; one that was stopped removes what is half made, and is simply
run again. What follows from a record stands in a script as the quoted value of a variable, and nowhere else. Sources:
gcloud reference (storage cp, compute images create, container node-pools create); GKE documentation, "Use secondary
boot disks to preload data or container images"; Azure documentation, "Upload a VHD to Azure" and the az reference
(disk create, disk grant-access, disk update, image create).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from parbake.core.errors import InputError
from parbake.core.model import Platform

_LONGEST = 63
_NAME = re.compile(r"[a-z][a-z0-9-]*[a-z0-9]")
_FILE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_GCE_FEATURES = ("GVNIC", "VIRTIO_SCSI_MULTIQUEUE")
_GCE_ARCHITECTURES = {"amd64": "X86_64", "arm64": "ARM64"}
_AZURE_ARCHITECTURES = {"amd64": "x64", "arm64": "Arm64"}
# Not every sh runs what is trapped for its end when a signal ends it.
_SIGNALS = "trap 'exit 130' INT\ntrap 'exit 143' TERM HUP"


def resource_name(name: str, key: str) -> str:
    """Return a name that Compute Engine and Azure take, from a Bakefile's name and a content key."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"p-{plain}".rstrip("-")
    return _named(f"{plain[: _LONGEST - 13].rstrip('-')}-{key[:12]}")


def _named(text: str, pattern: re.Pattern[str] = _NAME) -> str:
    if not pattern.fullmatch(text):
        raise InputError(
            f"{text!r} cannot be a name in a script for a cloud", hint="the record was changed: bake again"
        )
    return text


def _variable(name: str, value: str) -> str:
    return f"{name}={shlex.quote(value)}"


def _architecture(platform: Platform, known: Mapping[str, str], cloud: str) -> str:
    if platform.architecture not in known:
        raise InputError(f"{cloud} has no machines for {platform}", hint="bake for linux/amd64 or linux/arm64")
    return known[platform.architecture]


def gcp_script(archive: str, name: str, platform: Platform, *, uefi: bool) -> str:
    """Return the script that makes a Compute Engine image of an archive beside it."""
    features = ",".join(sorted((*_GCE_FEATURES, *(["UEFI_COMPATIBLE"] if uefi else []))))
    architecture = _architecture(platform, _GCE_ARCHITECTURES, "Compute Engine")
    options = [f"--architecture={architecture}", f"--guest-os-features={features}"]
    return _gcloud(archive, name, "a machine image", options, [])


def gke_script(archive: str, name: str) -> str:
    """Return the script that makes the disk image of an archive beside it, and says how a node pool gets it."""
    return _gcloud(archive, name, "a secondary boot disk for GKE", ["--family=secondary-disk-image"], [
        "project=$(gcloud config get-value project)",
        "cat <<END",
        "A node pool gets it when it is made (GKE 1.30.1-gke.1329000 or later, with image streaming):",
        "gcloud container node-pools create POOL --cluster=CLUSTER --location=LOCATION --enable-image-streaming \\\\",
        "  --secondary-boot-disk=disk-image=projects/$project/global/images/$image,mode=CONTAINER_IMAGE_CACHE",
        "END",
    ])  # fmt: skip


def _gcloud(archive: str, name: str, what: str, options: list[str], then: list[str]) -> str:
    return "\n".join([
        "#!/bin/sh",
        f"# Makes {what} of the archive beside it, with the gcloud CLI as it is logged in.",
        "# BUCKET is a Cloud Storage bucket; the archive is removed from it when the image is made.",
        "set -eu",
        ': "${BUCKET:?name a Cloud Storage bucket, such as BUCKET=my-images}"',
        'cd "$(dirname "$0")"',
        _variable("archive", _named(archive, _FILE)),
        _variable("image", _named(name)),
        "if [ \"$(gcloud compute images describe \"$image\" --format='value(status)' 2>/dev/null)\" = READY ]; then",
        '  echo "the image $image exists already"',
        "else",
        '  trap \'gcloud storage rm "gs://$BUCKET/$archive"\' EXIT',
        *(f"  {line}" for line in _SIGNALS.splitlines()),
        '  gcloud storage cp "$archive" "gs://$BUCKET/$archive"',
        '  gcloud compute images create "$image" \\',
        '    --source-uri="gs://$BUCKET/$archive" \\',
        *(f"    {option} \\" for option in options),
        "    --labels=made-by=parbake",
        "fi",
        *then,
        "",
    ])  # fmt: skip


def azure_script(vhd: str, name: str, platform: Platform, *, size: int, uefi: bool, bootable: bool) -> str:
    """Return the script that makes a managed disk of a VHD of ``size`` bytes beside it, and an image where it boots."""
    here = '--resource-group "$GROUP" --name "$name"'
    architecture = _architecture(platform, _AZURE_ARCHITECTURES, "Azure")
    generation = "V2" if uefi else "V1"
    boots = f"--os-type Linux --hyper-v-generation {generation} " if bootable else ""
    lines = [
        "#!/bin/sh",
        "# Makes a managed disk of the VHD beside it, with az and azcopy as they are logged in.",
        "# GROUP is a resource group, LOCATION a region.",
        "set -eu",
        ': "${GROUP:?name a resource group}" "${LOCATION:?name a region, such as westeurope}"',
        'cd "$(dirname "$0")"',
        _variable("vhd", _named(vhd, _FILE)),
        _variable("name", _named(name)),
        "drop() {",
        f"  az disk revoke-access {here} --output none",
        f"  az disk delete {here} --yes --output none",
        "}",
        "# Azure does not show whether a disk was uploaded completely, so a tag says so.",
        f"state=$(az disk show {here} --query \"tags.parbake || 'begun'\" --output tsv 2>/dev/null || true)",
        'if [ "$state" = complete ]; then',
        '  echo "the disk $name exists already"',
        "else",
        '  [ -z "$state" ] || drop',
        "  trap drop EXIT",
        *(f"  {line}" for line in _SIGNALS.splitlines()),
        f'  az disk create {here} --location "$LOCATION" --sku StandardSSD_LRS \\',
        f"    {boots}--architecture {architecture} --tags made-by=parbake \\",
        f"    --upload-type Upload --upload-size-bytes {size} --output none",
        "  # A link that may write to this disk alone, until the script ends: azcopy takes it in no other way.",
        f"  link=$(az disk grant-access {here} --access-level Write --duration-in-seconds 86400 \\",
        "    --query 'accessSas || accessSAS' --output tsv)",
        '  azcopy copy "$vhd" "$link" --blob-type PageBlob',
        f"  az disk revoke-access {here} --output none",
        f"  az disk update {here} --set tags.parbake=complete --output none",
        "  trap - EXIT",
        "fi",
    ]
    if bootable and platform.architecture == "amd64":
        lines += [
            f"disk=$(az disk show {here} --query id --output tsv)",
            f'az image create {here} --location "$LOCATION" --os-type Linux --hyper-v-generation {generation} \\',
            '  --source "$disk" --output none',
        ]
    elif bootable:
        lines += ["# Images of this architecture live in an Azure compute gallery: az sig image-version create."]
    return "\n".join([*lines, ""])
