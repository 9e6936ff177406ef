"""The guest that bakes: its input (user data), and its output (marked lines on the serial console).

One script (``node/guest.sh``; with ``node/prove.py`` for proofs) and one protocol for QEMU and EC2. Nothing in the user
data is secret: an instance logs in to ECR with its own role. Sources: cloud-init's documentation, "User data formats"
(MIME multi-part, gzip); EC2 user guide (16 KiB of user data before base64); containerd ``docs/hosts.md``.
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from parbake.aws.limits import USER_DATA_LIMIT
from parbake.builders import seal
from parbake.core.errors import ArtefactFull, BakeFailed, InputError
from parbake.core.model import GIB, Image, Plan, RegistryOptions
from parbake.core.nodefiles import node_file
from parbake.core.reference import DOCKER_HUB
from parbake.images.registry import ecr
from parbake.machine import disk
from parbake.verify import within

Mode = Literal["bake", "verify"]

# Sections of the script, by its comments, that a mode does not need.
_OF_OTHERS = {"bake": {"verify"}, "verify": {"registries", "images", "docker", "seal"}}
# A guest's own network configuration, which cloud-init writes for one machine (`cloud-init clean --configs network`).
_NETWORK = (
    "etc/netplan/50-cloud-init.yaml",
    "etc/systemd/network/10-cloud-init-*.network",
    "etc/NetworkManager/system-connections/cloud-init-*.nmconnection",
)
# Amazon Linux 2 updates itself at the first boot otherwise, which EKS does not support for nodes.
_CLOUD_CONFIG = "#cloud-config\nrepo_upgrade: none\npackage_update: false\npackage_upgrade: false\n"
_BOUNDARY = "==parbake=="
_TOLD = 16
"""Hexadecimal digits of a layer's digest that a machine is told, to fit many into user data. Nobody makes other content
whose digest begins so: that takes 2^64 attempts."""
_MOST_SAID = 200
"""Lines of a guest's log, and of its warnings, that are kept: the last ones."""
_HEADER = re.compile(r"(\w+\(\) \{) # .*")  # of a function, with what it takes
_LINE = re.compile(r"@parbake (\S+) ([0-9]{1,9}) (begin|stage|baked|proved|warn|log|fail|done) ?(.*)")


def script(mode: Mode, *, volume: bool = False) -> str:
    """Return the guest's script without its comments and what it does in other modes: user data has little room."""
    of_others = _OF_OTHERS[mode] | (set() if volume else {"volume"})
    return "\n".join(line for section, line in sections("guest.sh") if section not in of_others) + "\n"


def sections(name: str) -> Iterable[tuple[str, str]]:
    """Yield the lines of a script, without its comments, each after the name of the section that it stands in."""
    section = ""
    for line in map(str.strip, node_file(name).read_text().splitlines()):
        section = line[5:].partition(":")[0] if line.startswith("# -- ") else section
        if line and not line.startswith("#"):
            yield section, _HEADER.sub(r"\1", line)


def user_data(
    plan: Plan,
    run: str,
    mode: Mode,
    *,
    limit: float,
    registries: Mapping[str, RegistryOptions],
    server: str = "",
) -> bytes:
    """Return the user data for a machine that bakes or verifies a plan; gzipped where it would be too large.

    ``run`` names the run on the console, ``limit`` is in seconds, ``server`` is the URL of what is asked in the place
    of every registry (see ``image_server.py``). Raises InputError when an image is in no registry and there is no
    server, or when there are too many to name.
    """
    pulls = [
        *("registries() {", ":", *_registries(plan, registries, server), "}"),
        *("images() {", *image_calls(plan, in_registries=not server), "}"),
    ]
    head = "\n".join([*_variables(plan, run, mode, limit), *(pulls if mode == "bake" else _prover(plan))])
    body = script(mode, volume=plan.artefact.kind == "volume")
    parts = (("text/cloud-config", _CLOUD_CONFIG), ("text/x-shellscript", f"#!/bin/sh\n{head}\n{body}"))
    text = f'Content-Type: multipart/mixed; boundary="{_BOUNDARY}"\nMIME-Version: 1.0\n\n'
    for kind, content in parts:
        text += f'--{_BOUNDARY}\nContent-Type: {kind}; charset="utf-8"\nMIME-Version: 1.0\n\n{content}\n'
    data = f"{text}--{_BOUNDARY}--\n".encode()
    if len(data) > USER_DATA_LIMIT:
        data = gzip.compress(data, mtime=0)
    if len(data) > USER_DATA_LIMIT:
        raise InputError(
            f"{len(plan.all_images)} images, with their `startup`, are more than fit into EC2 user data (16 KiB)",
            hint="bake fewer images at once, or with less in `startup.files`; or write `builder: ebs`: no instance",
        )
    return data


def _variables(plan: Plan, run: str, mode: Mode, limit: float) -> list[str]:
    lists = {
        "REMOVED": (*seal.REMOVED, *_NETWORK),
        "REMOVED_WITH_NODEADM": seal.REMOVED_WITH_NODEADM,
        "EMPTIED": seal.EMPTIED,
        "LOGS": seal.LOGS,
        "UNLESS_LINK": seal.UNLESS_LINK,
    }
    values = {
        "RUN": run,
        "MODE": mode,
        "LIMIT": str(int(limit)),
        "PLATFORM": str(plan.platform),
        "KEEP_LAYERS": str(int(plan.keep_layers)),
        **_volume(plan),
        **{name: " ".join(patterns) for name, patterns in lists.items()},
    }
    return [f"PARBAKE_{name}={shlex.quote(value)}" for name, value in values.items()]


def _volume(plan: Plan) -> dict[str, str]:
    """Describe a volume to the guest: how large its disk is, and how to make its file system."""
    if plan.artefact.kind != "volume":
        return {"VOLUME": ""}
    identity, size = disk.filesystem_uuid(plan.key), -(-plan.size // GIB) * GIB
    make = ["mkfs.xfs", "-q", "-K", "-L", disk.LABEL, "-m", f"uuid={identity}"]
    if plan.artefact.filesystem == "ext4":
        ratio = str(disk.bytes_per_inode(size))
        make = ["mkfs.ext4", "-q", "-F", "-I", "256", "-m", "0", "-i", ratio, "-L", disk.LABEL, "-U", identity]
    return {
        "VOLUME": str(size),
        "VOLUME_UUID": identity,
        "MKFS": " ".join(make),
        "SANDBOX": str(int(bool(plan.sandbox))),
    }


def hosts(plan: Plan) -> list[str]:
    """Return the registries that a machine pulls a plan's images from."""
    return sorted({image.reference.registry for image in plan.all_images if not image.layout})


def logs_in(host: str, options: Mapping[str, RegistryOptions]) -> ecr.EcrHost | None:
    """Return what of ECR a machine logs in to with its role for a registry; None: it pulls without a login."""
    found = ecr.parse(host)
    wanted = options.get(host, RegistryOptions()).credentials in {"auto", "ecr"}
    return found if found and not found.public and wanted else None


def _registries(plan: Plan, options: Mapping[str, RegistryOptions], server: str) -> list[str]:
    if server:
        names = {image.reference.registry for image in plan.all_images}
        return [shlex.join(["registry", host, server, "-"]) for host in sorted(names)]
    lines = []
    for host in hosts(plan):
        chosen = options.get(host, RegistryOptions())
        name = host.partition(":")[0]
        is_loopback = name == "localhost" or name.startswith("127.")
        target = "registry-1.docker.io" if host == DOCKER_HUB else host
        plain = chosen.plain_http or is_loopback
        login = f"ecr:{found.region}" if (found := logs_in(host, options)) else "-"
        words = ["registry", host, f"{'http' if plain else 'https'}://{target}", login]
        if chosen.ca:
            words.append(Path(chosen.ca).read_text())
        lines.append(shlex.join(words))
    return lines


def image_calls(plan: Plan, *, in_registries: bool) -> list[str]:
    """Return a call of the script's function `image` for each image."""
    lines = []
    for image in plan.all_images:
        if image.layout and in_registries:
            raise InputError(
                f"{image.reference} is not in a registry, so no machine can pull it",
                hint="give it a name in a registry, so that it is pushed; or bake with `builder: local` or `ebs`",
            )
        discarded = () if plan.keep_layers else image.layers
        layers = " ".join(layer.digest.partition(":")[2][:_TOLD] for layer in discarded)
        call = ["image", image.target.digest, image.manifest.digest, layers, source_of(image), *image.names]
        lines.append(shlex.join(call))
    return lines


def source_of(image: Image) -> str:
    """Return the reference by which an image is pulled: its repository and its digest."""
    return image.reference.with_digest(image.target.digest)


def _prover(plan: Plan) -> list[str]:
    """Return functions that print the program that proves images, without its comments, and what it is to prove."""
    subjects = json.dumps([within.subject(image, plan) for image in plan.all_images])
    return [
        *("prover() {", "cat <<'PARBAKE'", within.program(), "PARBAKE", "}"),
        *("subjects() {", "cat <<'PARBAKE'", subjects, "PARBAKE", "}"),
    ]


@dataclass(slots=True)
class Console:
    """A guest's output so far. ``read`` takes the console each time it is fetched and returns what is new."""

    run: str
    finished: bool = False
    failure: str = ""
    log: list[str] = field(default_factory=list)
    baked: dict[str, tuple[str, ...]] = field(default_factory=dict)
    proved: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    stage: str = ""
    _seen: int = 0

    def read(self, text: str) -> list[str]:
        """Take in console text, from the start or any later part of it; return the stages that are new."""
        stages = []
        for run, number, kind, rest in _marked(text):
            if run != self.run or int(number) <= self._seen or self.finished or self.failure:
                continue
            self._seen = int(number)
            words = rest.split(" ")
            match kind:
                case "stage":
                    self.stage = rest
                    stages.append(rest)
                case "baked":
                    self.baked[words[0]] = tuple(words[1:])
                case "proved":
                    # A line that another ran into; it is said twice.
                    with suppress(ValueError, KeyError, TypeError, RecursionError):
                        proof = json.loads(rest)
                        self.proved[str(proof["name"])] = proof
                case "warn":
                    self.warnings = [*self.warnings[-_MOST_SAID:], rest]
                case "log":
                    self.log = [*self.log[-_MOST_SAID:], rest]
                case "fail":
                    self.failure = rest or "no reason"
                case "done":
                    self.finished = True
        return stages

    @property
    def over(self) -> bool:
        """Whether the guest has said its verdict."""
        return self.finished or bool(self.failure)

    def judge(self, images: Sequence[Image], tail: str, *, mode: Mode = "bake") -> None:
        """Raise BakeFailed unless the guest is done and everything is there; ``tail`` is the console's end.

        Raises ArtefactFull where a larger disk helps.
        """
        if self.failure:
            shown = "\n".join(self.log[-40:])
            message = f"the guest failed at the stage `{self.stage}`: {self.failure}\n{shown}".rstrip()
            if "raise size" in self.failure:
                raise ArtefactFull(message, hint="raise `size` in the Bakefile")
            raise BakeFailed(message)
        if not self.finished:
            at = f"its last stage was `{self.stage}`" if self.stage else "its script printed nothing"
            raise BakeFailed(
                f"the machine ended without a verdict; {at}\nthe console's end:\n{tail}",
                hint="the base must run cloud-init's user data scripts and have a serial console",
            )
        missing = [str(image.reference) for image in images if image.target.digest not in self.baked]
        if mode == "bake" and missing:
            raise BakeFailed(f"the guest reports success, but not for {', '.join(missing)}")


def _marked(text: str) -> Iterable[tuple[str, str, str, str]]:
    for line in text.replace("\r", "\n").split("\n")[:-1]:  # the last one is still being written
        found = _LINE.search(line)
        if found:
            yield found.group(1), found.group(2), found.group(3), found.group(4).strip()
